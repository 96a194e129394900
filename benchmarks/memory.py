"""Bytes of ground-truth masks: ragged crops against a dense [instances, height, width] tensor.

The image is the one of the `nuclei` data with the most instances. Ours is the batch as `make_batch` gives it: the crop
of each instance's box at image resolution, with offsets and crop boxes of all slots. The competitor is what
torchvision's detection references put on the device: uint8 masks of the whole image, which
`GeneralizedRCNNTransform` resizes to the network's input (not padded: torchvision pads images only). Each way also
runs in a process of its own, whose peak memory is compared with that of a process that loads the image alone.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import torch
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from benchmarks.images import Sample, data_folder, full_image_masks, read_truth, training_batch
from benchmarks.measuring import parser_of, peak_memory, print_result, print_settings
from msrcnn.backbones import IMAGE_MEAN, IMAGE_STD
from msrcnn.config import DataConfig
from msrcnn.data.batching import decode_image, make_batch
from msrcnn.data.coco import read_coco
from msrcnn.presets import PRESETS

WAYS = ("image", "ragged", "dense")
"""What a process loads: the image alone, or the image with its masks in one of two ways."""


def densest_image(root: Path) -> Sample:
    """The image of the data set (both splits) with the most instances."""
    found = []
    for split in ("train", "val"):
        dataset = read_coco(root / "annotations" / f"instances_{split}.json")
        numbers = {category.source_id: i for i, category in enumerate(dataset.categories, start=1)}
        record = max(dataset.images, key=lambda r: len(r.annotations))
        found.append((len(record.annotations), split, record, numbers))
    _, split, record, numbers = max(found, key=lambda f: f[0])
    return (root / split / record.file_name).read_bytes(), read_truth(record, numbers)


def ragged_bytes(sample: Sample, data: DataConfig) -> int:
    """Bytes of the masks in the batch of this image."""
    targets = training_batch([sample], data, 0).targets
    assert targets is not None
    return sum(t.numel() * t.element_size() for t in vars(targets.masks).values())


def dense_shape(sample: Sample, data: DataConfig) -> tuple[int, ...]:
    """Shape of the masks behind torchvision's transform, uint8: [G, height, width]."""
    encoded, truth = sample
    pixels = torch.frombuffer(
        bytearray(decode_image(encoded, truth.height, truth.width, "image").tobytes()), dtype=torch.uint8
    )
    image = pixels.view(truth.height, truth.width, 3).permute(2, 0, 1).float() / 255  # [3, H, W]
    target = {"boxes": torch.from_numpy(truth.boxes), "masks": full_image_masks(truth)}
    transform = GeneralizedRCNNTransform(data.short_side, data.long_side, list(IMAGE_MEAN), list(IMAGE_STD))
    _, targets = transform([image], [target])
    assert targets is not None
    assert targets[0]["masks"].dtype == torch.uint8
    return tuple(targets[0]["masks"].shape)


def load(way: str, sample: Sample, data: DataConfig) -> int:
    """Loads the image in one of `WAYS`; the process's peak memory."""
    encoded, truth = sample
    if way == "ragged":
        ragged_bytes(sample, data)
    else:
        make_batch([encoded], [truth], data)
        if way == "dense":
            dense_shape(sample, data)
    return peak_memory()


def peak_in_own_process(way: str, sample: Sample, data: DataConfig) -> int:
    """`load` in a fresh process of one thread; it is handed the image, so that reading JSON is no part of its peak."""
    command = [sys.executable, "-m", "benchmarks.memory", "--load", way]
    command += ["--short-side", str(data.short_side), "--long-side", str(data.long_side)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, input=pickle.dumps(sample), stdout=subprocess.PIPE, env=environment)
    return int(done.stdout)


def megabytes(count: float) -> str:
    """A number of bytes for a reader."""
    return f"{count / 1e6:.2f} MB"


def main() -> int:
    parser = parser_of(__doc__ or "")
    parser.add_argument("--short-side", type=int, default=PRESETS["r50-fpn"].data.short_side)
    parser.add_argument("--long-side", type=int, default=PRESETS["r50-fpn"].data.long_side)
    parser.add_argument("--load", choices=WAYS, help="what a process of its own does")
    args = parser.parse_args()
    data = DataConfig(320, 512) if args.quick else DataConfig(args.short_side, args.long_side)
    if args.load:
        print(load(args.load, pickle.load(sys.stdin.buffer), data))
        return 0
    folder = data_folder()
    if folder is None:
        print("memory: set MSRCNN_DATA to the folder that holds nuclei/", file=sys.stderr)
        return 2
    sample = densest_image(folder / "nuclei")
    truth = sample[1]
    count, cpu = len(truth.rles), torch.device("cpu")
    print_settings("memory", cpu, image=f"{truth.height} x {truth.width}, {count} instances",
                   network_input=f"short side {data.short_side}, long side at most {data.long_side}")  # fmt: skip
    ours, shape = ragged_bytes(sample, data), dense_shape(sample, data)
    at_image, at_network = count * truth.height * truth.width, shape[0] * shape[1] * shape[2]
    print(f"ragged masks:               {megabytes(ours)}")
    print(f"dense at image resolution:   {megabytes(at_image)}, {at_image / ours:.0f} times")
    print(f"dense at network resolution: {megabytes(at_network)} {list(shape)}, {at_network / ours:.0f} times")
    peaks = {way: peak_in_own_process(way, sample, data) for way in WAYS}
    above = {way: max(peaks[way] - peaks["image"], 0) for way in WAYS[1:]}
    for way, extra in above.items():
        print(f"peak of a process with {way} masks: {megabytes(peaks[way])}, {megabytes(extra)} above the image's")
    print_result(
        "memory", cpu, ratio=at_network / ours, ratio_at_image_resolution=at_image / ours, ragged_bytes=ours,
        dense_bytes=at_network, dense_bytes_at_image_resolution=at_image, dense_shape=list(shape),
        peak_bytes_image=peaks["image"], peak_bytes_above_ragged=above["ragged"],
        peak_bytes_above_dense=above["dense"], instances=count, short_side=data.short_side, long_side=data.long_side,
    )  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main())
