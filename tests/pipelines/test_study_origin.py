"""What a study stores about where its numbers come from."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision

from msrcnn.config import DataConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.weights import save_model
from pipelines.manifest import read_manifest, write_manifest
from pipelines.study_data import StudyShards
from pipelines.study_options import StudyConfig
from pipelines.study_origin import check_origin, origin_of
from pipelines.study_plan import CONFIRM, STUDIES
from tests.stored_scenes import write_shards

PLAN = STUDIES["nuclei"]


@pytest.fixture
def shards(tmp_path: Path, make_scene) -> StudyShards:
    """Of one category, where the preset has 80."""
    truth = make_scene(1, np.random.default_rng(0), 3, 2, 1).truth
    for name in ("train", "val"):
        manifest = write_shards(tmp_path / name, [truth], [(1, "nucleus")], 1, 1)
        write_manifest(replace(manifest, source={"plan": {"annotations_sha256": f"of {name}"}}))
    assert len(read_manifest(tmp_path / "val").categories) == 1
    return StudyShards(tmp_path / "train", tmp_path / "fit", tmp_path / "choose", tmp_path / "val")


def test_a_file_is_told_by_its_checksum_and_what_the_trunk_lacks(tmp_path: Path, shards: StudyShards) -> None:
    file = tmp_path / "resnet18.pth"
    weights = torchvision.models.resnet18(weights=None).state_dict()
    torch.save({name: tensor for name, tensor in weights.items() if name != "layer4.0.conv1.weight"}, file)
    config = StudyConfig("nuclei", tmp_path / "out", data=tmp_path, weights=str(file), workers="2")
    origin = origin_of(config, PLAN, shards)
    assert origin["weights"] == {
        "name": "resnet18.pth", "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "missing": ["backbone.trunk.layer4.0.conv1.weight"],
    }  # fmt: skip
    assert origin["data"] == {"train": "of train", "val": "of val"}
    assert (origin["workers"], bool(origin["machine"]), bool(origin["time"])) == ("2", True, True)
    torch.save(weights, file)
    other = origin_of(config, PLAN, shards)
    check_origin(tmp_path, other, {**other, "time": "later", "workers": "1"})
    with pytest.raises(InputError, match="made with other weights than are given"):
        check_origin(tmp_path, origin, other)


def test_a_runs_folder_and_none(tmp_path: Path, shards: StudyShards) -> None:
    """A finished detector has as many categories as the data, not as the preset."""
    (tmp_path / "run").mkdir()
    model = MaskScoringRCNN(replace(PLAN.model(CONFIRM, "paper"), num_classes=1))
    save_model(tmp_path / "run" / "model.pt", model, DataConfig(64, 64), ((1, 1, "nucleus"),))
    config = StudyConfig("nuclei", tmp_path / "out", data=tmp_path, weights=f"{tmp_path}/run")
    found = origin_of(config, PLAN, shards)["weights"]
    checksum = hashlib.sha256((tmp_path / "run" / "model.pt").read_bytes()).hexdigest()
    assert found == {"name": "run", "sha256": checksum, "missing": []}
    assert origin_of(replace(config, weights=None), PLAN, shards)["weights"] is None
