"""Timing in turn, by a clock that only the timed work moves on."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch

from benchmarks.measuring import Timing, half_quartile_distance, milliseconds, print_result, quotient, time_in_turn


@dataclass
class Clock:
    """Time that passes only in `work`; the n-th call of a side takes the n-th of its durations."""

    now: float = 100.0
    calls: list[str] = field(default_factory=list)

    def read(self) -> float:
        return self.now

    def work(self, name: str, durations: list[float]) -> Callable[[], None]:
        rest = iter(durations)

        def run() -> None:
            self.calls.append(name)
            self.now += next(rest)

        return run


def test_sides_run_in_turn_and_warm_up_rounds_do_not_count() -> None:
    clock = Clock()
    sides = {"a": clock.work("a", [50, 1, 2, 6]), "b": clock.work("b", [70, 4, 4, 3])}
    timings = time_in_turn(sides, rounds=3, warm_up=1, clock=clock.read)
    assert clock.calls == ["a", "b"] * 4
    assert timings["a"].seconds == (1, 2, 6)
    assert timings["b"].seconds == (4, 4, 3)
    assert timings["a"].median == 2
    assert timings["b"].median == 4


def test_a_round_that_is_slow_for_both_sides_leaves_the_quotient_as_it_is() -> None:
    a, b = Timing((2.0, 20.0, 2.2, 60.0)), Timing((1.0, 10.0, 1.1, 30.0))
    ratio, spread = quotient(a, b)
    assert ratio == pytest.approx(2)
    assert spread == pytest.approx(0)


def test_spread_is_half_of_what_holds_the_middle_half() -> None:
    assert half_quartile_distance([5.0]) == 0
    assert half_quartile_distance([1.0, 1.0, 1.0, 900.0, 1.0]) == 0  # one slow round does not count
    assert half_quartile_distance(range(101)) == pytest.approx(25)  # quartiles 25 and 75
    drawn = torch.randn(20001, generator=torch.Generator().manual_seed(0)).tolist()
    assert half_quartile_distance(drawn) == pytest.approx(0.6745, abs=0.02)  # as of a normal distribution


def test_the_result_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_result(
        "x", torch.device("cpu"), ratio=1.23456789, same=True, size=[800, 1216], **milliseconds(a=Timing((0.25,)))
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    found = json.loads(lines[0])
    assert found.pop("hardware").endswith("threads")
    assert found == {
        "benchmark": "x", "ratio": 1.235, "same": True, "size": [800, 1216], "a_ms": 250.0, "a_ms_spread": 0.0,
    }  # fmt: skip
