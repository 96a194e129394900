"""RoIs on images whose masks are known pixel by pixel, and their MaskIoUs from these."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from msrcnn.config import MaskIoUConfig
from msrcnn.maskiou_targets import MaskIoUTargets, MatchedRoIs, targets_of, true_maskious
from msrcnn.masks import pack_crops, sample_on_rois
from msrcnn.structures import Batch, Targets

SIDE, BINS, CLASSES = 96, 28, 6
SCALES, FLIPPED = (1.0, 2.0), (False, True)  # the second image is twice as large in the network, and mirrored


def tight(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def overlap(a: tuple[int, ...], b: tuple[int, ...]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(w, 0) * max(h, 0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def maskiou_targets(
    config: MaskIoUConfig, logits: Tensor, coverage: Tensor, rois: MatchedRoIs, batch: Batch, truth: Targets
) -> MaskIoUTargets:
    """Training targets of a single MaskIoU head."""
    return targets_of(config, true_maskious(logits, coverage, rois, batch, truth, config.target != 1), rois)


class Scene:
    """Images of known dense masks, and RoIs of 28 x 28 image pixels, so that a bin is a pixel and all is exact."""

    def __init__(self, masks: list[np.ndarray], labels: list[list[int]], corners: list[list[tuple[int, int]]]) -> None:
        """Masks as the network sees them (bool [g, SIDE, SIDE] an image), their labels, x and y of the RoIs."""
        self.masks, self.labels = masks, labels
        count, slots = len(masks), max(map(len, masks)) + 1  # at least one slot is empty
        boxes, crops = torch.zeros(count, slots, 4), []
        numbers, areas = torch.zeros(count, slots, dtype=torch.int64), torch.zeros(count, slots)
        for b, (found, flip) in enumerate(zip(masks, FLIPPED, strict=False)):
            stored = found[:, :, ::-1] if flip else found
            crops.append([(m[y:bottom, x:right].astype(np.uint8), (x, y, right - x, bottom - y))
                          for m in stored for x, y, right, bottom in [tight(m)]])  # fmt: skip
            for g, mask in enumerate(found):
                boxes[b, g] = torch.tensor(tight(mask)) * SCALES[b]
                numbers[b, g], areas[b, g] = labels[b][g], float(mask.sum())
        scales = torch.tensor(SCALES[:count])[:, None]
        self.truth = Targets(boxes, numbers, areas, pack_crops(crops, slots))
        self.batch = Batch(
            torch.zeros(count, 3, 1, 1, dtype=torch.uint8), scales * SIDE + torch.zeros(count, 2),
            torch.full((count, 2), float(SIDE)), torch.tensor(FLIPPED[:count]),
            torch.arange(count), torch.zeros(count, dtype=torch.int64),
        )  # fmt: skip
        self.where = [(b, (x, y, x + BINS, y + BINS)) for b, at in enumerate(corners) for x, y in at]
        best = [max(range(len(labels[b])), key=lambda g: overlap(box, tight(masks[b][g]))) for b, box in self.where]
        self.rois = MatchedRoIs(
            torch.stack([torch.tensor(box) * SCALES[b] for b, box in self.where]),
            torch.tensor([labels[b][g] for (b, _), g in zip(self.where, best, strict=True)]),
            torch.tensor(best),
            torch.tensor([b for b, _ in self.where]),
        )

    def coverage(self) -> Tensor:
        rois = self.rois
        return sample_on_rois(self.truth.masks, self.batch, rois.images, rois.instances, rois.boxes, BINS)

    def targets(self, config: MaskIoUConfig, logits: Tensor) -> MaskIoUTargets:
        return maskiou_targets(config, logits, self.coverage(), self.rois, self.batch, self.truth)

    def slow(self, logits: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """MaskIoU and presence of each class in each RoI, from dense masks and the boxes around them: [N, K] each."""
        values, present = np.zeros(logits.shape[:2]), np.zeros(logits.shape[:2], bool)
        for n, (b, box) in enumerate(self.where):
            x, y, right, bottom = box
            for k in range(logits.shape[1]):
                of_class = [g for g, label in enumerate(self.labels[b]) if label == k + 1]
                if not of_class:
                    continue
                nearest = max(of_class, key=lambda g: overlap(box, tight(self.masks[b][g])))
                whole = self.masks[b][nearest]
                predicted = np.zeros_like(whole)
                predicted[y:bottom, x:right] = (logits[n, k] > 0).numpy()
                own = k + 1 == self.rois.labels[n]
                present[n, k] = own or whole[y:bottom, x:right].any()
                if present[n, k]:
                    values[n, k] = (predicted & whole).sum() / (predicted | whole).sum()
        return values, present


def random_scene(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    masks = []
    for count in (9, 6):
        centres, radii = rng.uniform(20, SIDE - 20, (count, 2)), rng.uniform(5, 24, (count, 2))
        masks.append(np.stack([((y - c[0]) / r[0]) ** 2 + ((x - c[1]) / r[1]) ** 2 <= 1
                               for c, r in zip(centres, radii, strict=True)]))  # fmt: skip
    labels = [rng.integers(1, CLASSES, len(m)).tolist() for m in masks]  # the last class is nowhere
    corners = [[tuple(at) for at in rng.integers(5, SIDE - BINS - 5, (12, 2)).tolist()] for _ in masks]
    return Scene(masks, labels, corners)


def logits_of(scene: Scene, seed: int = 0) -> Tensor:
    """Blobs that differ from class to class."""
    rough = torch.randn(len(scene.where), CLASSES, 7, 7, generator=torch.Generator().manual_seed(seed)) + 0.3
    return torch.nn.functional.interpolate(rough, size=(BINS, BINS), mode="bilinear")
