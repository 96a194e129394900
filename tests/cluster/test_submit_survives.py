"""From a laptop to a cluster and back: sharding, training, evaluation and a sweep as jobs, while nodes vanish.

`ray start` by hand with a token, a head without work and two nodes; a real MLflow server; the submitter knows
nothing but the address and the token. The secrets that the nodes have are searched for wherever others can look.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient

from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from tests.by_hand import ByHand, private_mounts
from tests.mlflow_server import Server
from tests.submitting import Laptop, Submitting
from tests.training_runs import records

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SECRETS = {"MLFLOW_TRACKING_USERNAME": "somebody", "MLFLOW_TRACKING_PASSWORD": "hunter2-of-mlflow",
           "AWS_SECRET_ACCESS_KEY": "hunter2-of-the-bucket"}  # fmt: skip
SMALL = ["--preset", "demo", "--threads", "1", "--model.channels", "32", "--model.hidden", "64",
         "--data.short-side", "64", "--data.long-side", "64", "--solver.warmup-steps", "4"]  # fmt: skip


@dataclass
class Place:
    """All that the tests share."""

    cluster: ByHand
    laptop: Laptop
    shared: Path
    server: Server
    session: Path

    def path(self, name: str) -> str:
        """On the storage that all nodes see."""
        return str(self.shared / name)

    def renew(self, name: str, cpus: int) -> None:
        if name not in self.cluster.nodes:
            self.cluster.add(name, cpus)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    if not private_mounts():
        pytest.skip("this machine does not let a process have mounts of its own (unshare --mount)")
    folder = tmp_path_factory.mktemp("place")
    (folder / "laptop").mkdir()
    write_shapes(ShapesConfig(train=48, val=12, size=64), folder / "shared" / "images")
    session = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: sockets lie in it
    server = Server(folder).start()
    environment = {**SECRETS, "MLFLOW_TRACKING_URI": server.address}
    try:
        with ByHand(folder / "cluster", environment, session=session) as cluster:
            cluster.add("a", 3)
            cluster.add("b", 2)
            yield Place(cluster, Laptop(folder / "laptop", cluster), folder / "shared", server, session)
    finally:
        server.kill()
        shutil.rmtree(session, ignore_errors=True)


@pytest.fixture(scope="module")
def shards(place) -> dict[str, str]:
    """Training and validation shards, made by jobs."""
    for split in ("train", "val"):
        done = place.laptop.run(
            "submit", "shard", "--annotations", place.path(f"images/annotations/instances_{split}.json"), "--images",
            place.path(f"images/{split}"), "--out", place.path(f"shards/{split}"), "--row-group", "4",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return {"train": place.path("shards/train"), "val": place.path("shards/val")}


@pytest.fixture(scope="module")
def trained(place, shards, tmp_path_factory) -> str:
    """The run of a training during which a node vanished."""
    run = place.path("runs/first")
    training = Submitting(tmp_path_factory.mktemp("training"), place.laptop, [
        "train", "--shards", shards["train"], "--run", run, *SMALL, "--solver.epochs", "10", "--solver.lr", "0.04",
        "--workers", "1:2", "--cpus", "2", "--checkpoint-minutes", "0.05",  # a worker on each node
    ])  # fmt: skip
    training.start()
    training.wait_long(r"epoch +\d\.\d+ +step")
    place.cluster.kill("b")
    assert training.finish(1200) == 0, training.log()[-4000:]
    log = training.log()
    assert re.search(r"job train-first-\w{6} submitted", log)
    assert re.search(r"trained in .*model.pt", log)
    assert re.search(r"job train-first-\w{6} succeeded", log)
    assert len(re.findall(r"^(\d+ workers begin|begins) at step", log, re.MULTILINE)) >= 2, log[-4000:]
    return run


def test_a_training_outlives_a_node_and_its_model_is_registered(place, trained):
    steps = [record["step"] for record in records(trained) if "loss/total" in record]
    assert steps == sorted({*steps})
    assert steps[-1] == 12 * 10
    record = json.loads((Path(trained) / "run.json").read_text())
    client = MlflowClient(place.server.address)
    run = client.get_run(record["mlflow_run"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["git_commit"]  # of the sources that went along
    (version,) = client.search_model_versions("name='msrcnn'")
    assert version.run_id == record["mlflow_run"]


def test_an_evaluation_outlives_a_node(place, trained, shards, tmp_path):
    place.renew("b", 2)
    out = place.path("evaluation")
    evaluation = Submitting(tmp_path, place.laptop, [
        "evaluate", "--model", trained, "--shards", shards["val"], "--out", out, "--actors", "2", "--bootstrap", "10",
        "--no-figures",
    ])  # fmt: skip
    evaluation.start()
    evaluation.wait_long(r"detecting on")
    place.cluster.kill("b")
    assert evaluation.finish(900) == 0, evaluation.log()[-4000:]
    assert re.search(r"job evaluate-evaluation-\w{6} succeeded", evaluation.log())
    summary = json.loads((Path(out) / "summary.json").read_text())
    assert (summary["images"]["total"], summary["images"]["failed"]) == (12, 0)
    run = json.loads((Path(trained) / "run.json").read_text())["mlflow_run"]
    assert any(key.endswith("AP") for key in MlflowClient(place.server.address).get_run(run).data.metrics)


def test_a_sweep_of_a_space_of_this_machine_outlives_a_node(place, shards, tmp_path):
    place.renew("b", 2)
    (place.laptop.folder / "mine.toml").write_text(
        'title = "Mine"\ncolumns = ["AP"]\n[vary]\nsolver.lr = [0.02, 0.04]\n'
    )
    out = place.path("sweeps/mine")
    sweep = Submitting(tmp_path, place.laptop, [
        "sweep", "mine.toml", "--shards", shards["train"], "--validation", shards["val"], "--out", out, *SMALL,
        "--solver.epochs", "1",
    ])  # fmt: skip
    sweep.start()
    sweep.wait_long(r"2 trials")
    place.cluster.wait_until(lambda: any(Path(out).glob("runs/*/metrics.jsonl")), "a trial trains")
    place.cluster.kill("b")
    assert sweep.finish(1200) == 0, sweep.log()[-4000:]
    assert re.search(r"job sweep-mine-\w{6} succeeded", sweep.log())
    assert len(list((Path(out) / "results").glob("*.json"))) == 2
    parent = json.loads((Path(out) / ".sweep.json").read_text())["mlflow_run"]
    client = MlflowClient(place.server.address)
    children = client.search_runs([client.get_run(parent).info.experiment_id], f"tags.mlflow.parentRunId = '{parent}'")
    assert sorted(run.info.status for run in children) == ["FINISHED", "FINISHED"]


def test_no_secret_can_be_read_where_others_look(place, trained):
    """Lists of jobs by Ray's own command and ours, all logs of all nodes, all that MLflow holds, the run directory."""
    environment = place.laptop.environment | {"RAY_AUTH_MODE": "token"}
    ray = [str(Path(sys.executable).parent / "ray"), "job", "list", "--address", place.cluster.address]
    listed = subprocess.run(ray, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert "train-first" in listed
    texts = {"ray job list": listed, "msrcnn jobs": place.laptop.run("jobs", "--all").stdout}
    folders = [place.session, place.cluster.folder, Path(trained), place.server.folder / "artifacts"]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    files += place.server.folder.glob("server.*")
    assert any("job-driver-train-first" in path.name for path in files)
    assert len(files) > 100
    found = {name for name, text in texts.items() if "hunter2" in text}
    found |= {str(path) for path in files if b"hunter2" in path.read_bytes()}
    assert not found
