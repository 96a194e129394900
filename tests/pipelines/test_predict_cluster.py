"""`msrcnn predict` over a Ray cluster leaves what it leaves in one process."""

from __future__ import annotations

from dataclasses import replace

import pytest

from msrcnn.errors import InputError
from pipelines import predict_job
from pipelines.predict import predict
from pipelines.predict_options import PredictConfig
from tests.predicting import files_in, rows_of, write_image, write_model, write_video

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session", "one_thread")]


def test_two_actors_give_the_rows_and_files_of_one_process(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(predict_job, "LEAST_IMAGES", 4)  # three parts of images, two of videos
    write_model(tmp_path / "run" / "model.pt")
    for index in range(10):
        write_image(tmp_path / "photos" / f"{index:02d}.png", index % 5)
    write_video(tmp_path / "clip.mp4", [0, 100, 200])
    (tmp_path / "photos" / "bad.jpg").write_bytes(b"no image")
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    lines: list[str] = []
    given = ("photos", "clip.mp4", "bad.mp4")
    codes = [
        predict(PredictConfig("run", given, out=out, min_score=-1e9, actors=actors), lines.append)
        for out, actors in (("here", 0), ("there", 2))
    ]
    assert codes == [1, 1]
    assert files_in(tmp_path / "there") == files_in(tmp_path / "here")
    assert rows_of(tmp_path / "there") == rows_of(tmp_path / "here")
    assert len({row["image_id"] for row in rows_of(tmp_path / "there")}) == 10 + 3 + 2
    for name in files_in(tmp_path / "here"):
        if name != "detections.parquet":
            assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes(), name
    assert len([line for line in lines if line.startswith("15/15 images, ")]) == 2


def test_what_actors_cannot_use_is_said_in_a_line(tmp_path):
    write_image(tmp_path / "a.png", 0)
    (tmp_path / "model.pt").write_bytes(b"no model")
    config = PredictConfig(tmp_path / "model.pt", (tmp_path / "a.png",), tmp_path / "out", actors=1)
    with pytest.raises(InputError, match=r"model\.pt: not a model checkpoint"):
        predict(config, print)
    write_model(tmp_path / "model.pt")
    with pytest.raises(InputError, match="the Ray cluster has no GPU"):
        predict(replace(config, gpu=True), print)
