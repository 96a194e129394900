"""The stages, one file a verb: shard, train, evaluate. Ray and MLflow live here and nowhere else."""
