"""The options of the verbs with data or a network. Imports neither torch nor Ray: `--help` must not wait."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from msrcnn.config import DataConfig, ModelConfig, Precision, SolverConfig, check_precision, require
from pipelines.scoring_options import ReportOptions


def worker_range(workers: str, option: str = "--workers") -> tuple[int, int]:
    """Fewest and most processes that an option asks for.

    Raises:
        InputError: it is neither a number from 1 nor MIN:MAX.
    """
    low, _, high = str(workers).partition(":")
    good = low.isdecimal() and (high or low).isdecimal() and 1 <= int(low) <= int(high or low)
    require(good, option, workers, "a number from 1, or MIN:MAX")
    return int(low), int(high or low)


def worker_share(cpus: float, gpu: bool) -> dict[str, float]:
    """What a training worker asks of the cluster, by Ray's names.

    Workers packed onto all CPUs of a node must leave something for its readers.

    Args:
        cpus: what `--cpus` says; 0: our choice.
        gpu: whether it has one.
    """
    return {"CPU": cpus or (0.9 if gpu else 0.45)} | ({"GPU": 1.0} if gpu else {})


@dataclass(frozen=True)
class ShardConfig:
    """Turn COCO annotations and images into Parquet shards. The same command again goes on where it stopped.

    `msrcnn shard --verify --out OUT` instead checks the shards that are there. Annotations, images and out are local
    paths or URLs: s3://, gs://, whatever fsspec knows.
    """

    annotations: str | Path
    """COCO annotation file (JSON)"""
    images: str | Path
    """the folder that the file's image names start from; on a cluster every node must see it"""
    out: str | Path
    """folder for the shards, made if absent; on a cluster every node must see it"""
    shard_mb: int = 64
    """about how many megabytes of images a shard holds"""
    row_group: int = 64
    """images in a Parquet row group, what is read at once"""
    seed: int = 0
    """of the order in which the images are written"""
    name: str = ""
    """of the data set; the annotation file's name without its ending if empty"""
    strict: bool = False
    """fail, and leave nothing behind, where an image or annotation would be set aside"""
    address: str | None = None
    """Ray cluster to join; a local Ray if absent"""

    def __post_init__(self) -> None:
        require(self.shard_mb >= 1, "--shard-mb", self.shard_mb, "at least 1")
        require(self.row_group >= 1, "--row-group", self.row_group, "at least 1")
        require(self.seed >= 0, "--seed", self.seed, "0 or more")


@dataclass(frozen=True)
class VerifyConfig:
    """Check every shard of a finished data set: size, SHA-256, rows, schema."""

    out: str | Path
    """folder that `msrcnn shard` made; a local path or a URL"""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What the verbs that train have in common."""

    preset: str = "r18-fpn"
    """settings to start from, by the paper's name; the options below change single fields. NAME+ap trains a MaskIoU
    head for AP on a finished detector of that preset (docs/training.md)"""
    model: ModelConfig = field(default_factory=ModelConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    data: DataConfig = field(default_factory=DataConfig)
    workers: str = "1"
    """training processes, which share the images of a step: a number, or MIN:MAX to go on with as many as the cluster
    has at the time"""
    images_at_once: int = 0
    """images that a worker computes at a time, at most, lying and standing ones apart; gradients are accumulated over
    its share of a step; 0: all of its share, with MIN:MAX workers the share of the most"""
    gpu: bool = False
    """one GPU a worker"""
    cpus: float = 0.0
    """CPUs that a worker reserves; 0: a little less than half a CPU, or than a whole one with --gpu, for readers need
    some too"""
    threads: int = 0
    """CPU threads a worker computes with; 0: the cores that this process may use, divided by the workers"""
    compile: bool = False
    """compile the network (torch.compile)"""
    checkpoint_minutes: float = 15.0
    """time between checkpoints inside an epoch; each epoch ends with one too"""
    tracking: str | None = None
    """MLflow tracking address; MLFLOW_TRACKING_URI if absent, else sqlite:///mlflow.db"""
    experiment: str = "msrcnn"
    """MLflow experiment"""
    address: str | None = None
    """Ray cluster to join; a local Ray if absent"""

    def __post_init__(self) -> None:
        _, high = self.worker_range
        for name in ("images_at_once", "threads", "cpus"):
            require(getattr(self, name) >= 0, f"--{name.replace('_', '-')}", getattr(self, name), "0 or more")
        require(self.checkpoint_minutes > 0, "--checkpoint-minutes", self.checkpoint_minutes, "above 0")
        require(high <= self.solver.batch, "--workers", self.workers, f"at most --solver.batch ({self.solver.batch})")

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers."""
        return worker_range(self.workers)


@dataclass(frozen=True)
class TrainConfig(TrainingOptions):
    """Train on shards. The same command again goes on where it stopped."""

    shards: str | Path
    """folder that `msrcnn shard` made; a local path or a URL"""
    run: str | Path
    """run directory: checkpoints, metrics, the final model; a local path, which on a cluster every node must see, or a
    URL"""
    weights: str | None = None
    """weights to start from: a model file, a torchvision ResNet or Mask R-CNN file, or torchvision's name of such
    weights, as ResNet50_Weights.IMAGENET1K_V1"""
    weights_eps: float | None = None
    """what BatchNorm of a torchvision Mask R-CNN in --weights adds to variances: 0 if it was fine-tuned from
    torchvision's COCO weights (weights="DEFAULT"); absent: 0 for those themselves, 1e-5 for any other"""
    from_checkpoint: str | None = None
    """start a new run from the weights of another: its run directory, one of its checkpoints or its model file; the
    model must be the same"""
    keep: int = 2
    """checkpoints kept, the last ones; the best model by mask AP is kept besides, with --validation"""
    validation: str | Path | None = None
    """shards to evaluate on while training goes on"""
    validate_every: int = 1
    """epochs between evaluations on --validation; the last epoch is always evaluated"""
    register: str = "msrcnn"
    """name of the finished model in MLflow's registry; not registered if empty"""
    max_steps: int | None = None
    """end after this many steps, a checkpoint included"""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("keep", "validate_every"):
            require(getattr(self, name) >= 1, f"--{name.replace('_', '-')}", getattr(self, name), "at least 1")
        require(self.max_steps is None or self.max_steps >= 1, "--max-steps", self.max_steps, "at least 1")
        require(not (self.weights and self.from_checkpoint), "--from-checkpoint", self.from_checkpoint,
                "absent with --weights: a run begins with one or the other")  # fmt: skip
        require(self.weights_eps is None or (self.weights is not None and self.weights_eps >= 0), "--weights-eps",
                self.weights_eps, "0 or more, with --weights")  # fmt: skip


@dataclass(frozen=True)
class EvaluateConfig(ReportOptions):
    """Detect on shards, store the detections as rows, compute every number from them.

    The same command again, after it was killed, goes on with the images that have no detections yet.
    """

    model: str | Path
    """run directory of a finished training, or a model file; a local path or a URL"""
    shards: str | Path
    """folder that `msrcnn shard` made; a local path or a URL"""
    out: str | Path
    """folder for the detection rows (Parquet), the numbers (summary.json) and figures; a local path, which on a
    cluster every node must see, or a URL"""
    batch: int = 0
    """images a step of the network; 0: 8 on a GPU, 1 on a CPU, which more at a time slow down"""
    precision: Precision = "float32"
    """what layers compute in; bfloat16 is faster where the device has instructions for it and gives nearly the same
    detections: scores, boxes and masks stay float32"""
    actors: int = 0
    """inference processes, at most one a GPU (with --gpu) or CPU of the cluster; 0: from one to as many as there is
    work and room for"""
    gpu: bool = False
    """one GPU an inference process"""
    strict: bool = False
    """fail, once all images have been through, if one could not be processed"""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_precision("--precision", self.precision)
        for name in ("batch", "actors"):
            require(getattr(self, name) >= 0, f"--{name}", getattr(self, name), "0 or more")


@dataclass(frozen=True)
class InspectConfig:
    """Count what is in a folder of shards."""

    shards: tyro.conf.Positional[str | Path]
    """folder that `msrcnn shard` made; a local path or a URL"""
    gallery: int = 0
    """draw this many images with their masks on one sheet"""
    out: Path = Path("gallery.png")
    """the sheet, a PNG file"""
    seed: int = 0
    """of the images on the sheet"""

    def __post_init__(self) -> None:
        for name in ("gallery", "seed"):
            require(getattr(self, name) >= 0, f"--{name}", getattr(self, name), "0 or more")
