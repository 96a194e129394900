"""What a sweep varies: one file a table of the paper, plus hyper-parameters."""
