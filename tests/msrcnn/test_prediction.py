"""`from msrcnn import load_model, predict`: what the detector gives, for anything that is an image."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from PIL import Image

import msrcnn
import msrcnn.detection_rows as detection_rows_module
from msrcnn import Prediction, load_model, predict
from msrcnn.data.batching import make_batch
from msrcnn.data.decoding import ImageError
from msrcnn.detection_rows import detection_rows
from msrcnn.errors import InputError
from msrcnn.masks import paste_and_encode
from msrcnn.prediction import predictions
from msrcnn.weights import Checkpoint, save_model
from tests.tiny import DATA, SIDE, batch_of, detections_of, losses_of, make_model, shape_image

CATEGORIES = ((1, 5, "disk"), (2, 7, "ring"), (3, 9, "star"))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    save_model(folder / "model.pt", make_model(sure=True), DATA, CATEGORIES)
    return load_model(folder)


def pixels(index: int = 0) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(shape_image(index)[0])).convert("RGB"))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def coco(found: Prediction) -> list[dict[str, Any]]:
    return [{"size": [found.height, found.width], "counts": rle} for rle in found.rles]


def same(one: Prediction, other: Prediction) -> bool:
    numbers = ("boxes", "category_ids", "class_scores", "maskious", "mask_scores")
    return (one.height, one.width, one.names, one.rles) == (other.height, other.width, other.names, other.rles) and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in numbers
    )


def test_the_detections_are_the_detectors(model):
    data, truth = shape_image(0)
    batch = make_batch([data], [truth], DATA)
    (rows,) = detection_rows(batch, detections_of(model.model, batch), [truth])
    rows.sort(key=lambda row: -row["mask_score"])

    (found,) = predict(model, data)

    assert len(found) == len(rows) > 5
    assert found.rles == tuple(row["rle"] for row in rows)
    assert found.boxes.tolist() == [pytest.approx(row["bbox"]) for row in rows]
    assert found.mask_scores == pytest.approx([row["class_score"] * row["maskiou"] for row in rows], rel=1e-6)
    assert [(i, n) for _, i, n in (CATEGORIES[row["category"] - 1] for row in rows)] == list(
        zip(found.category_ids.tolist(), found.names, strict=True)
    )


def test_every_form_of_an_image_gives_the_same(model, tmp_path):
    array = pixels()
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(array)))
    (expected,) = predict(model, array)
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), encoded(Image.fromarray(array)), Image.fromarray(array)]
    assert len(expected) > 0
    assert all(same(found, expected) for found in predict(model, forms))
    assert predict(model, forms)[1].image == str(tmp_path / "a.png")


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_an_image_does_not_depend_on_its_neighbours(model, batch):
    tall = Image.fromarray(pixels(1)).crop((0, 0, 48, SIDE))
    images = [pixels(0), tall, pixels(1), pixels(2), tall]
    together = predict(model, images, batch=batch)
    for one, image in zip(together, images, strict=True):
        (alone,) = predict(model, [image])
        assert (one.height, one.width, one.names) == (alone.height, alone.width, alone.names)
        assert one.mask_scores == pytest.approx(alone.mask_scores, abs=1e-5)
        if batch == 1:
            assert same(one, alone)


def test_bfloat16_finds_nearly_the_same():
    """A detector that has learnt its images: the same objects, boxes, masks and scores, in float32 after the layers."""
    network, batch = make_model(), batch_of("all", "all", "all")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for step in range(60):
        losses = losses_of(network, replace(batch, draws=batch.draws + step))
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimizer.step()
    model, images = Checkpoint(network.eval(), DATA, CATEGORIES), [pixels(k) for k in range(3)]
    kinds: list[torch.dtype] = []
    network.backbone.register_forward_hook(lambda _part, _given, maps: kinds.append(maps[0].dtype))
    whole, half = predict(model, images), predict(replace(model, precision="bfloat16"), images)
    assert kinds == [torch.float32] * 3 + [torch.bfloat16] * 3
    shares = []
    for one, other in zip(whole, half, strict=True):
        sure = one.above(0.3)
        overlap = coco_mask.iou(coco(sure), coco(other), [False] * len(other))  # [n, N]
        overlap = np.where(sure.category_ids[:, None] == other.category_ids, overlap, 0)
        best = overlap.argmax(1)
        shares += [*zip(overlap.max(1), np.abs(sure.mask_scores - other.mask_scores[best]), strict=True)]
        assert not np.array_equal(one.mask_scores, other.mask_scores)
        assert other.mask_scores.dtype == other.boxes.dtype == np.float32
    overlaps, errors = np.array(shares).T
    assert len(shares) >= 5
    assert overlaps.min() > 0.9  # 0.987 measured
    assert errors.max() < 0.05  # 0.005 measured


def test_grey_of_16_bits_transparency_and_cmyk(model):
    grey = pixels()[..., 0]
    (expected,) = predict(model, grey)
    deep = grey.astype(np.uint16) * 257
    assert same(predict(model, deep)[0], expected)
    assert same(predict(model, encoded(Image.fromarray(deep)))[0], expected)
    assert same(predict(model, (grey / 255).astype(np.float32))[0], expected)
    clear = Image.fromarray(pixels()).copy()
    clear.putalpha(0)
    assert same(predict(model, clear)[0], predict(model, pixels())[0])
    assert len(predict(model, encoded(Image.fromarray(pixels()).convert("CMYK"), "JPEG"))[0]) > 0


def test_exif_turns_files_and_pillow_images_alike(model):
    image = Image.fromarray(pixels()).crop((0, 0, SIDE, 64))
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(image.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
    (expected,) = predict(model, image)
    assert (expected.height, expected.width) == (64, SIDE)
    assert same(predict(model, data)[0], expected)
    assert same(predict(model, Image.open(io.BytesIO(data)))[0], expected)


def test_masks_polygons_and_coco_are_the_same_masks(model):
    (found,) = predict(model, pixels())
    masks = found.masks()
    assert masks.shape == (len(found), SIDE, SIDE)
    size = [SIDE, SIDE]
    decoded = coco_mask.decode([{"size": size, "counts": rle} for rle in found.rles])  # [H, W, N]
    assert np.array_equal(masks, decoded.transpose(2, 0, 1))
    for mask, rings in zip(masks, found.polygons(), strict=True):
        x, y = np.concatenate(rings).T if rings else (np.zeros(0), np.zeros(0))
        rows, columns = np.nonzero(mask)
        if len(rows):
            assert (x.min(), x.max(), y.min(), y.max()) == (
                columns.min(), columns.max() + 1, rows.min(), rows.max() + 1,
            )  # fmt: skip
    results = found.coco(17)
    assert [r["score"] for r in results] == sorted((r["score"] for r in results), reverse=True)
    assert {r["image_id"] for r in results} == {17}
    assert np.array_equal(coco_mask.decode([r["segmentation"] for r in results]), decoded)
    x, y, width, height = results[0]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(found.boxes[0].tolist())
    solid = [i for i, rings in enumerate(found.polygons()) if rings and len(rings) == 1]
    polygons = found.coco(17, polygons=True)
    for i in solid[:5]:
        drawn = coco_mask.decode(coco_mask.frPyObjects(polygons[i]["segmentation"], *size))[..., 0]
        assert np.array_equal(drawn, masks[i])


def test_a_threshold_of_the_mask_score(model):
    (found,) = predict(model, pixels())
    middle = float(np.median(found.mask_scores))
    (kept,) = predict(model, pixels(), min_score=middle)
    assert len(kept) == (found.mask_scores >= middle).sum() < len(found)
    assert kept.mask_scores.min() >= middle
    assert len(found.above(2.0)) == 0
    assert found.above(2.0).masks().shape == (0, SIDE, SIDE)
    assert found.above(2.0).coco(1) == found.above(2.0).polygons() == []


@pytest.mark.parametrize("batch", [1, 3])
def test_only_masks_of_that_score_are_pasted(model, batch, monkeypatch):
    images = [pixels(0), pixels(1), np.zeros((20, 30, 3), np.uint8)]
    whole = predict(model, images, batch=batch)
    scores = np.concatenate([found.mask_scores for found in whole])
    pasted: list[int] = []

    def counted(masks: torch.Tensor, *of: Any) -> list[bytes]:
        pasted.append(len(masks))
        return paste_and_encode(masks, *of)

    monkeypatch.setattr(detection_rows_module, "paste_and_encode", counted)
    middle = np.sort(scores)[len(scores) // 2]  # one of them, float32
    around = [np.nextafter(middle, np.float32(to)) for to in (1, -1)]
    for least in map(float, (middle, *around, np.nextafter(float(middle), 1), scores.max(), 1e30, -1e30)):
        pasted.clear()
        found = predict(model, images, min_score=least, batch=batch)
        assert all(same(one, all_of.above(least)) for one, all_of in zip(found, whole, strict=True))
        assert sum(pasted) == sum(map(len, found)) == (scores >= least).sum()
    assert len(scores) > 10


def test_one_bad_image_is_named_and_costs_no_other(model, tmp_path):
    good, cut = encoded(Image.fromarray(pixels())), encoded(Image.fromarray(pixels()))[:200]
    several = [good, cut, tmp_path / "absent.png", good, np.zeros((4, 4, 4), np.uint8), "no such file", torch.zeros(3)]
    found = list(predictions(model, several, names=["a", "b"], batch=3))
    assert [isinstance(one, ImageError) for one in found] == [False, True, True, False, True, True, True]
    assert same(found[0], found[3])
    assert [str(one).partition(":")[0] for one in found if isinstance(one, ImageError)] == [
        "b", str(tmp_path / "absent.png"), "image 4", "no such file", "image 6",
    ]  # fmt: skip
    assert "give uint8 [H, W, 3]" in str(found[4])
    (large,) = predictions(model, [good], most_pixels=SIDE * SIDE - 1)
    assert str(large).startswith(f"image 0: {SIDE} x {SIDE} pixels, at most {SIDE * SIDE - 1} are taken")
    with pytest.raises(InputError, match="image 1: not a readable image"):
        predict(model, [good, cut])
    assert predict(model, []) == []


def test_a_model_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"model\.pt: no such file"):
        load_model(tmp_path)


def test_importing_the_package_imports_no_torch():
    code = ("import sys; from msrcnn import InputError; print('torch' in sys.modules); "
            "from msrcnn import *; print('torch' in sys.modules, 'ray' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\nTrue False\n"
    with pytest.raises(
        AttributeError,
        match=r"it has Checkpoint, InferenceConfig, InputError, Prediction, .*load_model, predict",
    ):
        msrcnn.load  # noqa: B018


def test_the_package_exports_what_its_modules_have(model):
    assert (msrcnn.predictions, msrcnn.InputError) == (predictions, InputError)
    assert isinstance(model, msrcnn.Checkpoint)
    assert (Path(msrcnn.__file__).parent / "py.typed").is_file()


def test_a_prediction_of_nothing(model):
    (found,) = predict(replace(model, model=make_model().eval()), np.zeros((20, 30, 3), np.uint8), min_score=0.99)
    assert (len(found), found.boxes.shape, found.height, found.width) == (0, (0, 4), 20, 30)
