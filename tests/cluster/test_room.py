"""How many workers fit, against trying out every placement."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from cluster.room import fitting


def brute(nodes: list[dict[str, float]], worker: dict[str, float], helpers: int, helper_cpus: float) -> int:
    """Tries every number of workers and helpers on every node, in whole tenths."""
    most = -1
    need = {name: round(10 * value) for name, value in worker.items()}
    have = [{name: round(10 * value) for name, value in node.items()} for node in nodes]

    def possible(node: dict[str, int]) -> list[tuple[int, int]]:
        fits = []
        for workers, helping in product(range(12), range(helpers + 1)):
            used = {name: workers * value for name, value in need.items()}
            used["CPU"] = used.get("CPU", 0) + helping * round(10 * helper_cpus)
            if all(value <= node.get(name, 0) for name, value in used.items()):
                fits.append((workers, helping))
        return fits

    for placement in product(*(possible(node) for node in have)):
        if sum(helping for _, helping in placement) == helpers:
            most = max(most, sum(workers for workers, _ in placement))
    return most


@pytest.mark.parametrize("seed", range(150))
def test_as_many_as_the_best_of_all_placements(seed: int) -> None:
    rng = np.random.default_rng(seed)
    nodes = []
    for _ in range(rng.integers(0, 4)):
        node = {"CPU": float(rng.integers(0, 60)) / 10}
        if rng.random() < 0.7:
            node["GPU"] = float(rng.integers(0, 4))
        nodes.append(node)
    worker = {"CPU": float(rng.integers(6, 25)) / 10} | ({"GPU": 1.0} if rng.random() < 0.4 else {})
    helpers, helper_cpus = int(rng.integers(0, 4)), float(rng.integers(1, 12)) / 10
    assert fitting(nodes, worker, helpers, helper_cpus) == brute(nodes, worker, helpers, helper_cpus)


def test_the_sum_of_cpus_does_not_help_where_each_node_has_too_few() -> None:
    assert fitting([{"CPU": 3.0}] * 8, {"CPU": 4.0}) == 0
    assert fitting([{"CPU": 11.0}, {"CPU": 4.0}, {"CPU": 3.9}], {"CPU": 4.0}) == 3


def test_a_head_without_cpus_holds_nothing() -> None:
    assert fitting([{"memory": 1e9}, {"CPU": 2.0}], {"CPU": 0.45}, 2, 0.1) == 4
    assert fitting([{"memory": 1e9}], {"CPU": 0.45}) == 0
    assert fitting([{}], {"CPU": 0.45}, 2, 0.1) == -1


def test_gpus_limit_too() -> None:
    assert fitting([{"CPU": 64.0, "GPU": 3.0}, {"CPU": 2.0, "GPU": 8.0}], {"CPU": 0.9, "GPU": 1.0}, 2, 0.1) == 5


def test_tenths_are_not_lost_to_rounding() -> None:
    assert fitting([{"CPU": 0.3}], {"CPU": 0.1}) == 3
    assert fitting([{"CPU": 1.1}], {"CPU": 0.45}, 2, 0.1) == 2
