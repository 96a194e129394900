"""R50-FPN with a torchvision Mask R-CNN's weights finds what torchvision finds on the same padded images.

Two programs round otherwise, so that an overlap may be on one side of NMS's threshold here and on the other there, and
two scores in one order here and in the other there. `undecided` finds the candidates whose fate hangs on that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import expand_boxes, paste_masks_in_image
from torchvision.ops import box_iou

from msrcnn.config import DataConfig, SelectionConfig
from msrcnn.data.batching import make_batch
from msrcnn.data.shapes import draw_image
from msrcnn.data.shapes_config import ShapesConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.masks import paste_and_encode
from msrcnn.presets import PRESETS
from msrcnn.pretrained import load_weights
from msrcnn.rows import ImageTruth
from msrcnn.soft_nms import Selected, soft_nms
from msrcnn.structures import Batch, Detections

CLASSES = 90
SCORE, IOU = 0.05, 0.5
"""torchvision's score threshold and NMS threshold."""
PIXELS, SCORES = 1e-2, 1e-4
"""How near boxes and scores are to be."""


def same_boxes(ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
    """Where the same boxes are in ours [N, 4] and in theirs [M, 4], each at most once: two index lists."""
    nearest, index = torch.cdist(theirs, ours, p=float("inf")).min(1)  # [M]
    back = torch.cdist(ours, theirs, p=float("inf")).argmin(1)  # [N]
    same = (nearest <= PIXELS) & (back[index] == torch.arange(len(theirs)))
    return index[same], torch.where(same)[0]


@dataclass(frozen=True)
class Side:
    """What selection chooses from in one image, by one of the two programs: boxes [P, K, 4] and scores [P, K]."""

    boxes: Tensor
    scores: Tensor

    def decisions(self, part: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All that NMS could ask of the candidates `part` [N] of class k.

        Returns:
            Which overlap too much, surely and perhaps, and of which row is better than column, surely and perhaps.
        """
        overlap, s = box_iou(self.boxes[part, k], self.boxes[part, k]), self.scores[part, k]
        other = ~torch.eye(len(part), dtype=torch.bool)
        over, near = (overlap > IOU) & other, ((overlap - IOU).abs() < 1e-6) & other
        return over & ~near, over | near, s[:, None] > s, (s[:, None] >= s) & other


def undecided(ours: Side, theirs: Side) -> Tensor:
    """Candidates, bool [P, K], of which NMS may keep one of two neighbours here and the other there.

    By the decisions on which both sides agree, a candidate is surely kept (each better one that may overlap it is
    surely dropped), surely dropped (a surely kept better one overlaps it), or neither.
    """
    unsure = torch.zeros_like(ours.scores, dtype=torch.bool)
    for k in range(unsure.shape[1]):
        above, above_ = ours.scores[:, k] > SCORE, theirs.scores[:, k] > SCORE
        part = torch.where(above | above_)[0]
        pairs = list(zip(ours.decisions(part, k), theirs.decisions(part, k), strict=True))
        over, better = pairs[0][0] & pairs[0][1], pairs[2][0] & pairs[2][1]
        perhaps_over, perhaps_better = pairs[1][0] | pairs[1][1], pairs[3][0] | pairs[3][1]
        beats, may_beat = (over & better).float(), (perhaps_over & perhaps_better).float()  # [N, N]: row, column
        certain = (above & above_)[part]
        kept = dropped = torch.zeros_like(certain)
        for _ in range(len(part)):
            before = kept, dropped
            kept = certain & (may_beat.T @ (~dropped).float() == 0)
            dropped = beats.T @ kept.float() > 0
            if torch.equal(before[0], kept) and torch.equal(before[1], dropped):
                break
        unsure[part, k] = ~kept & ~dropped
    return unsure


def check_masks(ours: tuple[Tensor, Tensor], theirs: dict[str, Tensor], height: int, width: int) -> None:
    """Masks [N, 28, 28] pasted into their boxes [N, 4] at the size of the image overlap by 0.999 or more.

    Pasting cuts corners of boxes down to whole pixels. Where ours and theirs are on two sides of one, both masks are
    pasted into the same box. In a mask under 1000 pixels one pixel may differ.
    """
    masks, boxes = ours
    scale = (masks.shape[-1] + 2) / masks.shape[-1]
    same = (expand_boxes(boxes, scale).long() == expand_boxes(theirs["boxes"], scale).long()).all(1)  # [N]
    assert same.float().mean() > 0.9
    rles = paste_and_encode(masks, boxes.where(same[:, None], theirs["boxes"]), height, width)
    found = coco_mask.decode([{"size": [height, width], "counts": rle} for rle in rles]).astype(bool)  # [H, W, N]
    want = (paste_masks_in_image(theirs["masks"], theirs["boxes"], (height, width))[:, 0] > 0.5).numpy()  # [N, H, W]
    want = want.transpose(1, 2, 0)
    both, either = (found & want).sum((0, 1)), (found | want).sum((0, 1))
    assert (either > 0).mean() > 0.9
    assert (either - both <= np.maximum(0.001 * either, 1)).all()


def paired(ours: Side, theirs: Side, mine: Tensor, other: Tensor) -> tuple[Side, Side]:
    """Both sides in the same order: rows `mine` and `other` belong together, the rest scores 0 on the other side."""
    lone = [torch.ones(len(side.scores), dtype=torch.bool) for side in (ours, theirs)]
    lone[0][mine], lone[1][other] = False, False
    alone = [Side(side.boxes[rows], side.scores[rows]) for side, rows in zip((ours, theirs), lone, strict=True)]
    boxes, zeros = [side.boxes for side in alone], [torch.zeros_like(side.scores) for side in alone]
    return (
        Side(torch.cat([ours.boxes[mine], *boxes]), torch.cat([ours.scores[mine], alone[0].scores, zeros[1]])),
        Side(torch.cat([theirs.boxes[other], *boxes]), torch.cat([theirs.scores[other], zeros[0], alone[1].scores])),
    )


def among(detections: dict[str, Tensor], side: Side, candidates: Tensor) -> Tensor:
    """Which detections, bool [D], are of these candidates, bool [P, K]."""
    row, k = torch.where(candidates)
    same = torch.cdist(detections["boxes"], side.boxes[row, k], p=float("inf")) <= PIXELS
    return (same & (detections["labels"][:, None] == k + 1)).any(1)


def check_image(
    found: Detections, b: int, theirs: dict[str, Tensor], sides: tuple[Side, Side], size: tuple[int, int]
) -> None:
    """Compares one image's detections but for the undecided ones.

    Scores nearer than the tolerance may change places at the cut after the last detection, and as many detections
    as were left out may be missing or new above it.
    """
    ours = {"boxes": found.boxes[b], "labels": found.labels[b], "scores": found.class_scores[b]}
    ours = {name: values[found.valid[b]] for name, values in ours.items()}
    unsure = undecided(*sides)
    out = [among(detections, side, unsure) for detections, side in zip((ours, theirs), sides, strict=True)]
    masks = found.masks[b, found.valid[b]]
    left_out = max(int(o.sum()) for o in out)
    full = len(theirs["scores"]) == len(found.valid[b])
    last = theirs["scores"][-1 - left_out] if full else 0.0
    mine, other = (torch.where((d["scores"] > last) & ~o)[0] for d, o in zip((ours, theirs), out, strict=True))
    at, where = same_boxes(ours["boxes"][mine], theirs["boxes"][other])
    for detections, rows, matched in ((ours, mine, at), (theirs, other, where)):
        alone = torch.ones(len(rows), dtype=torch.bool).index_fill(0, matched, False)
        assert (detections["scores"][rows[alone]] <= last + SCORES).all()
    assert len(at) >= 0.9 * len(theirs["scores"])
    mine, other = mine[at], other[where]
    assert torch.equal(ours["labels"][mine], theirs["labels"][other])
    torch.testing.assert_close(ours["scores"][mine], theirs["scores"][other], rtol=0, atol=SCORES)
    theirs = {name: values[other] for name, values in theirs.items()}
    check_masks((masks[mine], ours["boxes"][mine]), theirs, *size)


def check_parity(
    reference: Any, batches: list[Batch], proposals: int, detections: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares proposals, class probabilities, refined boxes and detections on each batch."""
    torch.save(reference.model.state_dict(), path)
    preset = PRESETS["r50-fpn"].model
    torch.manual_seed(1)
    ours = MaskScoringRCNN(replace(
        preset, num_classes=CLASSES, rpn=replace(preset.rpn, test_proposals=proposals),
        selection=SelectionConfig(method="hard", iou_threshold=IOU, score_threshold=SCORE, top_k=detections),
    )).eval()  # fmt: skip
    report = load_weights(ours, str(path), [f"category {k}" for k in range(1, CLASSES + 1)])
    assert not report.left_over
    assert {name.split(".")[0] for name in report.missing} == {"maskiou"}
    seen: list[tuple[Tensor, Tensor]] = []

    def select(boxes: Tensor, scores: Tensor, config: SelectionConfig) -> Selected:
        seen.append((boxes.transpose(1, 2), scores.transpose(1, 2)))  # [B, R, K, 4], [B, R, K]
        return soft_nms(boxes, scores, config)

    propose, proposed = ours.rpn.propose, []
    monkeypatch.setattr("msrcnn.detector.soft_nms", select)
    monkeypatch.setattr(ours.rpn, "propose", lambda *a: proposed.append(propose(*a)) or proposed[-1])
    for batch in batches:
        want = reference.find(batch)
        found = ours(batch)
        boxes, scores = seen.pop()
        for b, theirs in enumerate(want.detections):
            assert len(theirs["boxes"]) > detections // 2
            assert theirs["scores"].std() > 0.02
            used = torch.where(proposed[-1].valid[b])[0]
            mine, other = same_boxes(proposed[-1].boxes[b, used], want.proposals[b])
            # RPN's NMS and its cut decide by overlaps and scores as well.
            assert len(mine) >= 0.99 * max(len(used), len(want.proposals[b]))
            sides = Side(boxes[b, used], scores[b, used]), Side(want.refined[b], want.scores[b])
            torch.testing.assert_close(sides[0].scores[mine], sides[1].scores[other], rtol=0, atol=SCORES)
            torch.testing.assert_close(sides[0].boxes[mine], sides[1].boxes[other], rtol=0, atol=PIXELS)
            height, width = (int(side) for side in batch.sizes[b])
            check_image(found, b, theirs, paired(*sides, mine, other), (height, width))


def test_two_small_images(make_reference: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = [(128, 160), (100, 131)]
    images = torch.zeros(2, 3, 128, 160, dtype=torch.uint8)
    for b, (h, w) in enumerate(sizes):
        pixels, _ = draw_image(ShapesConfig(size=160), "train", b)
        images[b, :, :h, :w] = torch.from_numpy(pixels[:h, :w]).permute(2, 0, 1)
    size = torch.tensor(sizes).float()
    batch = Batch(images, size, size, torch.zeros(2, dtype=torch.bool), torch.arange(2), torch.arange(2))
    reference = make_reference(batch, CLASSES, proposals=100, detections=20)
    check_parity(reference, [batch], 100, 20, tmp_path / "mask_rcnn.pth", monkeypatch)


def coco_batches(folder: Path, images: int, size: int, data: DataConfig) -> Iterator[Batch]:
    entries = json.loads((folder / "annotations" / "instances_val2017.json").read_text())["images"][:images]
    empty: Callable[..., np.ndarray] = np.zeros
    for start in range(0, len(entries), size):
        part = entries[start : start + size]
        truths = [
            ImageTruth(e["id"], e["height"], e["width"], empty(0), empty(0), empty((0, 4)), empty(0), empty(0), [])
            for e in part
        ]
        yield make_batch([(folder / "val2017" / e["file_name"]).read_bytes() for e in part], truths, data)


@pytest.mark.slow
def test_eight_images_of_coco(
    make_reference: Callable[..., Any], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the paper's size; the reference's layers are fitted to the same images, resized to less."""
    folder, path = data_dir / "coco_sample", tmp_path / "mask_rcnn.pth"
    (small,) = coco_batches(folder, 8, 8, DataConfig(short_side=256, long_side=427))
    reference = make_reference(small, CLASSES, proposals=1000, detections=100)
    batches = list(coco_batches(folder, 8, 2, DataConfig(short_side=800, long_side=1333)))
    check_parity(reference, batches, 1000, 100, path, monkeypatch)
