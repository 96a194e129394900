"""Each benchmark as a command: ends well and with one line of JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import memory

ROOT = Path(__file__).parents[2]


def run(name: str, *options: str, data: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "MSRCNN_DATA"}
    if data is not None:
        environment["MSRCNN_DATA"] = str(data)
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick", *options]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def figures(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_mask_output() -> None:
    found = figures(run("mask_output"))
    assert found["benchmark"] == "mask_output"
    assert found["identical"]
    assert found["ratio"] > 1
    assert found["full_images_ms"] > found["inside_boxes_ms"] > 0


def test_memory_without_data_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MSRCNN_DATA", raising=False)
    monkeypatch.setattr(sys, "argv", ["memory", "--quick"])
    assert memory.main() == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "MSRCNN_DATA" in said.err


@pytest.mark.slow
def test_memory(data_dir: Path) -> None:
    found = figures(run("memory", data=data_dir))
    assert found["instances"] == 375
    assert found["dense_bytes"] == 375 * found["dense_shape"][1] * found["dense_shape"][2]
    assert found["ratio"] == pytest.approx(found["dense_bytes"] / found["ragged_bytes"], rel=1e-3)
    assert found["peak_bytes_above_dense"] > found["dense_bytes"] > found["peak_bytes_above_ragged"]


@pytest.mark.slow
def test_head_cost() -> None:
    found = figures(run("head_cost"))
    assert found["identical"]
    for what in ("detecting", "training"):
        assert found[f"{what}_share"] > 0
        assert found[f"{what}_limit"] == pytest.approx(1.05 + found[f"{what}_share"], abs=2e-3)


@pytest.mark.slow
def test_many_heads() -> None:
    found = figures(run("many_heads"))
    assert found["same_losses"]
    assert found["heads"] == 11
    for trained in ("maskiou", "all"):
        assert 1 / 11 < found[f"{trained}_macs_ratio"] < 1
        assert found[f"{trained}_loss_difference"] <= 1e-5
        times = [found[f"{trained}_{side}_ms"] for side in ("many", "one_by_one")]
        assert found[f"{trained}_ratio"] == pytest.approx(times[0] / times[1], rel=0.5)
    assert found["all_macs_ratio"] < found["maskiou_macs_ratio"]
    assert found["ratio_to_macs"] == max(found[f"{trained}_ratio_to_macs"] for trained in ("maskiou", "all"))


@pytest.mark.slow
def test_train_step() -> None:
    found = figures(run("train_step", "--rounds", "2"))
    sides = ("ours", "ours_with_head", "torchvision")
    assert {found[f"float32_{side}_mask_rois"] for side in sides} == {16}  # a quarter of 64 RoIs
    times = {side: found[f"float32_{side}_step_ms"] for side in sides}
    assert found["ratio"] == pytest.approx(times["torchvision"] / times["ours"], rel=0.5)
    assert found["ratio_with_head"] == pytest.approx(times["torchvision"] / times["ours_with_head"], rel=0.5)
    assert found["float32_ours_images_per_second"] == pytest.approx(1e3 / times["ours"], rel=1e-2)
    peaks = {side: found[f"float32_{side}_peak_bytes"] for side in sides}
    assert found["peak_memory_ratio"] == pytest.approx(peaks["ours"] / peaks["torchvision"], rel=1e-2)
    # Weights, gradients and momentum of 44 million parameters and more, in bytes; the head has 16 million of its own.
    assert 2e9 > peaks["ours"] > 44e6 * 4 * 2
    assert 0 < found["outside_share"] < 0.2


@pytest.mark.slow
def test_scoring() -> None:
    found = figures(run("scoring"))
    assert found["difference"] <= 1e-12
    assert found["ratio"] == pytest.approx(found["pycocotools_ms"] / found["ours_ms"], rel=0.9)
    assert found["ratio"] > 1
    assert found["ratio_from_rows"] > 1
    assert found["memory_bounded"]
    assert found["part_peak_bytes"] > found["idle_peak_bytes"] > 0
    assert found["bytes_a_detection"] < 200


@pytest.mark.slow
def test_inference() -> None:
    found = figures(run("inference"))
    sides = ("ours", "ours_with_head", "torchvision")
    assert {found[f"{side}_detections"] for side in sides} == {100 * found["images"]}
    assert found["ratio"] > found["ratio_with_head"] > 0


@pytest.mark.slow
def test_scaling() -> None:
    found = figures(run("scaling"))
    assert found["efficiency"] == pytest.approx(
        found["2_worker_images_per_second"] / (2 * found["1_worker_images_per_second"]), rel=1e-2
    )
    assert 0 < found["efficiency"] < 1.5


@pytest.mark.slow
@pytest.mark.ray
def test_serving() -> None:
    found = figures(run("serving"))
    assert found["identical"]
    assert found["ratio"] == pytest.approx(
        found["clients_images_per_second"] / found["predict_images_per_second"], rel=0.5
    )
    assert 0 < found["one_client_p50_ms"] <= found["one_client_p99_ms"]
    assert found["one_client_p50_ms"] < found["clients_p50_ms"] <= found["clients_p99_ms"]
