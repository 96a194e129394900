"""Checkpoints: the round trip, and files that are not what they should be."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from msrcnn.config import DataConfig, ModelConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.weights import load_model, read_plain, save_model, write_aside
from tests.pickles import Evil

CONFIG = ModelConfig(
    levels=(2, 3), anchor_sizes=((16,), (32,)), channels=32, hidden=16, num_classes=2, norm="group_norm",
    frozen_stages=0,
)  # fmt: skip
DATA = DataConfig(short_side=96, long_side=128, short_sides=(64, 96), flip=False)
CATEGORIES = [(1, 3, "disc"), (2, 7, "trapèze")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    save_model(path, MaskScoringRCNN(CONFIG), DATA, CATEGORIES)
    return path


def test_round_trip(saved: Path) -> None:
    torch.manual_seed(0)
    original = MaskScoringRCNN(CONFIG)
    torch.manual_seed(1)  # what is read must not come from initialisation
    checkpoint = load_model(saved)
    assert checkpoint.model.config == CONFIG
    assert checkpoint.data == DATA
    assert checkpoint.categories == tuple(CATEGORIES)
    assert not checkpoint.model.training
    want, got = original.state_dict(), checkpoint.model.state_dict()
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert [p.name for p in saved.parent.iterdir()] == ["model.pt"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("raw", [True, False])
def test_code_in_a_file_is_not_executed(raw: bool, tmp_path: Path) -> None:
    path, marker = tmp_path / "evil.pt", tmp_path / "executed"
    if raw:
        path.write_bytes(pickle.dumps(Evil(marker)))
    else:
        torch.save({"format": 1, "model": Evil(marker)}, path)
    with pytest.raises(InputError, match=r"evil\.pt: not a model checkpoint") as caught:
        load_model(path)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def damaged_files(whole: bytes) -> dict[str, bytes]:
    middle = len(whole) // 2
    return {
        "empty": b"",
        "text": b"hello, I am a text file\n" * 9,
        "json": b'{"format": 1}',
        "zeros": bytes(1000),
        "image": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "html": b"<!DOCTYPE html><html>404</html>",
        "zip": b"PK\x05\x06" + bytes(18),
        "cut": whole[:middle],
        "cut at the end": whole[:-30],
        "head": whole[:50],
        "tail": whole[middle:],
        "overwritten index": whole[:-2000] + bytes(2000),
        "other pickle": pickle.dumps([1, 2]),
        "pickled number": pickle.dumps(3),
        **{f"byte {i}": bytes([i]) * 40 for i in range(0, 256, 5)},
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_files_are_named_in_one_line(saved: Path, tmp_path: Path) -> None:
    for name, content in damaged_files(saved.read_bytes()).items():
        path = tmp_path / "broken.pt"
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_model(path)
        assert str(caught.value).startswith(f"{path}: "), name
        assert "\n" not in str(caught.value), name


def test_absent_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pt: no such file; expected a model checkpoint"):
        load_model(tmp_path / "none.pt")
    with pytest.raises(InputError, match=r"model\.pt: no such file; expected a model checkpoint"):
        load_model(tmp_path)


def rewrite(saved: Path, path: Path, **changes: Any) -> Path:
    torch.save(torch.load(saved, weights_only=True) | changes, path)
    return path


def test_other_formats_are_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"new\.pt: checkpoint format 99, this program reads 1"):
        load_model(rewrite(saved, tmp_path / "new.pt", format=99))
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    with pytest.raises(InputError, match=r"foreign\.pt: no model of msrcnn; give a run directory"):
        load_model(tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match=r"list\.pt: not a model checkpoint \(it holds a list\)"):
        load_model(tmp_path / "list.pt")


def test_weights_that_do_not_fit_are_refused(saved: Path, tmp_path: Path) -> None:
    value = torch.load(saved, weights_only=True)
    config, weights = value["model"], value["weights"]
    one_less = {k: v for k, v in weights.items() if k != "box.fc1.weight"}
    for changes in ({"model": config | {"hidden": 24}}, {"weights": one_less}):
        with pytest.raises(InputError, match=r"odd\.pt: .*box\.fc1\.weight") as caught:
            load_model(rewrite(saved, tmp_path / "odd.pt", **changes))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(saved: Path, tmp_path: Path, value: float) -> None:
    weights = torch.load(saved, weights_only=True)["weights"]
    weights["box.score.bias"][1] = value
    with pytest.raises(InputError, match=r"odd\.pt: box\.score\.bias is not finite; did training diverge\?"):
        load_model(rewrite(saved, tmp_path / "odd.pt", weights=weights))


def test_failing_to_write_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    write_aside(path, {"step": 1})
    with pytest.raises((pickle.PicklingError, AttributeError)):
        write_aside(path, {"tensor": torch.zeros(10), "step": lambda: 2})
    assert read_plain(path, "a state") == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]
