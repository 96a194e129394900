"""Shard rows through the network to detection rows, in one thread or with the pasting of masks in another."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray.data
import torch
from PIL import Image

import pipelines.inference as inference
from msrcnn.detection_rows import detection_rows
from msrcnn.errors import InputError
from msrcnn.prediction import predict
from msrcnn.rows import ImageTruth
from msrcnn.structures import Batch
from msrcnn.weights import Checkpoint
from pipelines.inference import detected_rows
from pipelines.job_rows import job_rows
from pipelines.schema import DETECTION_ROW, SHARD_ROW
from tests.predicting import CATEGORIES
from tests.stored_scenes import truth_row
from tests.tiny import DATA, SIDE, make_model, shape_image

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
BROKEN = 3


@pytest.fixture(scope="module")
def model():
    return make_model(sure=True).eval()


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """Seven images, one of which cannot be decoded."""
    rows = []
    for number in range(7):
        image, truth = shape_image(number)
        rows.append(truth_row(truth, image[:50] if number == BROKEN else image))
    return pa.Table.from_pylist(rows, SHARD_ROW)


@pytest.mark.parametrize("batch", [1, 2, 7, 8])
def test_rows_are_the_same_and_in_order_whoever_pastes(model, table, batch):
    threads = threading.active_count()
    rows = list(detected_rows(model, DATA, CPU, batch, table))
    assert list(detected_rows(model, DATA, CPU, batch, table, beside=True)) == rows
    assert list(dict.fromkeys(row["image_id"] for row in rows)) == list(range(7))
    assert [row["image_id"] for row in rows if "error" in row] == [BROKEN]
    assert len(pa.Table.from_pylist(rows, DETECTION_ROW)) > 20
    assert threading.active_count() == threads


def test_in_bfloat16_as_predict_finds_them(model, table):
    rows = list(detected_rows(model, DATA, CPU, 2, table, precision="bfloat16"))
    assert rows != list(detected_rows(model, DATA, CPU, 2, table))
    checkpoint = Checkpoint(model, DATA, CATEGORIES, "bfloat16")
    for number in set(range(7)) - {BROKEN}:
        (wanted,) = predict(checkpoint, shape_image(number)[0])
        scores = sorted((row["mask_score"] for row in rows if row["image_id"] == number), reverse=True)
        assert len(scores) > 3
        assert scores == pytest.approx(wanted.mask_scores, abs=0.02)  # a batch's sums are rounded otherwise


def test_masks_are_pasted_while_the_network_is_at_the_next_images(model, table, monkeypatch):
    """The first pasting ends only when the network has the second batch: one after the other, it never would."""
    at_second, steps = threading.Event(), []

    def network(batch: Any) -> Any:
        steps.append(len(batch.image_ids))
        if len(steps) == 2:
            at_second.set()
        return model(batch)

    def paste(*of: Any) -> list[list[dict[str, Any]]]:
        assert at_second.wait(20)
        return detection_rows(*of)

    expected = list(detected_rows(model, DATA, CPU, 2, table))
    monkeypatch.setattr(inference, "detection_rows", paste)
    found = detected_rows(network, DATA, CPU, 2, table, beside=True)
    rows = [next(found)]
    assert len(steps) == 2  # no more than one batch in flight
    assert [*rows, *found] == expected


@pytest.mark.parametrize("beside", [False, True])
def test_what_fails_in_pasting_is_raised_and_nothing_runs_on(model, table, monkeypatch, beside):
    def paste(batch: Any, *of: Any) -> list[list[dict[str, Any]]]:
        if 4 in batch.image_ids:
            raise RuntimeError("pasting failed")
        return detection_rows(batch, *of)

    threads, done = threading.active_count(), []
    monkeypatch.setattr(inference, "detection_rows", paste)
    with pytest.raises(RuntimeError, match="pasting failed"):
        done.extend(row["image_id"] for row in detected_rows(model, DATA, CPU, 2, table, beside))
    assert threading.active_count() == threads

    rows = detected_rows(model, DATA, CPU, 2, table, beside)
    assert next(rows)["image_id"] == 0
    rows.close()
    assert threading.active_count() == threads


@pytest.mark.parametrize("beside", [False, True])
def test_an_image_does_not_depend_on_its_neighbours(beside):
    """Landscape and portrait in turn: as `predict` finds them alone, in their order, with GroupNorm over each."""
    data = replace(DATA, short_side=SIDE * 2 // 3)
    rows, expected = [], []
    model = Checkpoint(make_model(sure=True).eval(), data, CATEGORIES)
    for number in range(5):
        image = Image.open(io.BytesIO(shape_image(number)[0])).convert("RGB")
        image = image.crop((0, 0, SIDE, SIDE // 2) if number % 2 == 0 else (0, 0, SIDE // 2, SIDE))
        file = io.BytesIO()
        image.save(file, "PNG")
        rows.append(truth_row(ImageTruth.unknown(number, image.height, image.width), file.getvalue()))
        expected += predict(model, image)
    shapes = []

    def network(batch: Batch) -> Any:
        shapes.append(tuple(batch.images.shape))
        return model.model(batch)

    table = pa.Table.from_pylist(rows, SHARD_ROW)
    found = list(detected_rows(network, data, CPU, 4, table, beside))  # type: ignore[arg-type]
    assert shapes == [(3, 3, 64, 96), (2, 3, 96, 64)]
    assert list(dict.fromkeys(row["image_id"] for row in found)) == list(range(5))
    for number, wanted in enumerate(expected):
        of_image = sorted((r for r in found if r["image_id"] == number), key=lambda r: -r["mask_score"])
        assert len(of_image) == len(wanted) > 3
        assert [r["mask_score"] for r in of_image] == pytest.approx(wanted.mask_scores, abs=1e-5)
        assert np.array([r["bbox"] for r in of_image]) == pytest.approx(wanted.boxes, abs=1e-3)
        assert sum(r["rle"] == rle for r, rle in zip(of_image, wanted.rles, strict=True)) >= len(wanted) - 1


def out_of_memory(_: Any) -> Any:
    """A network as PyTorch ends it on a GPU that is too small."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize(("batch", "says"), [
    (4, "the GPU's memory does not suffice for steps of 4 images of up to 96 x 96 pixels; evaluate or predict with a "
        "smaller --batch"),
    (1, "steps of 1 image of up to 96 x 96 pixels; end what else uses it, or use another"),
])  # fmt: skip
def test_too_little_memory_is_a_line_and_no_bad_image(table, beside, batch, says):
    with pytest.raises(InputError, match=re.escape(says)):
        list(detected_rows(out_of_memory, DATA, CPU, batch, table, beside))


@pytest.mark.ray
def test_too_little_memory_of_a_process_is_a_line(ray_session, table):  # noqa: ARG001
    def detect(rows: pa.Table) -> pa.Table:
        return pa.Table.from_pylist(list(detected_rows(out_of_memory, DATA, CPU, 4, rows)), DETECTION_ROW)

    job = ray.data.from_arrow(table).map_batches(detect, batch_size=None, batch_format="pyarrow")
    with pytest.raises(
        InputError, match=r"4 images of up to 96 x 96 pixels; evaluate or predict with a smaller --batch$"
    ):
        list(job_rows(job))
