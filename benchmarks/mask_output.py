"""Detections' masks at image resolution, run-length encoded: inside each box only, against full images.

Ours is `msrcnn.masks.paste_and_encode`. The competitor is what torchvision's detection references do: paste every
mask into an image of its own (`paste_masks_in_image`), cut at 0.5, encode each with pycocotools. Both must give the
same bits; the command fails where they differ.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.roi_heads import paste_masks_in_image

from benchmarks.measuring import milliseconds, parser_of, print_result, print_settings, quotient, time_in_turn
from msrcnn.masks import paste_and_encode

SMALLEST, LARGEST = 10, 400
"""Sides of the boxes, pixels: drawn evenly in their logarithm, about COCO's range at this image size."""
MASK_SIZE = 28


def draw_detections(count: int, height: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    """Smooth random masks, probabilities [count, 28, 28], and boxes [count, 4] inside the image in pixels."""
    rng = np.random.default_rng(seed)
    largest = min(LARGEST, height, width)
    side = np.exp(rng.uniform(np.log(SMALLEST), np.log(largest), (count, 2)))  # width, height
    corner = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - side)
    boxes = torch.from_numpy(np.concatenate([corner, corner + side], axis=1)).float()  # [count, 2 + 2]
    coarse = torch.from_numpy(rng.normal(0, 1.5, (count, 1, 6, 6))).float()
    # A blob: likely inside, unlikely at the box's border, wavy between.
    line = torch.linspace(-1, 1, MASK_SIZE)
    hill = 3 - 5 * (line[:, None] ** 2 + line[None, :] ** 2)
    logits = hill + F.interpolate(coarse, size=(MASK_SIZE, MASK_SIZE), mode="bicubic").squeeze(1)
    return logits.sigmoid(), boxes


def paste_full_images(masks: Tensor, boxes: Tensor, height: int, width: int) -> list[bytes]:
    """The competitor; what `paste_and_encode` takes and returns."""
    from pycocotools import mask as coco_mask

    pasted = paste_masks_in_image(masks[:, None], boxes, (height, width)) > 0.5  # [D, 1, height, width]
    planes = (np.array(mask.numpy(), dtype=np.uint8, order="F") for mask in pasted[:, 0])  # [height, width] each
    return [coco_mask.encode(plane)["counts"] for plane in planes]


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--detections", type=int, default=100, help="an image (default: %(default)s)")
    args = parser.parse_args()
    if find_spec("pycocotools") is None:
        print("mask_output: the competitor needs pycocotools, which is not installed", file=sys.stderr)
        return 2
    height, width, rounds = (240, 360, 3) if args.quick else (800, 1200, 15)
    cpu = torch.device("cpu")
    masks, boxes = draw_detections(args.detections, height, width, args.seed)
    side = (boxes[:, 2:] - boxes[:, :2]).flatten()
    quartiles = torch.quantile(side, torch.tensor([0, 0.25, 0.5, 0.75, 1])).round().int().tolist()
    pixels = (paste_masks_in_image(masks[:, None], boxes, (height, width)) > 0.5).sum().item()
    share = pixels / (args.detections * height * width)
    print_settings(
        "mask_output", cpu, image=f"{height} x {width}", detections=args.detections, seed=args.seed, rounds=rounds,
        box_sides=f"{quartiles} pixels (smallest, quartiles, largest)", image_filled_by_a_mask=f"{share:.2%}",
    )  # fmt: skip
    timings = time_in_turn(
        {
            "full_images": lambda: paste_full_images(masks, boxes, height, width),
            "inside_boxes": lambda: paste_and_encode(masks, boxes, height, width),
        },
        rounds,
    )
    theirs, ours = timings["full_images"], timings["inside_boxes"]
    identical = paste_full_images(masks, boxes, height, width) == paste_and_encode(masks, boxes, height, width)
    ratio, spread = quotient(theirs, ours)
    print(f"full images (torchvision, pycocotools): {theirs.text}")
    print(f"inside boxes (ours):                    {ours.text}: {ratio:.1f} times faster; same bits: {identical}")
    print_result(
        "mask_output", cpu, ratio=ratio, ratio_spread=spread, identical=identical, **milliseconds(**timings),
        detections=args.detections, height=height, width=width, seed=args.seed,
    )  # fmt: skip
    return 0 if identical else 1


if __name__ == "__main__":
    sys.exit(main())
