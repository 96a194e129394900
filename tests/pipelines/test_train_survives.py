"""Killed anywhere at any moment, a training goes on and ends with the weights it would have had.

Real processes on this machine: the command, its Ray, clusters of several nodes.
"""

import random
import time

import pytest

from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from tests.training_runs import Training, assert_each_once, assert_same_weights

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
    """Seconds after the first step at which something is killed: anywhere in the run."""
    return random.Random(seed).uniform(0.1, 0.95) * seconds


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_worker_is_killed(undisturbed, shards, tmp_path, seed):
    want, seconds = undisturbed
    training = Training(tmp_path, shards, OPTIONS)
    training.start()
    training.wait_for("workers begin at step 0")
    time.sleep(moment(seed, seconds))
    assert training.kill_worker(seed)
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
