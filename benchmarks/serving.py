"""Requests a second and latency of `msrcnn serve` on one replica, with `msrcnn.predict` in this process on its images.

Both sides compute with one thread on a CPU, or on one GPU. `predict` takes the images one after the other, as many at
a time as suit the device. The service gets them over HTTP from a single client, and from several at once, each of
which sends its next image when it has the answer to its last; clients run on the same machine and take their share of
it. `ratio` is the service's requests a second by the images a second of `predict`, `overhead_ms` what the median
request of a single client takes more than an image does in `predict`, single image by single image.

The command fails where an answer is not what `predict` finds: on a CPU to the last bit; on a GPU, where the images that
share a step vary, in number and category, and in mask scores by more than 1e-3.
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.images import samples
from benchmarks.inference import make_ours
from benchmarks.measuring import (
    add_device,
    device_clock,
    milliseconds,
    parser_of,
    print_result,
    print_settings,
    quotient,
    time_in_turn,
)
from cluster.session import connect
from msrcnn import Prediction, load_model, predict
from msrcnn.presets import PRESETS, Preset
from msrcnn.weights import save_model
from pipelines.serve import serving
from pipelines.serving_http import Wanted, described
from pipelines.serving_options import ServeConfig

NEARLY = 1e-3
"""How far mask scores may be apart where other images of a step move the last digits."""


def write_model(folder: Path, preset: Preset, seed: int) -> Path:
    """A preset's model with random weights that find 100 detections in every image, as a finished run."""
    config = preset.model
    categories = [(number, number, f"category {number}") for number in range(1, config.num_classes + 1)]
    save_model(folder / "model.pt", make_ours(config, True, seed), preset.data, categories)
    return folder / "model.pt"


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def request(url: str, image: bytes) -> tuple[Any, float]:
    """An answer, and the seconds that it took."""
    began = time.perf_counter()
    asked = urllib.request.Request(f"{url}/detect", image, {"Content-Type": "image/jpeg"})
    with urllib.request.urlopen(asked) as answer:
        text = answer.read()
    return json.loads(text), time.perf_counter() - began


class Clients:
    """So many clients that send the images among them; collects answers and latencies, those of a first run apart."""

    def __init__(self, url: str, images: Sequence[bytes], count: int) -> None:
        self.url, self.images, self.count = url, images, count
        self.rounds: list[list[tuple[Any, float]]] = []

    def __call__(self) -> None:
        """Each image once."""
        with ThreadPoolExecutor(self.count) as threads:
            self.rounds.append(list(threads.map(lambda image: request(self.url, image), self.images)))

    @property
    def seconds(self) -> list[float]:
        """Of each request but those of the first run, which warms up, shortest first."""
        return sorted(seconds for run in self.rounds[1:] for _, seconds in run)

    def latencies(self) -> dict[str, float]:
        """Median and 99th percentile, in milliseconds."""
        seconds = self.seconds
        return {"p50_ms": 1e3 * statistics.median(seconds), "p99_ms": 1e3 * seconds[int(0.99 * (len(seconds) - 1))]}

    def differing(self, expected: Sequence[Prediction], exactly: bool) -> int:
        """How many answers are not these."""
        answers = [one for run in self.rounds for one in zip(run, expected, strict=True)]
        return sum(not agree(answer, described(found, Wanted()), exactly) for (answer, _), found in answers)


def agree(answer: dict[str, Any], wanted: dict[str, Any], exactly: bool) -> bool:
    """Whether two descriptions of an image's detections are the same, or nearly."""
    if exactly:
        return answer == wanted
    pairs = list(zip(answer["detections"], wanted["detections"], strict=False))
    return len(answer["detections"]) == len(wanted["detections"]) and all(
        a["category"] == b["category"] and abs(a["mask_score"] - b["mask_score"]) <= NEARLY for a, b in pairs
    )


def main() -> int:
    """Entry point."""
    parser = parser_of(__doc__ or "")
    add_device(parser)
    parser.add_argument("--images", type=int, default=16, help="different ones (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=8, help="at once (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="(default: %(default)s)")
    args = parser.parse_args()
    images, rounds = (8, 2) if args.quick else (args.images, args.rounds)
    name = "demo" if args.quick else "r18-fpn"
    preset = PRESETS[name]
    torch.set_num_threads(1)
    chosen, source = samples(images, args.seed)
    files = [image for image, _ in chosen]
    print_settings("serving", args.device, images=f"{images}, {source}", preset=name, clients=args.clients,
                   weights="random", rounds=rounds, seed=args.seed)  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, connect(address="local"):
        path = write_model(Path(folder), preset, args.seed)
        model = load_model(path, args.device)
        expected = predict(model, files)
        config = ServeConfig(path, gpu=args.device.type == "cuda", port=free_port())
        with serving(config, lambda _: None, ends_with_ray=True) as url:
            one, many = Clients(url, files, 1), Clients(url, files, args.clients)
            sides: dict[str, Callable[[], object]] = {
                "predict": lambda: predict(model, files),
                "predict_single": lambda: [predict(model, image) for image in files],
                "one_client": one,
                "clients": many,
            }
            times = time_in_turn(sides, rounds, clock=device_clock(args.device))
    exactly = args.device.type == "cpu"
    differing = one.differing(expected, exactly) + many.differing(expected, exactly)
    ratio, spread = quotient(times["predict"], times["clients"])
    single = 1e3 * times["predict_single"].median / images
    for side, timing in times.items():
        print(f"{side.replace('_', ' ')}: {images / timing.median:.2f} images/s")
    print_result(
        "serving", args.device, ratio=ratio, ratio_spread=spread,
        overhead_ms=one.latencies()["p50_ms"] - single,
        **{f"{side}_images_per_second": images / timing.median for side, timing in times.items()},
        **{f"one_client_{what}": value for what, value in one.latencies().items()},
        **{f"clients_{what}": value for what, value in many.latencies().items()},
        **milliseconds(**times), identical=differing == 0, images=images, clients=args.clients,
        preset=name, seed=args.seed,
    )  # fmt: skip
    if differing:
        print(f"serving: {differing} answers are not what predict finds", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
