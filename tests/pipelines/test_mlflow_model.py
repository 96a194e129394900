"""A model logged to MLflow, loaded elsewhere by its name, gives what the detector gives."""

from __future__ import annotations

import ast
import json
import os
import pickletools
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient

from msrcnn.data.batching import make_batch
from msrcnn.errors import InputError
from msrcnn.masks import paste_and_encode
from msrcnn.rows import ImageTruth
from msrcnn.weights import save_model
from pipelines.mlflow_model import CODE, REQUIREMENTS, log_model
from pipelines.options import TrainConfig
from pipelines.served_model import TYPES
from pipelines.storage import locate, sha256_of
from pipelines.tracking import Tracker
from pipelines.train import hand_over
from tests.mlflow_server import Server
from tests.predicting import CATEGORIES
from tests.serving import turned_jpeg
from tests.tiny import DATA, SIDE, detections_of, make_model, shape_image

IMPORTS = {"pillow": "PIL"}
"""Where a package's name and that of its module differ."""
ELSEWHERE = """
import json, struct, sys, zlib
from pathlib import Path

sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]  # this project
import mlflow
import pandas as pd
import torch

torch.set_num_threads(1)
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/shapes/1")
import msrcnn

images = [Path(name).read_bytes() for name in sys.argv[2:]]
found = model.predict(pd.DataFrame({"image": images}))
none = model.predict(pd.DataFrame({"image": pd.Series([], dtype=object)}))
header = b"IHDR" + struct.pack(">II", 100000, 100000) + images[0][24:29]
huge = images[0][:12] + header + struct.pack(">I", zlib.crc32(header)) + images[0][33:]
errors = []
for wrong in (b"no image", images[0][:100], huge, "text"):
    try:
        model.predict(pd.DataFrame({"image": [images[0], wrong]}))
    except Exception as error:
        errors.append(str(error))
print(json.dumps({
    "code": msrcnn.__file__, "ours": [name for name in sys.modules if name.partition(".")[0] == "msrcnn"],
    "ray": "ray" in sys.modules, "pipelines": "pipelines" in sys.modules, "errors": errors,
    "rows": found.to_dict("records"), "none": [len(none), list(none.columns)],
}))
"""


@pytest.fixture(params=["database", "server"])
def address(request, tmp_path):
    """A SQLite file, or a server over one."""
    if request.param == "database":
        yield f"sqlite:///{tmp_path}/kept/mlflow.db"
        return
    server = Server(tmp_path).start()
    yield server.address
    server.kill()


def imported(modules: list[str]) -> set[str]:
    """Top-level names of all that these modules and the served model's own code import."""
    sources = [CODE, *(Path(str(find_spec(name).origin)) for name in modules)]
    names = set()
    for node in (node for source in sources for node in ast.walk(ast.parse(source.read_text()))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).partition(".")[0])
    return names


def expected_rows(model: torch.nn.Module, position: int, data: bytes, height: int, width: int) -> list[dict]:
    """What the detector itself finds in an image, as the served model should say it."""
    nothing = np.zeros(0)
    truth = ImageTruth(0, height, width, nothing, nothing, np.zeros((0, 4)), nothing, nothing, [])
    batch = make_batch([data], [truth], DATA)
    found = detections_of(model, batch)
    scale = batch.sizes[0] / batch.image_sizes[0]
    rows = []
    for slot in found.valid[0].nonzero().flatten().tolist():
        x0, y0, x1, y1 = (found.boxes[0, slot] / torch.stack([scale[1], scale[0]] * 2)).tolist()
        box = [min(x0, width), min(y0, height), min(x1, width), min(y1, height)]
        _, source, name = CATEGORIES[int(found.labels[0, slot]) - 1]
        score, maskiou, worth = (float(v[0, slot]) for v in (found.class_scores, found.maskious, found.worths))
        rle = paste_and_encode(found.masks[0, slot][None], torch.tensor([box]), height, width)[0].decode()
        values = (position, source, name, *box, score, maskiou, worth, score * worth, height, width, rle)
        rows.append(dict(zip(TYPES, values, strict=True)))
    return sorted(rows, key=lambda row: -row["mask_score"])


@pytest.mark.slow  # `test_served_model` is quicker
@pytest.mark.usefixtures("one_thread")
def test_a_logged_model_gives_elsewhere_what_the_detector_gives(address, tmp_path):
    model = make_model(sure=True)
    save_model(tmp_path / "model.pt", model, DATA, CATEGORIES)
    images = [tmp_path / "upright.png", tmp_path / "turned.jpg"]
    images[0].write_bytes(shape_image(0)[0])
    images[1].write_bytes(turned_jpeg())
    before = mlflow.get_tracking_uri()
    tracker = Tracker(address, "study")

    assert log_model(tracker, tmp_path / "model.pt", "detector", "shapes") == "models:/shapes/1"
    assert log_model(tracker, tmp_path / "model.pt", "detector", "shapes") == "models:/shapes/1"
    assert (mlflow.get_tracking_uri(), mlflow.active_run()) == (before, None)
    client = MlflowClient(address)
    logged = client.search_logged_models([client.get_run(tracker.run_id).info.experiment_id])
    assert [(m.name, m.source_run_id, m.status) for m in logged] == [("detector", tracker.run_id, "READY")]
    assert [o.model_id for o in client.get_run(tracker.run_id).outputs.model_outputs] == [logged[0].model_id]

    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, address, *map(str, images)],
        capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["code"]).parts[-3:] == ("code", "msrcnn", "__init__.py")  # the copy that the model came with
    assert (said["ray"], said["pipelines"]) == (False, False)
    assert imported(said["ours"]) - sys.stdlib_module_names - {"msrcnn"} <= {IMPORTS.get(n, n) for n in REQUIREMENTS}
    assert said["none"] == [0, list(TYPES)]
    assert all("row 1 of the column 'image'" in error for error in said["errors"][:3])
    assert "100000 x 100000 pixels" in said["errors"][2]
    assert len(said["errors"]) == 4

    sizes = ((SIDE, SIDE), (64, SIDE))
    expected = [row for position, (path, size) in enumerate(zip(images, sizes, strict=True))
                for row in expected_rows(model, position, path.read_bytes(), *size)]  # fmt: skip
    assert {row["image"] for row in expected} == {0, 1}
    assert len(said["rows"]) == len(expected)
    for got, wanted in zip(said["rows"], expected, strict=True):
        assert list(got) == list(TYPES)
        numbers = [key for key, kind in TYPES.items() if kind == "float64"]
        assert [got[key] for key in numbers] == pytest.approx([wanted[key] for key in numbers], rel=1e-4, abs=1e-4)
        assert {k: v for k, v in got.items() if k not in numbers} == {
            k: v for k, v in wanted.items() if k not in numbers
        }


def test_nothing_in_a_logged_model_is_pickled(tmp_path):
    save_model(tmp_path / "model.pt", make_model(), DATA, CATEGORIES)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study")
    uri = log_model(tracker, tmp_path / "model.pt", "detector")
    folder = tmp_path / "mlartifacts" / "models" / uri.removeprefix("models:/") / "artifacts"
    files = [path for path in folder.rglob("*") if path.is_file()]
    weights = [
        path for path in files if path.suffix not in (".py", ".yaml", ".txt", ".typed") and path.name != "MLmodel"
    ]
    assert [path.relative_to(folder).as_posix() for path in weights] == ["artifacts/model.pt"]  # torch, weights only
    for path in set(files) - set(weights):
        path.read_bytes().decode("utf-8")
        with pytest.raises(ValueError):
            list(pickletools.genops(path.read_bytes()))
    assert {path.name for path in folder.iterdir()} == {
        "MLmodel", "artifacts", "code", "conda.yaml", "python_env.yaml", "requirements.txt", "served_model.py",
    }  # fmt: skip
    assert not list(folder.rglob("__pycache__"))
    assert f"torch=={torch.__version__.partition('+')[0]}" in (folder / "requirements.txt").read_text().splitlines()
    assert MlflowClient(tracker.address).search_registered_models() == []


def test_the_best_model_is_registered_beside_the_last(tmp_path):
    for file, model in (("model.pt", make_model()), ("best.pt", make_model(sure=True))):
        save_model(tmp_path / file, model, DATA, CATEGORIES)
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study")
    config = TrainConfig(shards="shards", run=tmp_path, register="shapes")
    for _ in range(2):  # the second time adds nothing
        hand_over(locate(tmp_path), tracker, config)
    client = MlflowClient(tracker.address)
    assert {model.name for model in client.search_registered_models()} == {"shapes", "shapes-best"}
    for registered, file in (("shapes", "model.pt"), ("shapes-best", "best.pt")):
        (version,) = client.search_model_versions(f"name = '{registered}'")
        (weights,) = Path(version.source.removeprefix("file://")).rglob("*.pt")
        assert sha256_of(weights) == sha256_of(tmp_path / file)


def test_a_model_that_is_not_there(tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study")
    with pytest.raises(InputError, match=r"absent\.pt: no such file"):
        log_model(tracker, tmp_path / "absent.pt", "detector", "shapes")
