"""What the MaskIoU heads of Tables 4 to 6 cost on one trunk, beside as many trainings of a detector with one of them.

The 11 heads (inputs a to f, targets 1 to 3, tau 0, 0.3, 0.5 and 0.7) are in one model (`ModelConfig.heads`), and each
is in a model of its own, with the same weights. Training steps (forward and backward) on the same images are timed in
turn: one of all heads, then one of each single head, of which the sum counts. This is done with the trunk frozen
(`trained = "maskiou"`) and with the trunk training. The multiply-accumulates of both sides are counted as in
`head_cost`. Wanted is that the ratio of times is at most 1.15 times theirs.

The losses of both sides must be equal to 1e-5. The command fails where they differ.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Literal, cast

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.head_cost import step
from benchmarks.images import busy, samples, training_batch
from benchmarks.measuring import (
    Timing,
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
from msrcnn.maskiou_heads import loss_names
from msrcnn.presets import PRESETS
from msrcnn.structures import Batch

HEADS = (*(f"input={letter}" for letter in "bcdef"), "target=2", "target=3", "tau=0.3", "tau=0.5", "tau=0.7")
"""With the default one the heads of Tables 4 to 6."""
ALLOWED = 1.15
"""Most that the ratio of times may be above the ratio of multiply-accumulates, as a factor."""
TOLERANCE = 1e-5
"""Between a head's loss among the others and alone."""


def make_models(config: ModelConfig, seed: int, device: torch.device) -> tuple[MaskScoringRCNN, list[MaskScoringRCNN]]:
    """The detector with all heads, and one for each head alone, which shares its weights."""
    torch.manual_seed(seed)
    many = MaskScoringRCNN(config).to(device)
    alone = []
    for head, module in zip(config.all_heads, many.maskiou_heads(), strict=True):
        with torch.device("meta"):
            model = MaskScoringRCNN(replace(config, maskiou=head, heads=()))
        model.backbone, model.rpn, model.box, model.mask = many.backbone, many.rpn, many.box, many.mask
        model.maskiou = module
        alone.append(model)
    return many, alone


def counted_step(model: MaskScoringRCNN, batch: Batch) -> tuple[dict[str, Tensor], float]:
    """The losses of a step and its multiply-accumulates."""
    with FlopCounterMode(display=False) as counter:
        losses = step(model, batch)
    return {name: loss.detach() for name, loss in losses.items()}, counter.get_total_flops() / 2


def largest_difference(config: ModelConfig, many: dict[str, Tensor], alone: Sequence[dict[str, Tensor]]) -> float:
    """Between the losses of all heads together and those of each alone; the other parts' losses are compared too."""
    differences = []
    for name, losses in zip(loss_names(config), alone, strict=True):
        differences += [(many[name if n == "maskiou" else n] - loss).abs() for n, loss in losses.items()]
    return cast(float, torch.stack(differences).max().item())


def compare(config: ModelConfig, batch: Batch, rounds: int, seed: int) -> dict[str, object]:
    """Counts, compares and times one way of training, and prints it.

    Returns:
        The figures; their names begin with `config.trained`.
    """
    device = batch.images.device
    many, alone = make_models(config, seed, device)
    together, macs = counted_step(many, batch)
    counted = [counted_step(model, batch) for model in alone]
    difference = largest_difference(config, together, [losses for losses, _ in counted])
    macs_ratio = macs / sum(macs for _, macs in counted)
    sides = {"many": partial(step, many, batch)}
    sides |= {str(number): partial(step, model, batch) for number, model in enumerate(alone)}
    timings = time_in_turn(sides, rounds, 0, device_clock(device))
    all_heads = timings.pop("many")
    one_by_one = Timing(tuple(sum(seconds) for seconds in zip(*(t.seconds for t in timings.values()), strict=True)))
    ratio, spread = quotient(all_heads, one_by_one)
    verdict = "within" if ratio <= ALLOWED * macs_ratio else "ABOVE"
    print(f"trained {config.trained}: {len(alone)} heads in one step {all_heads.text}, in one each {one_by_one.text}; "
          f"time x {ratio:.3f} +- {spread:.3f}, multiply-accumulates x {macs_ratio:.3f}: {verdict} {ALLOWED} times "
          f"that; losses differ by {difference:.1e}")  # fmt: skip
    found = {
        "ratio": ratio, "ratio_spread": spread, "macs_ratio": macs_ratio, "ratio_to_macs": ratio / macs_ratio,
        "loss_difference": difference, **milliseconds(many=all_heads, one_by_one=one_by_one),
    }  # fmt: skip
    return {f"{config.trained}_{name}": value for name, value in found.items()}


def main() -> int:
    parser = parser_of(__doc__ or "")
    add_device(parser)
    parser.add_argument("--preset", default="r18-fpn", choices=[p for p in PRESETS if p not in ("demo", "r101-c4")])
    parser.add_argument("--trained", default="both", choices=["both", "all", "maskiou"],
                        help="what trains: everything, the heads alone, or one after the other (default)")  # fmt: skip
    parser.add_argument("--batch", type=int, default=2, help="images (default: %(default)s)")
    parser.add_argument("--rounds", type=int, help="timed rounds (default: 5, with --quick 1)")
    args = parser.parse_args()
    name = "r18-fpn" if args.quick else args.preset
    preset = PRESETS[name]
    data = DataConfig(320, 512) if args.quick else preset.data
    images = 1 if args.quick else args.batch
    rounds = args.rounds or (1 if args.quick else 5)
    chosen, source = samples(images, args.seed, landscape=True)
    batch = training_batch(chosen, replace(data, flip=False), args.seed).to(args.device)
    model = replace(busy(preset.model, 64 if args.quick else preset.model.roi.samples), heads=HEADS)
    print_settings(
        "many_heads", args.device, preset=name, images=f"{images}, {source}", canvas=tuple(batch.images.shape[2:]),
        heads=f"maskiou, {', '.join(HEADS)}", training_rois_an_image=model.roi.samples,
        positive_iou=model.roi.positive_iou, weights="random", precision="float32", rounds=rounds, seed=args.seed,
    )  # fmt: skip
    figures: dict[str, object] = {}
    ways: tuple[Literal["all", "maskiou"], ...] = ("maskiou", "all") if args.trained == "both" else (args.trained,)
    for trained in ways:
        figures |= compare(replace(model, trained=trained), batch, rounds, args.seed)
    worst = max(cast(float, figures[f"{trained}_ratio_to_macs"]) for trained in ways)
    same = all(cast(float, figures[f"{trained}_loss_difference"]) <= TOLERANCE for trained in ways)
    print_result(
        "many_heads", args.device, **{n: figures[f"{ways[0]}_{n}"] for n in ("ratio", "macs_ratio")},
        ratio_to_macs=worst, within=worst <= ALLOWED, same_losses=same, **figures, preset=name, images=images,
        heads=len(HEADS) + 1, canvas=list(batch.images.shape[2:]), seed=args.seed,
    )  # fmt: skip
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
