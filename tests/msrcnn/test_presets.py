"""The presets are the paper's settings."""

from __future__ import annotations

import dataclasses
import json

import pytest

from msrcnn.config import model_config_from_dict, to_dict
from msrcnn.errors import InputError
from msrcnn.presets import PRESETS, find_preset


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_of_every_preset(name: str) -> None:
    model = find_preset(name).model
    plain = json.loads(json.dumps(to_dict(model)))
    assert plain == to_dict(model)  # nothing but what JSON holds
    assert model_config_from_dict(plain) == model


def test_the_papers_row() -> None:
    """Section 4.1 and Table 1, first row."""
    preset = find_preset("r18-fpn")
    assert (preset.data.short_side, preset.data.long_side) == (600, 1000)
    assert preset.model.levels == (4, 5)
    assert (preset.model.roi.samples, preset.model.roi.positive_samples) == (512, 128)
    assert (preset.model.maskiou.input, preset.model.maskiou.target, preset.model.maskiou.tau) == ("a", 1, 0.0)
    selection = preset.model.selection
    assert (selection.method, selection.sigma, selection.score_threshold, selection.top_k) == (
        "gaussian", 0.6, 0.001, 100)  # fmt: skip
    assert (preset.solver.epochs, preset.solver.decay_epochs, preset.solver.batch) == (18, (14, 17), 16)
    assert (preset.solver.lr, preset.solver.weight_decay, preset.solver.momentum) == (0.02, 1e-4, 0.9)


@pytest.mark.parametrize(
    ("name", "backbone", "deformable"),
    [("r50-fpn", "resnet50", False), ("r101-fpn", "resnet101", False), ("r101-dcn-fpn", "resnet101", True)],
)
def test_the_papers_larger_rows(name: str, backbone: str, deformable: bool) -> None:
    """Section 4.1, Tables 1 and 2; anchors and levels of FPN (Lin et al., section 4.1)."""
    preset = find_preset(name)
    assert (preset.model.backbone, preset.model.deformable) == (backbone, deformable)
    assert (preset.data.short_side, preset.data.long_side) == (800, 1333)
    assert preset.model.levels == (2, 3, 4, 5)
    assert preset.model.anchor_sizes == ((32,), (64,), (128,), (256,), (512,))


def test_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(InputError, match=r"r99.*r18-fpn.*demo"):
        find_preset("r99")


@pytest.mark.parametrize("name", PRESETS)
def test_with_a_head_for_ap_the_detector_is_the_same(name: str) -> None:
    """So that a finished run's weights fit; docs/results.md has what the head is worth."""
    plain, better = find_preset(name), find_preset(name + "+ap")
    assert better.data == plain.data
    maskiou = better.model.maskiou
    assert (better.model.trained, maskiou.goal, maskiou.power) == ("maskiou", "ap", 2.0)
    assert dataclasses.replace(better.model, trained="all", maskiou=plain.model.maskiou) == plain.model
    assert better.solver.epochs == plain.solver.epochs
    assert better.solver.lr >= 4 * plain.solver.lr  # what a head alone needs
    with pytest.raises(InputError, match=r"r99\+ap: no such preset; there are r18-fpn.*each with \+ap"):
        find_preset("r99+ap")


def test_the_row_without_a_pyramid() -> None:
    """Tables 2 and 3, first rows: C4 alone with five octaves of anchors, res5 in the heads."""
    preset = find_preset("r101-c4")
    assert (preset.model.backbone, preset.model.neck, preset.model.levels) == ("resnet101", "none", (4,))
    assert preset.model.anchor_sizes == ((32, 64, 128, 256, 512),)
    assert (preset.data.short_side, preset.data.long_side) == (800, 1333)


def test_presets_cannot_be_changed_in_place() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(PRESETS["demo"], "data", None)  # noqa: B010


def test_the_laptops_presets_differ_in_what_they_begin_with() -> None:
    """`small` fine-tunes ImageNet weights under frozen BatchNorm, `demo` begins from nothing; heads are the same."""
    small, demo = find_preset("small").model, find_preset("demo").model
    assert (small.norm, small.frozen_stages, demo.norm, demo.frozen_stages) == ("frozen_bn", 2, "group_norm", 0)
    same = ("levels", "anchor_sizes", "channels", "hidden", "rpn", "roi", "maskiou", "selection")
    assert [name for name in same if getattr(small, name) != getattr(demo, name)] == []
