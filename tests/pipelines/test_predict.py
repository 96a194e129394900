"""`msrcnn predict` in this process: what it writes is what `msrcnn.predict` finds."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import msrcnn
from msrcnn import load_model
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig, SelectionChanges
from msrcnn.structures import Batch
from pipelines import predict_job
from pipelines.detection_parts import Origin
from pipelines.predict import threads_for
from pipelines.predict_inputs import Source, find_sources
from pipelines.predict_job import LEAST_IMAGES, PARTS, PredictJob, Predictor, parts_of
from pipelines.schema import PREDICTION_ROW
from pipelines.storage import StorageError, locate
from tests.object_store import object_store
from tests.predicting import (
    CATEGORIES,
    assert_same,
    files_in,
    json_of,
    of_file,
    pixels,
    predicting,
    rows_of,
    write_image,
    write_model,
    write_video,
)  # fmt: skip
from tests.tiny import SIDE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("run") / "model.pt").parent


@pytest.fixture(scope="module")
def model(run):
    return load_model(run)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return tmp_path


def test_a_folder_gives_the_models_detections_overlays_and_coco_files(run, model, here):
    for index, name in enumerate(("a.png", "b.png", "sub/c.png")):
        write_image(here / "photos" / name, index)
    write_image(here / "photos" / "d.jpg", 3, height=64)
    code, lines = predicting(run, "photos")
    assert code == 0
    out, names = here / "predictions", ["a.png", "b.png", "d.jpg", "sub/c.png"]
    overlays = [f"overlays/{name}" for name in names]
    assert files_in(out) == sorted(["detections.json", "detections.parquet", "images.json", *overlays])
    assert pq.read_schema(out / "detections.parquet").equals(PREDICTION_ROW)
    rows = rows_of(out)
    found = msrcnn.predict(model, [here / "photos" / name for name in names])
    for image_id, (name, one) in enumerate(zip(names, found, strict=True), start=1):
        assert_same(of_file(rows, name), one)
        assert {row["image_id"] for row in of_file(rows, name)} == {image_id}
        assert {row["path"] for row in rows if row["image_id"] == image_id} == {str(here / "photos" / name)}
        with Image.open(out / "overlays" / name) as overlay:
            assert (overlay.height, overlay.width) == (one.height, one.width)
    assert sum(map(len, found)) > 20
    assert any(f"{sum(map(len, found))} detections in 4 of 4 images" in line for line in lines)
    assert any(line.startswith("4/4 images, ") for line in lines)

    coco = COCO(str(out / "images.json"))
    assert [coco.imgs[i]["file_name"] for i in (1, 2, 3, 4)] == names
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {i: name for _, i, name in CATEGORIES}
    results = coco.loadRes(str(out / "detections.json"))
    assert json_of(out / "detections.json") == [r for i, one in enumerate(found, 1) for r in one.coco(i)]
    masks = [results.annToMask(a) for a in results.loadAnns(results.getAnnIds(imgIds=[2]))]
    assert np.array_equal(masks, found[1].masks())


def test_a_model_may_be_asked_to_select_and_rank_otherwise(run, model, here, monkeypatch):
    """Rows as from `msrcnn.predict` with a model that is loaded so; begun with other settings, a folder is refused."""
    for number in range(3):
        write_image(here / "photos" / f"{number}.png", number)
    asked = {"selection": SelectionChanges(method="hard", top_k=7), "maskiou_power": 2.0}
    whole = msrcnn.predict(model, "photos/0.png")[0]
    found = msrcnn.predict(load_model(run, inference=InferenceConfig(**asked)), "photos/0.png")[0]
    assert 0 < len(found) <= 7 < len(whole)
    assert np.array_equal(found.worths, found.maskious.clip(0) ** 2)
    with monkeypatch.context() as patched:
        patched.setattr("pipelines.predict.join", fail)
        with pytest.raises(KeyboardInterrupt):
            predicting(run, "photos", **asked)
    for other in ({}, asked | {"maskiou_power": 3.0}):
        with pytest.raises(InputError, match=r"holds detections of something else \(part-00000-0000.parquet: "
                                             r"inference.*-> (None|3\.0)"):  # fmt: skip
            predicting(run, "photos", **other)
    _, lines = predicting(run, "photos", **asked)
    assert "1 of 1 parts are there already" in lines
    assert_same(of_file(rows_of(here / "predictions"), "0.png"), found)


def fail(*_given: object) -> None:
    raise KeyboardInterrupt


def test_only_masks_from_the_least_score_on_are_kept(run, model, here):
    write_image(here / "a.png", 0)
    write_image(here / "b.png", 1)
    scores = np.concatenate([one.mask_scores for one in msrcnn.predict(model, ["a.png", "b.png"])])
    least = float(np.median(scores))
    predicting(run, "a.png", "b.png", min_score=least)
    rows = rows_of(here / "predictions")
    for name in ("a.png", "b.png"):
        assert_same(of_file(rows, name), msrcnn.predict(model, name, min_score=least)[0])
    assert len(json_of(here / "predictions" / "detections.json")) == (scores >= least).sum() < len(scores)
    _, lines = predicting(run, "a.png", "b.png", min_score=1e6, out="none", overlays=False)
    assert [row["category"] for row in rows_of(here / "none")] == [None, None]
    assert json_of(here / "none" / "detections.json") == []
    assert [image["id"] for image in json_of(here / "none" / "images.json")["images"]] == [1, 2]
    assert files_in(here / "none") == ["detections.json", "detections.parquet", "images.json"]
    assert "no mask score reaches --min-score; with a lower one there may be detections" in lines


def test_too_little_gpu_memory_is_a_line_and_fewer_images_a_step_go_on(run, here, monkeypatch):
    for number in range(3):
        write_image(here / "photos" / f"{number}.png", number)
    whole = MaskScoringRCNN.forward

    def small(self: MaskScoringRCNN, batch: Batch) -> Any:
        if len(batch.image_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return whole(self, batch)

    monkeypatch.setattr(MaskScoringRCNN, "forward", small)
    with pytest.raises(InputError, match=f"^the GPU's memory does not suffice for steps of 3 images of up to {SIDE} x "
                                         f"{SIDE} pixels; evaluate or predict with a smaller --batch$"):  # fmt: skip
        predicting(run, "photos", out="out", batch=3)
    assert predicting(run, "photos", out="out", batch=2)[0] == 0
    assert {row["image_id"] for row in rows_of(here / "out")} == {1, 2, 3}


def test_beside_a_gpu_torch_has_one_thread_for_the_time():
    torch.set_num_threads(2)
    with threads_for(torch.device("cpu")):
        assert torch.get_num_threads() == 2
    with threads_for(torch.device("cuda")):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_images_of_all_kinds_and_those_that_cannot_be_used(run, model, here):
    write_image(here / "one" / "a.png", 0)
    write_image(here / "two" / "a.png", 1)
    Image.fromarray(pixels(2)[..., 0].astype(np.uint16) * 257).save(here / "deep.png")
    Image.fromarray(pixels(3)).convert("CMYK").save(here / "print.jpg")
    Image.fromarray(pixels(4)).save(here / "scan.tif")
    lying = Image.Exif()
    lying[0x0112] = 6  # a camera held upright
    Image.fromarray(pixels(0, height=64)).save(here / "phone.jpg", exif=lying)
    (here / "cut.png").write_bytes((here / "one" / "a.png").read_bytes()[:300])
    (here / "empty.jpg").touch()
    given = ["one/a.png", "two", "cut.png", "deep.png", "print.jpg", "one/a.png", "empty.jpg", "scan.tif", "phone.jpg"]
    code, lines = predicting(run, *given)
    assert code == 1
    rows, overlays = rows_of(here / "predictions"), here / "predictions" / "overlays"
    good = {"one/a.png": "one/a.png", "two/a.png": "two/a.png", "deep.png": "deep.png", "print.jpg": "print.jpg",
            "scan.tif": "scan.tif.png", "phone.jpg": "phone.jpg"}  # fmt: skip
    assert files_in(overlays) == sorted(good.values())
    for name, overlay in good.items():
        assert_same(of_file(rows, name), msrcnn.predict(model, name)[0])
        with Image.open(overlays / overlay) as image:
            assert (image.mode, image.format) == ("RGB", "JPEG" if overlay.endswith("jpg") else "PNG")
    failed = [row for row in rows if row["error"]]
    assert [(row["file_name"], row["image_id"], row["height"]) for row in failed] == [
        ("cut.png", 3, None), ("empty.jpg", 6, None)
    ]  # fmt: skip
    assert "2 could not be used:" in lines
    assert [line for line in lines if line.startswith("  ")] == [f"  {row['error']}" for row in failed]
    assert failed[0]["error"].startswith(f"{here}/cut.png: not a readable image (")
    assert [image["id"] for image in json_of(here / "predictions" / "images.json")["images"]] == [1, 2, 4, 5, 7, 8]
    with Image.open(overlays / "phone.jpg") as image:
        assert image.size == (64, SIDE)
        assert image.getexif().get(0x0112, 1) == 1


def test_a_storage_that_fails_costs_no_image(run, here, monkeypatch):
    """A network that is away for a minute would otherwise cost a thousand, for good."""
    monkeypatch.setattr(predict_job, "PAUSES", (0.0,))
    (here / "odd.png").mkdir()  # reading it fails, and not because it is missing
    write_image(here / "photos" / "a.png", 0)
    job = PredictJob(str(run / "model.pt"), locate(here / "out"), Origin("", "", {}), 0.0, False, 2)
    (job.out / PARTS).make_folder()
    predictor = Predictor(job, torch.device("cpu"))
    (part,) = parts_of(find_sources(["photos"], job.out))
    failing = replace(part, sources=(Source(str(here), "odd.png", "odd.png"), *part.sources))
    with pytest.raises(StorageError, match=r"odd\.png: cannot be read \(.*irectory.*\); give the same command again"):
        predictor.run(failing)
    (here / "photos").rename(here / "elsewhere")
    with pytest.raises(InputError, match=r"photos: node \S+ does not see it; give a path that every node sees"):
        predictor.run(part)
    assert files_in(here / "out") == []


def test_a_file_is_read_again_where_that_may_help(monkeypatch):
    monkeypatch.setattr(predict_job, "PAUSES", (0.0, 0.0))

    def reading(*errors: Exception) -> tuple[bytes, int]:
        left = [*errors]

        def read() -> bytes:
            if left:
                raise left.pop(0)
            return b"pixels"

        found = predict_job.patiently(read)
        return found, len(errors) - len(left)

    slow = OSError("AWS Error SLOW_DOWN during GetObject operation")
    assert reading(slow, slow) == (b"pixels", 2)
    with pytest.raises(OSError, match="SLOW_DOWN"):
        reading(slow, slow, slow)
    for lasting in (FileNotFoundError(2, "gone"), OSError("AWS Error ACCESS_DENIED during GetObject operation")):
        with pytest.raises(OSError, match=r"gone|ACCESS"):
            reading(lasting)


def test_nothing_usable_leaves_nothing(run, here):
    (here / "bad.png").write_bytes(b"no image")
    (here / "notes.txt").write_text("no image either")
    with pytest.raises(InputError, match=r"none of 2 images could be used \(first: .*bad\.png: not a readable image"):
        predicting(run, "bad.png", "notes.txt")
    assert files_in(here / "predictions") == []
    write_image(here / "a.png", 0)
    assert predicting(run, "a.png")[0] == 0


def test_what_is_wrong_is_said_before_anything_is_written(run, here, tmp_path):
    write_image(here / "a.png", 0)
    (here / "full").mkdir()
    (here / "full" / "thesis.txt").touch()
    for options, why in (
        ({"out": "full"}, "full: is not empty; choose another --out"),
        ({"out": "a.png"}, "a.png: is a file; choose a folder"),
        ({"gpu": True}, "--gpu: this machine has no GPU"),
    ):
        with pytest.raises(InputError, match=why):
            predicting(run, "a.png", **options)
    with pytest.raises(InputError, match="neither a run directory nor a model file"):
        predicting(tmp_path / "absent", "a.png")
    assert files_in(here) == ["a.png", "full/thesis.txt"]
    assert not (here / "predictions").exists()


def test_parts_are_the_same_for_the_same_sources_and_a_video_is_one():
    def source(name: str) -> Source:
        return Source("/", name, name)

    images = [source(f"{i}.png") for i in range(70)]
    parts = parts_of([*images[:40], source("a.mp4"), source("b.mp4"), *images[40:]])
    assert [len(part.sources) for part in parts] == [LEAST_IMAGES, 8, 1, 1, 30]
    assert [part.number for part in parts] == [0, 1, 2, 3, 4]
    assert [one for part in parts_of(images) for one in part.sources] == images
    assert max(len(part.sources) for part in parts_of(images * 2000)) == 140


def test_a_video_gives_a_video_and_the_detections_of_its_frames(run, model, here):
    from pipelines.video import Video

    path = write_video(here / "clip.mov", [0, 100, 200, 450])
    write_image(here / "a.png", 0)
    code, lines = predicting(run, "clip.mov", "a.png")
    assert code == 0
    assert lines[0].startswith("detecting in 1 image and 1 video with ")
    assert any(line.startswith("5/5 images, ") for line in lines)
    rows, out = rows_of(here / "predictions"), here / "predictions"
    with Video(locate(path)) as video:
        frames = list(video.frames())
    found = msrcnn.predict(model, [frame.image for frame in frames])
    for frame, one in zip(frames, found, strict=True):
        mine = [row for row in of_file(rows, "clip.mov") if row["frame"] == frame.number]
        assert_same(mine, one)
        assert {(row["time"], row["image_id"]) for row in mine} == {(frame.time, frame.number + 1)}
    assert {(row["frame"], row["image_id"]) for row in of_file(rows, "a.png")} == {(None, 5)}
    with Video(locate(out / "overlays" / "clip.mov.mp4")) as video:
        drawn = list(video.frames())
    assert [frame.time for frame in drawn] == pytest.approx([frame.time for frame in frames])
    assert {frame.image.size for frame in drawn} == {frame.image.size for frame in frames}
    masks = found[0].masks().any(0)
    changed = np.abs(np.asarray(drawn[0].image).astype(int) - np.asarray(frames[0].image)).mean(2)
    assert changed[masks].mean() > 20
    images = json_of(out / "images.json")["images"]
    assert [image["file_name"] for image in images] == [*(f"clip.mov#{i}" for i in range(4)), "a.png"]
    assert len(COCO(str(out / "images.json")).loadRes(str(out / "detections.json")).imgs) == 5


def test_a_broken_video_costs_no_other(run, here):
    whole = write_video(here / "whole.mkv", [100 * i for i in range(40)])
    (here / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (here / "bad.mp4").write_bytes(b"no video")
    code, lines = predicting(run, "bad.mp4", "cut.mkv", "whole.mkv", overlays=False)
    rows = rows_of(here / "predictions")
    assert code == 1
    assert "bad.mp4: not a readable video" in of_file(rows, "bad.mp4")[0]["error"]
    assert len({row["image_id"] for row in of_file(rows, "whole.mkv")}) == 40
    cut = {row["frame"] for row in of_file(rows, "cut.mkv") if row["error"] is None}
    assert cut == set(range(len(cut)))
    assert 0 < len(cut) < 40
    assert any("bad.mp4: not a readable video" in line for line in lines)


def test_images_model_and_results_behind_urls(run, model, here):
    with object_store() as url:
        write_image(here / "a.png", 0)
        write_image(here / "b.jpg", 1)
        write_video(here / "c.mp4", [0, 100])
        for name, to in (("a.png", "set/a.png"), ("b.jpg", "set/sub/b.jpg"), ("c.mp4", "clips/c.mp4")):
            place = locate(url.format(to))
            place.write((here / name).read_bytes())
        locate(url.format("run/model.pt")).write((run / "model.pt").read_bytes())
        (here / "bad.png").touch()
        code, _ = predicting(url.format("run"), url.format("set/"), url.format("clips/*.mp4"), "bad.png",
                             out=url.format("out"))  # fmt: skip
        assert code == 1
        out = locate(url.format("out"))
        assert set(out.list()) - {""} == {"detections.json", "detections.parquet", "images.json", "overlays"}
        (here / "rows.parquet").write_bytes((out / "detections.parquet").read())
        rows = pq.read_table(here / "rows.parquet").to_pylist()
        for name, file in (("a.png", "a.png"), ("sub/b.jpg", "b.jpg")):
            assert_same(of_file(rows, name), msrcnn.predict(model, here / file)[0])
            assert (out / "overlays" / name).size() > 1000
        assert {row["frame"] for row in of_file(rows, "c.mp4")} == {0, 1}
        assert (out / "overlays" / "c.mp4").size() > 1000
        assert "word" not in json.dumps([row["path"] for row in rows])
        assert of_file(rows, "a.png")[0]["path"].startswith("s3://bucket/set/a.png")
