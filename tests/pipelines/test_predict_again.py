"""What `msrcnn predict` does in a folder that was begun, interrupted or finished."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from msrcnn import load_model
from msrcnn.errors import InputError
from msrcnn.weights import save_model
from pipelines import predict_job
from pipelines.detection_parts import Origin
from pipelines.predict import predict
from pipelines.predict_inputs import find_sources
from pipelines.predict_job import PARTS, PredictJob, Predictor, parts_of
from pipelines.predict_options import PredictConfig
from pipelines.storage import locate
from tests.commands import ROOT
from tests.predicting import (
    CATEGORIES,
    DATA,
    EVERYTHING,
    files_in,
    pixels,
    predicting,
    preserved,
    rows_of,
    write_image,
    write_model,
    write_video,
)  # fmt: skip
from tests.submitting import hears_ctrl_c

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model.pt").parent


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_a_finished_folder_is_left_as_it_is(run, here):
    """The same command again ends as it did; another model, other images or settings are refused by name."""
    write_image(here / "photos" / "a.png", 0)
    (here / "photos" / "bad.png").touch()
    code, lines = predicting(run, "photos", overlays=False)
    assert code == 1
    rows = here / "predictions" / "detections.parquet"
    made, written = rows.stat().st_mtime_ns, rows_of(here / "predictions")
    (here / "predictions" / PARTS).mkdir()  # killed before it was gone
    for allowed, wanted in ((0, 1), (1, 0)):
        code, again = predicting(run, "photos", overlays=False, max_failed=allowed)
        assert code == wanted
        assert again[0] == f"{here}/predictions: holds the predictions of this model for these images, nothing to do"
        assert again[1:] == lines[-4:-1]  # what is in it; at last came the time it took
    assert rows.stat().st_mtime_ns == made
    assert rows_of(here / "predictions") == written
    assert files_in(here / "predictions") == ["detections.json", "detections.parquet", "images.json"]
    other = here / "other.pt"
    save_model(other, load_model(run).model, DATA, [(1, 1, "another name"), *CATEGORIES[1:]])
    for model, images, options, named in (
        (run, "photos", {"overlays": False, "min_score": 0.5}, "min-score"), (run, "photos", {}, "overlays"),
        (other, "photos", {"overlays": False}, "model"), (run, "photos/a.png", {"overlays": False}, "dataset"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=rf"already holds other predictions \(.*{named}.*choose another --out"):
            predicting(model, images, **options)
    assert rows.stat().st_mtime_ns == made


def test_interrupted_it_leaves_whole_files_and_goes_on(run, here, monkeypatch):
    least = 4
    monkeypatch.setattr(predict_job, "LEAST_IMAGES", least)
    for index in range(2 * least):
        write_image(here / "photos" / f"{index:02d}.png", index % 5)
    began, original = [], Predictor.run

    def interrupted(self, part, seen):
        began.append(part.number)
        if part.number == 1 and began.count(1) == 1:

            def after_one(_: int) -> None:
                """Overlays are drawn meanwhile, by other threads."""
                deadline = time.monotonic() + 60
                while len(list((here / "predictions" / "overlays").iterdir())) <= least:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
                raise KeyboardInterrupt

            return original(self, part, after_one)
        return original(self, part, seen)

    monkeypatch.setattr(Predictor, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        predicting(run, "photos")
    out = here / "predictions"
    left = files_in(out)
    assert [name for name in left if not name.startswith("overlays/")] == ["parts/part-00000-0000.parquet"]
    assert len(left) > least + 1
    for name in left:
        if name.startswith("overlays/"):
            with Image.open(out / name) as image:
                image.load()
    assert pq.read_table(out / "parts" / "part-00000-0000.parquet").num_rows > 0
    with pytest.raises(InputError, match=r"holds detections of something else .*min-score"):
        predicting(run, "photos", min_score=0.5)
    with pytest.raises(InputError, match=r"holds detections of something else .*precision: None -> 'bfloat16'"):
        predicting(run, "photos", precision="bfloat16")
    kept = here / "photos" / "00.png"
    for content, later in ((pixels(3), 1), (pixels(0)[:64], 0)):  # of another time, then of another size
        with preserved(kept) as old:
            Image.fromarray(content).save(kept)
            os.utime(kept, ns=(old.st_atime_ns, old.st_mtime_ns + later))
            with pytest.raises(InputError, match=r"holds detections of something else .*dataset"):
                predicting(run, "photos")
    for name in ("detections.parquet", "detections.json", "images.json"):
        (out / f"{name}.tmp-0123456789ab").touch()
    (out / "overlays" / "00.png.tmp-0123456789ab").touch()  # of one that was killed
    first = (out / "overlays" / "00.png").stat().st_mtime_ns
    code, lines = predicting(run, "photos")
    assert (code, began) == (0, [0, 1, 1])
    assert "1 of 2 parts are there already" in lines
    assert (out / "overlays" / "00.png").stat().st_mtime_ns == first
    assert "parts" not in {path.name for path in out.iterdir()}
    assert not [name for name in files_in(out) if "tmp" in name]
    predicting(run, "photos", out="whole")
    for name in ("detections.json", "images.json"):
        assert (out / name).read_bytes() == (here / "whole" / name).read_bytes()
    assert rows_of(out) == rows_of(here / "whole")


def test_what_another_process_finished_meanwhile_is_not_overwritten(run, here):
    write_image(here / "a.png", 0)
    config = PredictConfig(run, ("a.png",), min_score=EVERYTHING)
    finished: list[int] = []
    said: list[str] = []

    def while_the_first_begins(line: str) -> None:
        said.append(line)
        if not finished:
            finished.append(predict(config, lambda _: None))

    assert predict(config, while_the_first_begins) == 0
    assert finished == [0]
    assert said[1].endswith("nothing to do")
    assert files_in(here / "predictions") == [
        "detections.json", "detections.parquet", "images.json", "overlays/a.png"
    ]  # fmt: skip


@pytest.mark.parametrize("given", ["clip.mp4", "photos"])
def test_no_thread_reads_on_after_an_error(run, here, given):
    write_video(here / "clip.mp4", [100 * i for i in range(20)])
    for index in range(6):
        write_image(here / "photos" / f"{index}.png", index)

    def fail(_: int) -> None:
        raise RuntimeError

    job = PredictJob(str(run / "model.pt"), locate(here / "out"), Origin("", "", {}), 0.0, False, 2)
    (job.out / PARTS).make_folder()
    predictor, parts = Predictor(job, torch.device("cpu")), parts_of(find_sources([given], job.out))
    before = set(threading.enumerate())
    with pytest.raises(RuntimeError) as raised:
        predictor.run(parts[0], fail)
    assert set(threading.enumerate()) <= before, raised  # whose traceback holds all that is still open
    assert files_in(here / "out") == []


@pytest.mark.slow
def test_ctrl_c_ends_with_a_line_and_whole_files(run, here):
    for index in range(200):
        write_image(here / "photos" / f"{index:03d}.png", index % 5)
    command = [sys.executable, "-m", "pipelines", "predict", str(run), str(here / "photos"), "--out", str(here / "out")]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=hears_ctrl_c) as process:
        while not list((here / "out" / "overlays").glob("*.png")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "msrcnn: interrupted\n")
    overlays = list((here / "out" / "overlays").iterdir())
    for path in overlays:
        with Image.open(path) as image:
            image.load()
    assert len(overlays) < 200
    assert not (here / "out" / "detections.parquet").exists()
