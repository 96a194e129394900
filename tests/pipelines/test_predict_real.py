"""`msrcnn predict` on photographs; needs MSRCNN_DATA."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from msrcnn.config import DataConfig
from msrcnn.prediction import predictions
from msrcnn.weights import load_model, save_model
from pipelines.predict import predict
from pipelines.predict_options import PredictConfig
from tests.predicting import assert_same, rows_of
from tests.tiny import CONFIG, make_model

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]


def test_every_validation_image_of_the_sample_gives_what_the_detector_finds(data_dir, tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    folder = data_dir / "coco_sample"
    truth = json.loads((folder / "annotations" / "instances_val2017.json").read_text())
    categories = [(number, c["id"], c["name"]) for number, c in enumerate(truth["categories"], start=1)]
    model = make_model(replace(CONFIG, num_classes=len(categories)), sure=True)
    save_model(tmp_path / "model.pt", model, DataConfig(160, 256), categories)
    out = tmp_path / "out"
    config = PredictConfig(tmp_path / "model.pt", (folder / "val2017",), out, min_score=0.02)
    assert predict(config) == 0

    rows = rows_of(out)
    paths = sorted((folder / "val2017").iterdir())
    assert len(paths) == 165
    assert [path.name for path in paths] == sorted(image["file_name"] for image in truth["images"])
    by_name: dict[str, list] = {}
    for row in rows:
        by_name.setdefault(row["file_name"], []).append(row)
    assert list(by_name) == [path.name for path in paths]
    for path, found in zip(paths, predictions(load_model(tmp_path / "model.pt"), paths), strict=True):
        assert_same(by_name[path.name], found.above(0.02))
        with Image.open(out / "overlays" / path.name) as drawn, Image.open(path) as image:
            assert drawn.size == image.size

    images = COCO(str(out / "images.json"))
    results = images.loadRes(str(out / "detections.json"))
    sizes = {image["file_name"]: (image["height"], image["width"]) for image in truth["images"]}
    assert {i["file_name"]: (i["height"], i["width"]) for i in images.imgs.values()} == sizes
    assert {c["id"]: c["name"] for c in images.cats.values()} == {i: name for _, i, name in categories}
    assert len(results.anns) == sum(row["category"] is not None for row in rows) > 165
    for result in list(results.anns.values())[::50]:
        mask = results.annToMask(result)
        image = images.imgs[result["image_id"]]
        assert mask.shape == (image["height"], image["width"])
        assert np.isclose(result["score"], result["class_score"] * result["maskiou"])
