"""Killed anywhere at any moment, a training goes on and ends with the weights it would have had.

Real processes on this machine: the command, its Ray, clusters of several nodes.
"""

import json
import random
import re
import time
from itertools import groupby

import pytest
from mlflow import MlflowClient

from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from pipelines.checkpoint_list import next_step
from pipelines.storage import locate
from tests.clusters import nodes
from tests.mlflow_server import Server
from tests.training_runs import CONTROLLER, MAILBOX, WORKER, Training, assert_each_once, assert_same_weights

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMAGES, BATCH, EPOCHS = 82, 4, 2
STEPS = IMAGES // BATCH * EPOCHS
OPTIONS = ["--workers", "2", "--solver.epochs", str(EPOCHS), "--checkpoint-minutes", "0.03"]
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def shards(tmp_path_factory, ray_session):  # noqa: ARG001
    from pipelines.shard import ShardConfig, shard

    folder = tmp_path_factory.mktemp("shapes")
    write_shapes(ShapesConfig(train=IMAGES, val=1, size=64), folder)
    shard(ShardConfig(folder / "annotations" / "instances_train.json", folder / "train", folder / "shards",
                      row_group=8), log=lambda _: None)  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="module")
def undisturbed(shards, tmp_path_factory):
    """A whole run, and how many seconds its steps took."""
    training = Training(tmp_path_factory.mktemp("undisturbed"), shards, OPTIONS)
    training.start()
    training.wait_for("workers begin at step 0")
    began = time.monotonic()
    training.wait_for(f"step {STEPS}/{STEPS}")
    seconds = time.monotonic() - began
    assert training.finish() == 0
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)
    return training, seconds


def moment(seed: int, seconds: float) -> float:
    """Seconds after the first step at which something is killed; not in the last third, where a run that is faster than
    the undisturbed one may have ended."""
    return random.Random(seed).uniform(0.1, 0.65) * seconds


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_worker_is_killed(undisturbed, shards, tmp_path, seed):
    want, seconds = undisturbed
    training = Training(tmp_path, shards, OPTIONS)
    training.start()
    training.wait_for("workers begin at step 0")
    time.sleep(moment(seed, seconds))
    assert training.kill_process(WORKER, seed)
    assert training.finish() == 0
    assert len(training.log().split("workers begin at step")) >= 3
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)
    assert_same_weights(training, want, TOLERANCE)


@pytest.mark.parametrize("seed", [4, 5, 6])
def test_the_driver_is_killed_and_the_same_command_run_again(undisturbed, shards, tmp_path, seed):
    want, seconds = undisturbed
    training = Training(tmp_path, shards, OPTIONS)
    training.start()
    training.wait_for("workers begin at step 0")
    time.sleep(moment(seed, seconds))
    training.kill_driver()
    training.start()
    assert training.finish() == 0
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)
    assert_same_weights(training, want, TOLERANCE)


@pytest.mark.parametrize("title", [CONTROLLER, MAILBOX])
def test_a_process_of_ray_train_or_of_ours_is_killed(undisturbed, shards, tmp_path, title):
    """What replaces workers, and what carries what they tell: the command starts anew around them."""
    want, seconds = undisturbed
    training = Training(tmp_path, shards, OPTIONS)
    training.start()
    training.wait_for("workers begin at step 0")
    time.sleep(moment(10, seconds))
    assert training.kill_process(title)
    assert training.finish() == 0
    assert "Ray Train is started again" in training.log()
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)
    assert_same_weights(training, want, TOLERANCE)


def test_a_worker_is_killed_while_the_workers_start(undisturbed, shards, tmp_path):
    want, _ = undisturbed
    training = Training(tmp_path, shards, OPTIONS)
    training.start()
    killed, deadline = 0, time.monotonic() + 200
    while killed < 2 and "workers begin" not in training.log() and time.monotonic() < deadline:
        if training.kill_process(WORKER):
            killed += 1
            time.sleep(5 if killed == 1 else 0)  # the first as it comes up, another a little later
        time.sleep(0.2)
    assert killed
    assert training.finish() == 0
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)
    assert_same_weights(training, want, TOLERANCE)


@pytest.mark.parametrize(("before", "after"), [("2", "1"), ("1", "3")])
def test_another_number_of_workers_goes_on_inside_the_epoch(shards, tmp_path, before, after):
    """Killed between two checkpoints of an epoch; a new process goes on with fewer or more workers."""
    options = [*OPTIONS[2:], "--cpus", "0.4"]
    training = Training(tmp_path, shards, ["--workers", before, *options])
    training.start()
    training.wait_for(r"step \d+/")
    deadline = time.monotonic() + 120
    while next_step(locate(training.run)) == 0 and time.monotonic() < deadline:
        time.sleep(0.02)
    training.kill_all()
    training.options = ["--workers", after, *options]
    training.start()
    assert training.finish() == 0
    begun = [int(step) for step in re.findall(r"begins? at step (\d+)", training.log())]
    assert begun[0] == 0
    assert begun[1] % (STEPS // EPOCHS) > 0, "the second did not begin inside an epoch"
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)


@pytest.mark.parametrize("seed", [7, 8, 9])
def test_a_node_is_killed(undisturbed, shards, tmp_path, seed):
    """A machine with a worker vanishes, another takes its place."""
    want, seconds = undisturbed
    with nodes(2, 2) as (cluster, machines):
        training = Training(tmp_path, shards, [*OPTIONS, "--address", cluster.address, "--cpus", "1.5"])
        training.start()
        training.wait_for("workers begin at step 0")
        time.sleep(moment(seed, seconds))
        cluster.remove_node(machines[seed % 2], allow_graceful=False)
        cluster.add_node(num_cpus=2)
        assert training.finish() == 0
    assert len(training.log().split("workers begin at step")) >= 3
    assert_each_once(training, EPOCHS, IMAGES // BATCH * BATCH)
    assert_same_weights(training, want, TOLERANCE)


def test_workers_follow_the_nodes(shards, tmp_path):
    """Two workers, then one since a node is gone, then two again since one came."""
    epochs = 24
    options = ["--workers", "1:2", "--cpus", "1.5", "--solver.epochs", str(epochs), "--checkpoint-minutes", "0.1"]
    with nodes(2, 2) as (cluster, machines):
        training = Training(tmp_path, shards, [*options, "--address", cluster.address])
        training.start()
        training.wait_for("2 workers begin at step 0")
        training.wait_for(r"step \d+/", times=2)
        cluster.remove_node(machines[1], allow_graceful=False)
        training.wait_for(r"\bbegins at step \d+")
        cluster.add_node(num_cpus=2)
        training.wait_for("2 workers begin at step [1-9]")
        assert training.finish() == 0
    assert_each_once(training, epochs, IMAGES // BATCH * BATCH)
    workers = [record["workers"] for record in training.records()]
    assert [number for number, _ in groupby(workers)] == [2, 1, 2]


def test_a_tracking_server_goes_and_comes_back(shards, tmp_path):
    """Killed in the middle and started again: no step waits for it, and at the end it has what metrics.jsonl has."""
    server = Server(tmp_path).start()
    training = Training(tmp_path / "training", shards, ["--solver.epochs", "8"], tracking=server.address)
    try:
        training.start()
        training.wait_for(r"step \d+/", times=2)
        server.kill()
        training.wait_for("does not answer")
        told = len(re.findall(r"step \d+/", training.log()))
        training.wait_for(r"step \d+/", times=told + 2)
        server.start()
        assert training.finish() == 0
        run = json.loads((training.run / "run.json").read_text())["mlflow_run"]
        client = MlflowClient(server.address)
        records = training.records()
        assert len(records) == 8
        assert max(record["telling_milliseconds_a_step"] for record in records) <= 20
        for name in records[0]:
            if name not in ("step", "time"):
                stored = sorted((m.step, m.value) for m in client.get_metric_history(run, name))
                assert stored == [(record["step"], record[name]) for record in records], name
        assert client.get_run(run).info.status == "FINISHED"
        assert [version.run_id for version in client.search_model_versions("name = 'msrcnn'")] == [run]
    finally:
        server.kill()
