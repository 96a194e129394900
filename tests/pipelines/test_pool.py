"""How many processes evaluate, by themselves and beside a training, on made-up nodes."""

from __future__ import annotations

import pytest

from cluster.room import fitting
from msrcnn.errors import InputError
from pipelines.pool import NodeRoom, Pool
from pipelines.reading import READER_CPUS, READERS

GPU_WORKER, CPU_WORKER = {"CPU": 0.9, "GPU": 1.0}, {"CPU": 0.45}


def node(cpus: float, gpus: float = 0, used: float = 0, used_gpus: float = 0) -> NodeRoom:
    """A node of which others use some."""
    have = {"CPU": float(cpus)} | ({"GPU": float(gpus)} if gpus else {})
    return NodeRoom(have, have | {"CPU": cpus - used} | ({"GPU": gpus - used_gpus} if gpus else {}))


def beside(nodes: list[NodeRoom], worker: dict[str, float], workers: int, groups: int = 1000) -> Pool:
    pool = Pool.beside(nodes, worker, workers, groups)
    assert pool is not None
    assert pool.least == 1  # it waits for no other
    return pool


@pytest.mark.parametrize(("gpus", "cpus"), [(1, 16), (8, 64), (8, 8), (8, 4), (1, 1)])
@pytest.mark.parametrize("actors", [0, 8])
def test_processes_with_gpus_leave_readers_a_place(monkeypatch, gpus: int, cpus: int, actors: int) -> None:
    """Else all of them wait for rows for ever, and the readers for a CPU."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": float(gpus), "CPU": float(cpus)})
    found = Pool.of_cluster(actors, gpu=True, groups=1000)
    assert (found.most, found.least, found.gpus) == (gpus, gpus if actors else 1, 1.0)
    assert cpus - found.most * found.cpus > READERS * READER_CPUS - 1e-9
    assert 0 < found.cpus <= 0.8


@pytest.mark.parametrize(("gpu", "message"), [(True, "--gpu: the Ray cluster has no GPU"), (False, "has no CPU")])
def test_a_head_without_nodes_is_refused(monkeypatch, gpu: bool, message: str) -> None:
    """It has 0 CPUs; one process there would seem to work."""
    monkeypatch.setattr("ray.cluster_resources", lambda: {"memory": 1e9})
    with pytest.raises(InputError, match=message):
        Pool.of_cluster(0, gpu, 1000)


@pytest.mark.parametrize("running", [True, False])
def test_a_node_without_gpus_is_preferred_whether_or_not_workers_are_there(running: bool) -> None:
    """Of four nodes with a GPU and one without, processes take the latter's place; threads that decode keep theirs."""
    gpu = node(7, 1, 0.9, 1) if running else node(7, 1)
    pool = beside([gpu, gpu, node(7), gpu, gpu], GPU_WORKER, 4)
    assert (pool.most, pool.cpus, pool.gpus) == (8, 0.8, 0.0)


@pytest.mark.parametrize("running", [True, False])
def test_on_nodes_with_gpus_workers_and_their_loaders_keep_their_place(running: bool) -> None:
    nodes = [node(16, 2, 1.8, 2) if running else node(16, 2)] * 2
    pool = beside(nodes, GPU_WORKER, 4)
    assert pool.most == 2 * int((16 - 2 * (0.9 + 4) - 0.4) / 0.8) == 14
    assert pool.gpus == 0


def test_no_more_processes_than_row_groups() -> None:
    assert beside([node(64)] * 16, CPU_WORKER, 4, groups=2000).most == 16 * int(63.6 / 0.8)
    assert beside([node(64)] * 16, CPU_WORKER, 4, groups=79).most == 79
    assert beside([node(64, 8)] * 2, GPU_WORKER, 4, groups=3).most == 3


def test_free_gpus_are_used() -> None:
    pool = beside([node(32, 8, 3.6, 4), node(32, 8)], GPU_WORKER, 4)
    assert (pool.most, pool.cpus, pool.gpus) == (12, 1.0, 1.0)


@pytest.mark.parametrize("nodes", [2, 5])
def test_workers_find_their_place_again(nodes: int) -> None:
    """A group that has died holds nothing, but its places, which no two nodes can share, stay its own."""
    worker = {"CPU": 3.0}
    for workers in range(1, 2 * nodes + 1):
        pool = Pool.beside([node(7)] * nodes, worker, workers, 1000)
        assert pool is not None
        assert pool.avoids_gpus
        if pool.cpus == 0.8:
            whole, rest = divmod(pool.most, int(6.6 / 0.8))  # they fill one node after another
            filled = [8] * whole + [rest] * (whole < nodes)
            spread = [pool.most // nodes + (at < pool.most % nodes) for at in range(nodes)]  # or go to each in turn
            for on in (filled, spread):
                left = [{"CPU": 7 - 0.8 * (on[at] if at < len(on) else 0)} for at in range(nodes)]
                assert fitting(left, worker) >= workers
        assert pool.most >= (nodes if workers <= nodes else 1)


def test_what_others_use_is_no_place() -> None:
    assert beside([node(8), node(8, used=7.5)], CPU_WORKER, 1).most == int(7.6 / 0.8)


@pytest.mark.parametrize(
    ("cpus", "workers", "used", "want"), [(2, 1, 0.65, 0.8), (2, 2, 1.1, 0.5), (2, 2, 0, 0.7), (1, 1, 0.65, 0.1)]
)
def test_a_small_machine_has_one_process(cpus: float, workers: int, used: float, want: float) -> None:
    pool = beside([node(cpus, used=used)], CPU_WORKER, workers)
    assert (pool.most, pool.cpus) == (1, pytest.approx(want))


def test_workers_that_reserve_everything_leave_none() -> None:
    assert Pool.beside([node(2, used=1.8)], {"CPU": 0.9}, 2, 10) is None


def test_after_the_training_all_is_free() -> None:
    nodes = [node(8, used=7.2).empty, node(8, 1, 0.9, 1).empty]
    assert beside(nodes, {}, 0).gpus == 1.0
    assert beside(nodes[:1], {}, 0).most == int(7.6 / 0.8)
