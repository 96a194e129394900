"""A training step beside torchvision's Mask R-CNN: images a second, peak memory, and what goes beside the work.

Both are a ResNet-50 FPN with frozen BatchNorm, stem and first stage, and get the same images on the same padded canvas,
already resized and on the device; ours with ragged masks, torchvision's with dense ones at the network's resolution.
Weights are random, with the learning rate 0 so that every step does the same work, and RoIs count as positive from an
IoU of 0.1 so that both mask heads are as busy as in a trained network.

`ratio` compares ours without its MaskIoU head, so that both do the same job, `ratio_with_head` ours with it. Our step
is that of `msrcnn train`: forward, backward, norm of the gradient, guard, fused SGD. Theirs is that of torchvision's
references: forward, backward, SGD. `outside_share` is the part of our step's time that is neither forward (targets
included), backward nor optimiser. `peak_memory_ratio` is ours without the head by torchvision's.

float32 is torch's default (a GPU's convolutions then use TF32); a GPU also has rows in bfloat16 by autocast, and ours
compiled. On a GPU one step of ours runs with synchronisations forbidden; the command fails where there is one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.images import Sample, busy, samples, training_batch
from benchmarks.measuring import (
    Timing,
    add_device,
    device_clock,
    milliseconds,
    parser_of,
    peak_memory,
    print_result,
    print_settings,
    quotient,
    time_in_turn,
)
from benchmarks.train_sides import (
    MASK_HEADS,
    OUTSIDE,
    Mark,
    make_ours,
    make_theirs,
    our_step,
    their_step,
    unmarked,
)
from msrcnn.config import DataConfig, ModelConfig
from msrcnn.presets import PRESETS
from msrcnn.structures import Batch

SIDES = ("ours", "torchvision", "ours_with_head")
"""What is compared, in turn; with "ours_compiled" behind them on a GPU or where asked for."""
WARM_UP = 3
"""Rounds before those that count: kernels are chosen, and the process's heap grows to what a step needs."""
MARKED = 3
"""Steps in which our step's parts are timed."""
SYNCHRONISATIONS = "synchronisations"
"""Figures whose names end so must be "none"."""


@dataclass(frozen=True)
class Job:
    """What every side trains on."""

    model: ModelConfig
    data: DataConfig
    images: int
    seed: int

    def inputs(self) -> tuple[list[Sample], str, Batch]:
        """The images, where they are from, and the batch of them."""
        chosen, source = samples(self.images, self.seed, landscape=True)
        return chosen, source, training_batch(chosen, self.data, self.seed)


@dataclass(frozen=True)
class Side:
    """One of the compared detectors, on the device, a step behind it."""

    step: Callable[[Mark], None]
    mask_rois: int
    """RoIs that its mask head sees in a step"""
    peak_bytes: int | None
    """most memory of the device in a step: weights, gradients, momentum, images, activations; None on a CPU"""


def make_side(name: str, job: Job, chosen: list[Sample], batch: Batch, bfloat16: bool) -> Side:
    """Builds one side and takes its first step; on a GPU also measures its memory, without that of other sides."""
    device = batch.images.device
    others = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    torch.manual_seed(job.seed)
    if name == "torchvision":
        theirs, their_losses = make_theirs(job.model, chosen, batch)
        step, mask_head = their_step(theirs, their_losses, bfloat16), theirs.get_submodule(MASK_HEADS[name])
    else:
        ours, losses = make_ours(job.model, batch, name == "ours_with_head", name == "ours_compiled")
        step, mask_head = our_step(ours, losses, bfloat16), ours.get_submodule(MASK_HEADS["ours"])
    seen: list[int] = []
    hook = mask_head.register_forward_pre_hook(lambda _module, inputs: seen.append(len(inputs[0])))
    step(unmarked)
    hook.remove()
    if device.type != "cuda":
        return Side(step, seen[0], None)
    for _ in range(WARM_UP):
        step(unmarked)
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step(unmarked)
    return Side(step, seen[0], torch.cuda.max_memory_allocated(device) - others)


def peak_of_process(job: Job, name: str) -> int:
    """Most memory, in bytes, that two steps of a side on the CPU add to a process that has imported this module.

    The process is forked off before anything is computed in this one, and counts all: images, weights, gradients,
    momentum, activations, the kernels' own memory, what the heap has lost to fragments.
    """
    fork = multiprocessing.get_context("fork")
    answers, answer = fork.Pipe(duplex=False)

    def work() -> None:
        before = peak_memory()
        chosen, _, batch = job.inputs()
        side = make_side(name, job, chosen, batch, bfloat16=False)
        side.step(unmarked)
        answer.send(peak_memory() - before)

    process = fork.Process(target=work)
    process.start()
    answer.close()
    try:
        return answers.recv()
    finally:
        process.join()


def outside_share(step: Callable[[Mark], None], clock: Callable[[], float]) -> Timing:
    """The share of a step's time that is neither forward, backward nor optimiser; a figure a step."""
    found = []
    for _ in range(MARKED):
        parts: dict[str, float] = {}
        last = clock()

        def mark(part: str, parts: dict[str, float] = parts) -> None:
            nonlocal last
            now = clock()
            parts[part] = parts.get(part, 0.0) + now - last
            last = now

        step(mark)
        found.append(parts[OUTSIDE] / sum(parts.values()))
    return Timing(tuple(found))


def synchronisations(step: Callable[[Mark], None]) -> str:
    """ "none", or what PyTorch says of the first synchronisation of host and device in a step."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(unmarked)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def compare(
    names: list[str], job: Job, chosen: list[Sample], batch: Batch, bfloat16: bool, rounds: int, peaks: dict[str, int]
) -> dict[str, object]:
    """Builds all sides, times them in turn and prints a row each.

    Args:
        peaks: peak memory of sides where it was measured elsewhere.

    Returns:
        The figures; their names begin with the precision and mostly the side.
    """
    device, precision = batch.images.device, "bfloat16" if bfloat16 else "float32"
    clock = device_clock(device)
    sides = {name: make_side(name, job, chosen, batch, bfloat16) for name in names}
    steps = {name: lambda side=side: side.step(unmarked) for name, side in sides.items()}
    timings = time_in_turn(steps, rounds, WARM_UP, clock)
    peaks = peaks | {name: side.peak_bytes for name, side in sides.items() if side.peak_bytes is not None}
    figures: dict[str, object] = {}
    for name, side in sides.items():
        timing = timings[name]
        rate = len(batch.images) / timing.median
        ratio, spread = quotient(timings["torchvision"], timing)
        row = {"ratio": ratio, "ratio_spread": spread, "images_per_second": rate, "mask_rois": side.mask_rois}
        row |= milliseconds(step=timing)
        memory = ""
        if name in peaks:
            row["peak_bytes"], memory = peaks[name], f", peak {peaks[name] / 2**30:.2f} GiB"
        print(f"{precision} {name}: {timing.text}, {rate:.2f} images/s{memory}, {side.mask_rois} mask RoIs; "
              f"{ratio:.3f} +- {spread:.3f} times torchvision's speed")  # fmt: skip
        figures |= {f"{precision}_{name}_{figure}": value for figure, value in row.items()}
    figures[f"{precision}_peak_memory_ratio"] = peaks["ours"] / peaks["torchvision"]
    share = outside_share(sides["ours_with_head"].step, clock)
    figures |= {f"{precision}_outside_share": share.median, f"{precision}_outside_share_spread": share.spread}
    print(f"{precision}: peak memory x {peaks['ours'] / peaks['torchvision']:.2f}; outside forward, backward and "
          f"optimiser {100 * share.median:.2f}% +- {100 * share.spread:.2f} of a step with the head")  # fmt: skip
    if device.type == "cuda":
        waits = {name: synchronisations(sides[name].step) for name in ("ours", "ours_with_head")}
        found = figures[f"{precision}_{SYNCHRONISATIONS}"] = next((w for w in waits.values() if w != "none"), "none")
        print(f"{precision} synchronisations of host and device in a step of ours: {found}")
    return figures


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = parser_of(__doc__ or "")
    add_device(parser)
    size = PRESETS["r50-fpn"].data
    parser.add_argument("--batch", type=int, help="images (default: 2, with --quick 1)")
    parser.add_argument("--short-side", type=int, default=size.short_side, help="pixels (default: %(default)s)")
    parser.add_argument("--long-side", type=int, default=size.long_side, help="pixels (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="ours compiled too; a GPU always has this row")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 10 on a GPU, 5 on a CPU)")
    args = parser.parse_args()
    args.batch = args.batch or (1 if args.quick else 2)
    return args


def main() -> int:
    args = options()
    cuda = args.device.type == "cuda"
    data = DataConfig(192, 320, flip=False) if args.quick else DataConfig(args.short_side, args.long_side, flip=False)
    rounds = args.rounds or (10 if cuda else 5)
    model = PRESETS["r50-fpn"].model
    config = busy(model, 64 if args.quick else model.roi.samples)
    job = Job(config, data, args.batch, args.seed)
    peaks = {} if cuda else {name: peak_of_process(job, name) for name in SIDES}
    chosen, source, batch = job.inputs()
    batch = batch.to(args.device)
    print_settings(
        "train_step", args.device, images=f"{args.batch}, {source}", canvas=tuple(batch.images.shape[2:]),
        instances=[len(truth.rles) for _, truth in chosen], rois_an_image=config.roi.samples,
        positive_iou=config.roi.positive_iou, rounds=rounds, seed=args.seed,
        peak_memory="max_memory_allocated" if cuda else "resident, added to a process of its own by two steps",
    )  # fmt: skip
    names = [*SIDES, "ours_compiled"] if args.compile or cuda else list(SIDES)
    figures: dict[str, object] = {}
    for bfloat16 in (False, True) if cuda else (False,):
        figures |= compare(names, job, chosen, batch, bfloat16, rounds, peaks)
    print_result(
        "train_step", args.device, ratio=figures["float32_ours_ratio"],
        ratio_with_head=figures["float32_ours_with_head_ratio"],
        peak_memory_ratio=figures["float32_peak_memory_ratio"], outside_share=figures["float32_outside_share"],
        **figures, batch=args.batch, canvas=list(batch.images.shape[2:]), seed=args.seed,
    )  # fmt: skip
    return 0 if all(v == "none" for name, v in figures.items() if name.endswith(SYNCHRONISATIONS)) else 1


if __name__ == "__main__":
    sys.exit(main())
