"""Images a second of `msrcnn train` with one worker and with two, one thread each; two have twice the images a step.

Whole trainings, in turn: Ray, the images' stream, gradients exchanged by gloo. The rate is the run's own record of its
steps, without the start of the processes. `efficiency` is the rate of two workers by twice that of one. Beside it,
`hardware_efficiency`: the rate of two processes that make training steps and do not know of each other, by twice what
one reaches alone. It says how much of what is missing the cores themselves lose (memory, clock). It is not in --quick,
which takes two minutes even so, since two trainings start.
"""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.images import data_folder, samples, training_batch
from benchmarks.measuring import half_quartile_distance, parser_of, print_result, print_settings
from cluster.session import connect
from msrcnn.config import DataConfig, ModelConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.presets import PRESETS
from pipelines.options import ShardConfig, TrainConfig
from pipelines.shard import shard
from pipelines.train import train

IMAGES = 2
"""A worker's images of a step."""
STEPS = 20
"""Of a training; so many make a record."""


def model_of() -> ModelConfig:
    """R18-FPN that can be trained from scratch."""
    return replace(PRESETS["r18-fpn"].model, norm="group_norm", frozen_stages=0)


def training_rate(shards: Path, folder: Path, data: DataConfig, workers: int, steps: int) -> float:
    """Images a second of a training, all workers together."""
    config = TrainConfig(
        shards, folder / "run", model=model_of(), data=data, workers=str(workers), threads=1, max_steps=steps,
        solver=SolverConfig(epochs=100, batch=IMAGES * workers, lr=1e-4, clip_norm=1.0),
        tracking=f"sqlite:///{folder}/mlflow.db",
    )  # fmt: skip
    train(config, lambda _: None)
    (line,) = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return float(json.loads(line)["images_per_second"])


def alone(data: DataConfig, seed: int, steps: int, rates: Any) -> None:
    """So many training steps without optimiser in this process; puts its images a second."""
    torch.set_num_threads(1)
    chosen, _ = samples(IMAGES, seed, landscape=True)
    batch = training_batch(chosen, data, seed)
    model = MaskScoringRCNN(model_of()).train()
    torch.stack(list(model(batch).values())).sum().backward()  # warms up
    began = time.perf_counter()
    for _ in range(steps):
        torch.stack(list(model(batch).values())).sum().backward()
    rates.put(IMAGES * steps / (time.perf_counter() - began))


def side_by_side(processes: int, data: DataConfig, seed: int, steps: int) -> float:
    """Images a second of so many processes that have nothing to do with each other, together."""
    context = multiprocessing.get_context("spawn")
    rates = context.SimpleQueue()
    running = [context.Process(target=alone, args=(data, seed, steps, rates)) for _ in range(processes)]
    for process in running:
        process.start()
    for process in running:
        process.join()
    return sum(rates.get() for _ in running)


def make_shards(folder: Path, root: Path | None) -> Path:
    """COCO's sample where it is, else shapes, as shards."""
    if root is not None:
        coco = root / "coco_sample"
        config = ShardConfig(coco / "annotations" / "instances_train2017.json", coco / "train2017", folder / "shards")
    else:
        from msrcnn.data.shapes import write_shapes
        from msrcnn.data.shapes_config import ShapesConfig

        write_shapes(ShapesConfig(train=100, val=1), folder / "images")
        annotations = folder / "images" / "annotations" / "instances_train.json"
        config = ShardConfig(annotations, folder / "images" / "train", folder / "shards")
    shard(config, log=lambda _: None)
    return folder / "shards"


def main() -> int:
    """Entry point."""
    parser = parser_of(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="(default: 3, 1 with --quick)")
    args = parser.parse_args()
    data = DataConfig(96, 160) if args.quick else DataConfig(400, 667)
    rounds, steps = args.rounds or (1 if args.quick else 3), 4 if args.quick else STEPS
    cpu = torch.device("cpu")
    torch.set_num_threads(1)
    print_settings("scaling", cpu, model="R18-FPN, GroupNorm, from scratch", resized_to=data, rounds=rounds,
                   images_a_worker_and_step=IMAGES, steps=steps, seed=args.seed)  # fmt: skip
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name, connect("local"):
        folder = Path(name)
        shards = make_shards(folder, None if args.quick else data_folder())
        for number in range(rounds):
            sides: dict[str, Callable[[], float]] = {}
            for w in (1, 2):
                sides[f"{w}_worker"] = lambda w=w, n=number: training_rate(shards, folder / f"{n}-{w}", data, w, steps)  # type: ignore[misc]
                if not args.quick:
                    sides[f"{w}_alone"] = lambda w=w: side_by_side(w, data, args.seed, steps // 2)  # type: ignore[misc]
            for side, measure in sides.items():
                rates.setdefault(side, []).append(measure())
                print(f"round {number + 1}, {side.replace('_', ' ')}: {rates[side][-1]:.2f} images/s", flush=True)
    figures: dict[str, float] = {}
    for name, of in (("efficiency", "worker"), ("hardware_efficiency", "alone")):
        if found := [
            two / (2 * one) for one, two in zip(rates.get(f"1_{of}", []), rates.get(f"2_{of}", []), strict=True)
        ]:
            figures |= {name: statistics.median(found), f"{name}_spread": half_quartile_distance(found)}
    figures |= {f"{side}_images_per_second": statistics.median(values) for side, values in rates.items()}
    print_result("scaling", cpu, **figures, rounds=rounds, steps=steps, data=[data.short_side, data.long_side],
                 images_a_worker_and_step=IMAGES, seed=args.seed)  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
