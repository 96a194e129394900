"""A model behind `mlflow models serve` answers as `predict` does, whoever else asks; a bad request is a 400."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from msrcnn import load_model, predict
from pipelines.mlflow_model import log_model
from pipelines.served_model import ServedModel
from pipelines.tracking import Tracker
from tests import serving
from tests.mlflow_server import model_server
from tests.predicting import write_model
from tests.serving import ask, huge_png, many, same
from tests.tiny import shape_image

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served")


@pytest.fixture(scope="module")
def model(folder):
    return write_model(folder / "model.pt")


@pytest.fixture(scope="module")
def logged(folder, model):
    """Where the model is: its URI and the tracking address."""
    tracking = f"sqlite:///{folder}/mlflow.db"
    return log_model(Tracker(tracking, "study"), model, "detector", "shapes"), tracking


@pytest.fixture(scope="module")
def url(folder, logged):
    with model_server(*logged, folder) as address:
        yield f"{address}/invocations"


@pytest.fixture(scope="module")
def in_process(model):
    served = ServedModel()
    served.load_context(SimpleNamespace(artifacts={"weights": str(model)}))
    return served


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def asked(images: list[bytes], **params: float) -> dict:
    return {"dataframe_split": {"columns": ["image"], "data": [[text(data)] for data in images]}, "params": params}


def sent(url: str, value: object) -> tuple[int, dict]:
    return ask(url, json.dumps(value).encode(), "application/json")


def by_image(rows: list[dict]) -> dict[int, list[dict]]:
    """The answer's detections as `same` takes them, by their image's position."""
    named = [row | {"box": [row[key] for key in ("x0", "y0", "x1", "y1")], "counts": row["rle"]} for row in rows]
    return {position: list(of) for position, of in groupby(named, lambda row: row["image"])}


def test_in_process_it_is_predict(model, in_process):
    files = serving.images()
    expected = predict(load_model(model), files)
    found = by_image(in_process.predict(None, pd.DataFrame({"image": files})).to_dict("records"))
    assert [*found] == [*range(len(files))]
    assert all(same(expected[position], rows) for position, rows in found.items())
    least = float(np.median(expected[0].mask_scores))
    fewer = in_process.predict(None, pd.DataFrame({"image": files[:1]}), {"min_score": least}).to_dict("records")
    assert 0 < len(fewer) < len(expected[0])
    assert same(expected[0].above(least), by_image(fewer)[0])


@pytest.mark.parametrize("wrong", ["/etc/passwd", Path("/etc/passwd"), 5, None, np.zeros((8, 8, 3), np.uint8)])
def test_what_is_not_bytes_is_no_image(in_process, wrong):
    """Neither is a path: no request reads a file."""
    images = pd.DataFrame({"image": pd.Series([shape_image(0)[0], wrong], dtype=object)})
    with pytest.raises(MlflowException, match=r"row 1 of the column 'image': a .*, expected the bytes") as caught:
        in_process.predict(None, images)
    assert caught.value.get_http_status_code() == 400


def test_a_hundred_at_once_get_what_predict_finds(model, url):
    files = serving.images()
    expected = predict(load_model(model), files)
    for place, (status, answer) in many(lambda data: sent(url, asked([data])), files):
        assert status == 200, answer
        assert same(expected[place], by_image(answer["predictions"])[0])


def test_other_forms_of_a_request(model, url):
    files = serving.images()[:2]
    first, second = predict(load_model(model), files)
    least = float(np.median(first.mask_scores))
    status, answer = sent(url, {"dataframe_records": [{"image": text(data)} for data in files]})
    assert status == 200, answer
    found = by_image(answer["predictions"])
    assert same(first, found[0])
    assert same(second, found[1])
    status, answer = sent(url, asked(files[:1], min_score=least))
    assert status == 200, answer
    assert same(first.above(least), by_image(answer["predictions"])[0])


IMAGE = shape_image(0)[0]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (asked([IMAGE, b"no image"]), "row 1 of the column 'image': not a readable image (no known image format)"),
        (asked([b""]), "row 0 of the column 'image': not a readable image (the file is empty"),
        (asked([IMAGE[:500]]), "row 0 of the column 'image': not a readable image (500 bytes"),
        (asked([huge_png(7072)]), "7072 x 7072 pixels, at most 50000000 are taken"),
        ({"dataframe_records": [{"image": "/etc/passwd"}]}, "Failed to convert column image"),
        ({"inputs": {"image": ["/etc/passwd"]}}, "row 0 of the column 'image': not a readable image"),
        ({"inputs": {"image": [text(IMAGE)]}}, "it is base64, which dataframe_split and dataframe_records take"),
        ({"dataframe_records": [{"image": None}]}, "Failed to convert column image"),
        ({"dataframe_records": [{"picture": text(IMAGE)}]}, "Model is missing inputs ['image']"),
        (asked([IMAGE], min_score="high"), "min_score"),
        (asked([IMAGE], min_score=float("nan")), "min_score = nan is not accepted; it must be a number"),
        ({"image": text(IMAGE)}, "exactly one of the input fields"),
        ([text(IMAGE)], "Received a list"),
    ],
)
def test_a_bad_request_is_a_400_and_says_why(url, value, says):
    status, answer = sent(url, value)
    assert status == 400, answer
    assert says in answer["message"].splitlines()[-1]
    assert "root:" not in json.dumps(answer)  # of a file that is there


@pytest.mark.slow
def test_many_images_in_a_batch(model, logged, folder):
    """`mlflow models predict`: a process that reads a file of images and ends."""
    files = serving.images()
    (folder / "asked.json").write_text(json.dumps(asked(files)))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    uri, tracking = logged
    done = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "predict", "--model-uri", uri, "--env-manager", "local",
         "--input-path", "asked.json", "--output-path", "answered.json", "--content-type", "json"],
        cwd=folder, env=environment | {"MLFLOW_TRACKING_URI": tracking, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = by_image(json.loads((folder / "answered.json").read_text())["predictions"])
    expected = predict(load_model(model), files)
    assert all(same(of, found[position]) for position, of in enumerate(expected))
