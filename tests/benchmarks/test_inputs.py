"""What benchmarks feed both sides, and that a difference between the sides is noticed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pycocotools.mask as coco_mask
import pytest
import torch

from benchmarks import head_cost, mask_output
from benchmarks.images import INSTANCES, busy, draw_sample, full_image_masks, samples, training_batch
from benchmarks.train_sides import dense_batch
from msrcnn.config import DataConfig
from msrcnn.data.batching import decode_image
from msrcnn.masks import sample_on_rois
from msrcnn.presets import PRESETS


def test_drawn_images_are_what_their_instances_say() -> None:
    images = [draw_sample(i, 3) for i in range(4)]
    for image_id, (encoded, truth) in enumerate(images):
        assert decode_image(encoded, truth.height, truth.width, "drawn").size == (truth.width, truth.height)
        assert INSTANCES[0] <= len(truth.rles) <= INSTANCES[1]
        masks = full_image_masks(truth).numpy()
        rles = [{"size": [truth.height, truth.width], "counts": rle} for rle in truth.rles]
        assert np.array_equal(masks, coco_mask.decode(rles).transpose(2, 0, 1))
        assert np.array_equal(masks.sum((1, 2)), truth.areas)
        assert np.array_equal(coco_mask.toBbox(rles)[:, :2], truth.boxes[:, :2])
        assert draw_sample(image_id, 3)[0] == encoded
    assert images[0][0] != images[1][0]
    assert draw_sample(0, 4)[0] != images[0][0]


def test_some_images_stand_where_lying_ones_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MSRCNN_DATA", raising=False)
    mixed, landscape = (samples(8, 0, landscape=landscape)[0] for landscape in (False, True))
    assert sum(truth.height > truth.width for _, truth in mixed) == 2
    assert all(truth.height < truth.width for _, truth in landscape)
    for encoded, truth in mixed[:2]:
        assert decode_image(encoded, truth.height, truth.width, "drawn").size == (truth.width, truth.height)
        rles = [{"size": [truth.height, truth.width], "counts": rle} for rle in truth.rles]
        assert np.array_equal(coco_mask.area(rles), truth.areas)


def test_both_sides_of_the_train_step_have_the_same_instances() -> None:
    """A mask of torchvision's, averaged over 4 x 4 parts of its box, against ours sampled there."""
    chosen = [draw_sample(i, 0) for i in range(2)]
    batch = training_batch(chosen, DataConfig(384, 640, flip=False), 0)
    assert batch.targets is not None
    images, targets = dense_batch(chosen, batch)
    for b, (image, target) in enumerate(zip(images, targets, strict=True)):
        h, w = image.shape[1:]
        assert torch.equal((image * 255).round().to(torch.uint8), batch.images[b, :, :h, :w])
        assert target["masks"].shape == (len(chosen[b][1].rles), h, w)
        for g, (box, mask) in enumerate(zip(target["boxes"], target["masks"], strict=True)):
            x0, y0, x1, y1 = box.round().int().tolist()
            if x1 - x0 < 40 or y1 - y0 < 40:
                continue
            theirs = torch.nn.functional.adaptive_avg_pool2d(mask[None, y0:y1, x0:x1].float(), 4)
            at, slot = torch.tensor([b]), torch.tensor([g])
            ours = sample_on_rois(batch.targets.masks, batch, at, slot, box[None], 4, points=16)
            assert (theirs - ours).abs().mean() < 0.06  # boxes rounded to pixels
            assert 0.6 < ours.mean() < 0.9  # an ellipse fills pi / 4 of its box


@pytest.mark.parametrize("wrong", [False, True])
def test_mask_output_fails_where_the_bits_differ(monkeypatch: pytest.MonkeyPatch, wrong: bool) -> None:
    def paste(masks: torch.Tensor, boxes: torch.Tensor, height: int, width: int) -> list[bytes]:
        return mask_output.paste_full_images(masks if not wrong else masks.roll(1, 2), boxes, height, width)

    monkeypatch.setattr(mask_output, "paste_and_encode", paste)
    monkeypatch.setattr("sys.argv", ["mask_output", "--quick", "--detections", "5"])
    assert mask_output.main() == int(wrong)


def test_head_cost_compares_two_detectors_that_differ_in_the_maskiou_head_alone() -> None:
    """The demo's model at 160 pixels; a changed weight is noticed, unless it is in the MaskIoU head."""
    config = busy(PRESETS["demo"].model, 64)
    config = replace(config, num_classes=80, selection=replace(config.selection, top_k=20))
    full, plain = head_cost.make_models(config, 0, torch.device("cpu"))
    batch = training_batch([draw_sample(0, 0)], DataConfig(160, 224, flip=False), 0)
    assert head_cost.same_results(full, plain, batch)
    assert "maskiou" not in head_cost.step(plain, batch)
    assert not any(name.startswith("maskiou.") for name in plain.state_dict())
    work = [head_cost.multiply_accumulates(lambda m=m: head_cost.detect(m, batch)) for m in (full, plain)]
    assert work[0] - work[1] == maskiou_multiply_accumulates(64, 256, 80) * 20
    with torch.no_grad():
        full.maskiou.iou.weight.add_(1)
    assert head_cost.same_results(full, plain, batch)
    with torch.no_grad():
        full.mask.logits.weight.mul_(1.01)
    assert not head_cost.same_results(full, plain, batch)


def maskiou_multiply_accumulates(channels: int, hidden: int, classes: int) -> int:
    """Of one RoI: three 3x3 convolutions on 14x14, one of stride 2, three fully connected layers."""
    on_14 = (channels + 1 + 2 * channels) * channels * 9 * 14 * 14
    on_7 = channels * channels * 9 * 7 * 7
    return on_14 + on_7 + channels * 49 * hidden + hidden * hidden + hidden * classes
