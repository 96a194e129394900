"""One data set and two evaluations of it, made once for all tests of the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.reports import write_data, write_evaluation, write_training


@dataclass(frozen=True)
class Made:
    """Folders and what is in them."""

    folder: Path
    shards: Path
    first: Path
    second: Path
    training: Path
    scenes: list[Any]
    summaries: list[dict[str, Any]]


@pytest.fixture(scope="session")
def made(tmp_path_factory, make_scene) -> Made:
    """The second detector finds other things in the same images."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(4)
    scenes = [make_scene(i, rng, instances=6, detections=14, classes=3) for i in range(1, 13)]
    scenes.append(make_scene(13, rng, instances=0, detections=3, classes=3))
    shards = write_data(folder / "shards", scenes)
    training = write_training(folder / "run")
    first, second = folder / "first", folder / "second"
    other = [make_scene(s.truth.image_id, np.random.default_rng(100 + i), 6, 14, 3) for i, s in enumerate(scenes)]
    moved = [
        type(s)(s.truth, o.detections, s.truth_masks, o.detection_masks) for s, o in zip(scenes, other, strict=True)
    ]
    summaries = [write_evaluation(first, shards, scenes, str(training / "model.pt")),
                 write_evaluation(second, shards, moved, model_sha="1" * 64)]  # fmt: skip
    return Made(folder, shards, first, second, training, scenes, summaries)
