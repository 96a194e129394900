"""Evaluations whose processes die: the rows and numbers that are left are those of one that nothing disturbed."""

from __future__ import annotations

import re

import pytest

from tests.clusters import nodes, processes_of
from tests.evaluations import Evaluating, evaluation_of, write_model, write_shapes_shards

pytestmark = [pytest.mark.ray, pytest.mark.slow]

IMAGES, ROWS = 80, 2
PARTS = IMAGES // ROWS
ACTOR = "MapWorker"
"""In the title of an inference process."""


@pytest.fixture(scope="module")
def options(tmp_path_factory, ray_session):  # noqa: ARG001  the cluster must be up to shard
    folder = tmp_path_factory.mktemp("killed")
    shards = write_shapes_shards(folder, IMAGES, ROWS)
    write_model(folder / "model.pt", shards)
    return ["--model", str(folder / "model.pt"), "--shards", str(shards), "--batch", "2", "--bootstrap", "20"]


@pytest.fixture(scope="module")
def undisturbed(options, tmp_path_factory):
    command = Evaluating(tmp_path_factory.mktemp("undisturbed"), options)
    command.start()
    assert command.finish() == 0
    return evaluation_of(command.out)


def check(command: Evaluating, undisturbed) -> None:
    ours = evaluation_of(command.out)
    assert len(command.parts()) == PARTS
    assert sorted({row["image_id"] for row in ours.rows}) == sorted({row["image_id"] for row in undisturbed.rows})
    assert ours.rows == undisturbed.rows  # complete, none twice, to the last bit
    assert ours.summary == undisturbed.summary
    assert {path.name for path in command.out.iterdir()} >= {"detections", "summary.json"}
    assert not (command.out / ".unfinished").exists()


def test_a_killed_actor_costs_nothing(options, undisturbed, tmp_path):
    command = Evaluating(tmp_path / "run", options)
    command.start()
    command.wait_for_parts(4)
    assert command.kill_all(ACTOR) > 0
    assert len(command.parts()) < PARTS
    assert command.finish() == 0
    check(command, undisturbed)


def test_a_killed_node_costs_nothing(options, undisturbed, tmp_path):
    """A machine vanishes with its inference processes; the others do what it had not finished."""
    with nodes(1, 1) as (cluster, machines):
        command = Evaluating(tmp_path / "run", [*options, "--actors", "2", "--address", cluster.address])
        command.start()
        command.wait_for_parts(4)
        busy = [machine for machine in machines if processes_of(machine, ACTOR)]
        cluster.remove_node(busy[0], allow_graceful=False)
        assert len(command.parts()) < PARTS
        assert command.finish() == 0
    check(command, undisturbed)


def test_a_killed_driver_goes_on_where_it_was(options, undisturbed, tmp_path):
    """First the driver alone, whose Ray may outlive it for a moment; then everything at once."""
    command = Evaluating(tmp_path / "run", options)
    command.start()
    command.wait_for_parts(4)
    command.kill_driver()
    kept = len(command.parts())
    assert 4 <= kept < PARTS
    command.start()
    command.wait_for_parts(kept + 6)
    command.kill_all()
    assert len(command.parts()) < PARTS
    command.start()
    assert command.finish() == 0
    there = [int(n) for n in re.findall(rf"(\d+) of {PARTS} parts are there already", command.log())]
    assert len(there) == 2
    assert kept <= there[0] < there[1] < PARTS
    check(command, undisturbed)
