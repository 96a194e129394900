"""What all benchmarks share: sides timed in turn, a median and a spread, settings first and one line of JSON last."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torchvision

from benchmarks.peak import peak_memory as peak_memory  # what other benchmarks import from here


@dataclass(frozen=True)
class Timing:
    """One side's seconds, a figure a round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Half of the distance between the quartiles, seconds; 0 for a single round."""
        return half_quartile_distance(self.seconds)

    @property
    def text(self) -> str:
        """Median and spread for a reader, in milliseconds."""
        return f"{1e3 * self.median:.1f} ms +- {1e3 * self.spread:.1f}"


def half_quartile_distance(values: Sequence[float]) -> float:
    """Half of the distance between the quartiles: for one value 0, for a normal distribution 0.67 sigma."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / 2


def quotient(a: Timing, b: Timing) -> tuple[float, float]:
    """How many times b's time a took, median and spread over the rounds; what slows a whole round cancels."""
    quotients = [x / y for x, y in zip(a.seconds, b.seconds, strict=True)]
    return statistics.median(quotients), half_quartile_distance(quotients)


def time_in_turn(
    sides: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Times every side once a round, in the given order (A B A B ...), after `warm_up` rounds that are not counted.

    Args:
        sides: what to time, by name.
        rounds: rounds that count.
        warm_up: rounds before them.
        clock: seconds; `device_clock` where the work goes on after the call returns.
    """
    found: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(warm_up + rounds):
        for name, side in sides.items():
            began = clock()
            side()
            took = clock() - began
            if number >= warm_up:
                found[name].append(took)
    return {name: Timing(tuple(seconds)) for name, seconds in found.items()}


def device_clock(device: torch.device) -> Callable[[], float]:
    """A clock that lets `device` finish before it reads the time."""

    def read() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    return read


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has; the description is that of the module."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes and few rounds: within a minute on 2 cores")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws (default: %(default)s)")
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option of benchmarks that can run on a GPU."""
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"), help="cpu (default) or cuda")


def hardware(device: torch.device) -> str:
    """What ran, in words."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{os.cpu_count()}-core {platform.machine()} CPU, {torch.get_num_threads()} threads"


def print_settings(benchmark: str, device: torch.device, **settings: object) -> None:
    """Says what is about to be measured, on what and with which versions."""
    print(f"{benchmark} on {hardware(device)}; torch {torch.__version__}, torchvision {torchvision.__version__}")
    for name, value in settings.items():
        print(f"  {name.replace('_', ' ')}: {value}")


def print_result(benchmark: str, device: torch.device, **figures: object) -> None:
    """The last line of a benchmark: one JSON object, floats to 4 significant digits."""
    plain = {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in figures.items()}
    print(json.dumps({"benchmark": benchmark, "hardware": hardware(device), **plain}))


def milliseconds(**timings: Timing) -> dict[str, float]:
    """Figures for `print_result`: `NAME_ms` and `NAME_ms_spread` of each timing."""
    found = {}
    for name, timing in timings.items():
        found[f"{name}_ms"] = 1e3 * timing.median
        found[f"{name}_ms_spread"] = 1e3 * timing.spread
    return found
