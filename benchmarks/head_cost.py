"""What the MaskIoU head costs in time, beside its share of the multiply-accumulates.

The paper (section 4.1) calls the cost of MaskIoU prediction negligible. Here the detector with its MaskIoU head and the
same detector without it (`maskiou.enabled` False: Mask R-CNN), same weights and same images, run in turn: detecting 100
objects an image, and a training step. The multiply-accumulates of both are counted (torch's flop counter: convolutions
and matrix products, half of its "flops"; RoIAlign is not counted). Wanted is that time grows by no more than they do,
plus 0.05.

What both compute must be equal bit by bit on a CPU, to 1e-3 on a GPU (whose sums have no order): boxes, class scores
and masks, and the losses of the other heads. The command fails where they differ.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.images import busy, samples, training_batch
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
from msrcnn.config import DataConfig, ModelConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.presets import PRESETS
from msrcnn.structures import Batch, Detections

ALLOWANCE = 0.05
"""What the time ratio may exceed the ratio of multiply-accumulates by."""


def make_models(config: ModelConfig, seed: int, device: torch.device) -> tuple[MaskScoringRCNN, MaskScoringRCNN]:
    """The detector and the detector without its MaskIoU head, with the same random weights."""
    torch.manual_seed(seed)
    full = MaskScoringRCNN(config)
    plain = MaskScoringRCNN(replace(config, maskiou=replace(config.maskiou, enabled=False)))
    plain.load_state_dict({k: v for k, v in full.state_dict().items() if not k.startswith("maskiou.")})
    return full.to(device), plain.to(device)


def multiply_accumulates(work: Callable[[], object]) -> float:
    """Multiply-accumulates of what `work` does."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 2


def detect(model: MaskScoringRCNN, batch: Batch) -> Detections:
    """Detections of a batch."""
    with torch.no_grad():
        return model.eval()(batch)


def step(model: MaskScoringRCNN, batch: Batch) -> dict[str, Tensor]:
    """Losses of a training step and their gradients; the optimiser's part is left out."""
    losses = model.train()(batch)
    model.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()
    return losses


def same_results(full: MaskScoringRCNN, plain: MaskScoringRCNN, batch: Batch) -> bool:
    """Whether both give the same boxes, labels, scores and masks, and the same losses but for the MaskIoU head's."""
    tolerance = 0.0 if batch.images.device.type == "cpu" else 1e-3
    a, b = detect(full, batch), detect(plain, batch)
    pairs = [(getattr(a, n), getattr(b, n)) for n in ("boxes", "labels", "class_scores", "masks", "valid")]
    ours, theirs = step(full, batch), step(plain, batch)
    pairs += [(ours[name], theirs[name]) for name in theirs]
    with_it = set(ours) - set(theirs) == {"maskiou"}
    return with_it and all(torch.allclose(x, y, rtol=tolerance, atol=tolerance) for x, y in pairs)


def compare(
    what: str, full: Callable[[], object], plain: Callable[[], object], rounds: int, device: torch.device
) -> dict[str, object]:
    """Counts and times one kind of work with and without the head, both warm, and prints it.

    Returns:
        The figures; their names begin with `what`.
    """
    share = multiply_accumulates(full) / multiply_accumulates(plain) - 1
    timings = time_in_turn({"with_head": full, "without": plain}, rounds, 0, device_clock(device))
    ratio, spread = quotient(timings["with_head"], timings["without"])
    limit = 1 + share + ALLOWANCE
    verdict = "within" if ratio <= limit else "ABOVE"
    print(f"{what}: without {timings['without'].text}, with {timings['with_head'].text}; time x {ratio:.3f} +- "
          f"{spread:.3f}, multiply-accumulates x {1 + share:.3f}: {verdict} {limit:.3f}")  # fmt: skip
    found = {"ratio": ratio, "ratio_spread": spread, "limit": limit, "share": share, "within": ratio <= limit}
    return {f"{what}_{name}": value for name, value in (found | milliseconds(**timings)).items()}


def main() -> int:
    parser = parser_of(__doc__ or "")
    add_device(parser)
    parser.add_argument("--preset", default="r18-fpn", choices=[p for p in PRESETS if p != "demo"])
    parser.add_argument("--batch", type=int, default=2, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 7, with --quick 2)")
    args = parser.parse_args()
    name = "r18-fpn" if args.quick else args.preset
    preset = PRESETS[name]
    data = DataConfig(320, 512) if args.quick else preset.data
    images = 1 if args.quick else args.batch
    rounds = args.rounds or (2 if args.quick else 7)
    chosen, source = samples(images, args.seed, landscape=True)
    batch = training_batch(chosen, replace(data, flip=False), args.seed).to(args.device)
    model = busy(preset.model, 128 if args.quick else preset.model.roi.samples)
    full, plain = make_models(model, args.seed, args.device)
    counts = detect(full, batch).valid.sum(1).tolist()
    print_settings(
        "head_cost", args.device, preset=name, images=f"{images}, {source}",
        canvas=tuple(batch.images.shape[2:]), detections_an_image=counts, training_rois_an_image=model.roi.samples,
        positive_iou=model.roi.positive_iou, weights="random", precision="float32", rounds=rounds, seed=args.seed,
    )  # fmt: skip
    top = preset.model.selection.top_k
    if counts != [top] * images:
        print(f"head_cost: not every image has {top} detections; another --seed may", file=sys.stderr)
        return 1
    same = same_results(full, plain, batch)
    print(f"same boxes, scores, masks and other losses: {same}")
    figures: dict[str, object] = {}
    for what, work in (("detecting", detect), ("training", step)):
        with_head, without = (partial(work, m, batch) for m in (full, plain))
        figures |= compare(what, with_head, without, rounds, args.device)
    print_result(
        "head_cost", args.device, ratio=figures["detecting_ratio"], identical=same, **figures,
        preset=name, images=images, canvas=list(batch.images.shape[2:]),
        seed=args.seed,
    )  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
