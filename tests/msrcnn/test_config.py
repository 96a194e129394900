"""Configuration: what is refused and how, the round trip through plain values, and cheap imports."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from msrcnn.config import (
    DataConfig,
    MaskIoUConfig,
    ModelConfig,
    RoIConfig,
    RPNConfig,
    SelectionConfig,
    SolverConfig,
    difference,
    model_config_from_dict,
    to_dict,
    with_defaults,
    without_defaults,
)
from msrcnn.errors import InputError
from msrcnn.maskiou_config import plain_name
from msrcnn.presets import PRESETS

NAN = float("nan")
REFUSED: list[tuple[Callable[..., Any], str, str, list[Any]]] = [
    (RPNConfig, "rpn", "positive_iou", [0, 1.1, NAN]),
    (RPNConfig, "rpn", "negative_iou", [-0.1, 0.8, NAN]),
    (RPNConfig, "rpn", "nms_iou", [0.0, 1.01]),
    (RPNConfig, "rpn", "samples", [0, -3]),
    (RPNConfig, "rpn", "train_proposals", [0]),
    (RPNConfig, "rpn", "test_proposals", [0]),
    (RPNConfig, "rpn", "candidates", [0]),
    (RoIConfig, "roi", "samples", [0]),
    (RoIConfig, "roi", "positive_fraction", [0, 1.5]),
    (RoIConfig, "roi", "positive_iou", [0, 1.5]),
    (MaskIoUConfig, "maskiou", "input", ["g", "A", ""]),
    (MaskIoUConfig, "maskiou", "target", [0, 4, "1"]),
    (MaskIoUConfig, "maskiou", "tau", [-1.1, 1.0, NAN]),
    (MaskIoUConfig, "maskiou", "rois", ["all", ""]),
    (MaskIoUConfig, "maskiou", "unmatched", ["one", ""]),
    (MaskIoUConfig, "maskiou", "loss", ["l3", "L2"]),
    (MaskIoUConfig, "maskiou", "goal", ["ap", "AP", "score"]),
    (MaskIoUConfig, "maskiou", "power", [-1.0, float("inf"), NAN]),
    (MaskIoUConfig, "maskiou", "weight", [-1.0, NAN]),
    (SelectionConfig, "selection", "method", ["soft", "nms"]),
    (SelectionConfig, "selection", "iou_threshold", [0.0, 1.1, NAN]),
    (SelectionConfig, "selection", "sigma", [0, -1.0]),
    (SelectionConfig, "selection", "score_threshold", [-0.1, 1.0]),
    (SelectionConfig, "selection", "top_k", [0]),
    (ModelConfig, "model", "backbone", ["resnet19", "vgg16"]),
    (ModelConfig, "model", "norm", ["batch_norm"]),
    (ModelConfig, "model", "neck", ["pan", "none"]),
    (ModelConfig, "model", "trained", ["box"]),
    (ModelConfig, "model", "levels", [(), (5, 4), (2, 4), (1, 2), (5, 6), (4, 4)]),
    (ModelConfig, "model", "anchor_sizes", [((32,),) * 4, ((32,),), ((32,), (64, 128)), ((), ())]),
    (ModelConfig, "model", "frozen_stages", [-1, 6]),
    (ModelConfig, "model", "channels", [0]),
    (ModelConfig, "model", "hidden", [0]),
    (ModelConfig, "model", "num_classes", [0]),
    (SolverConfig, "solver", "epochs", [0]),
    (SolverConfig, "solver", "decay_epochs", [(17, 14), (14, 14), (0, 3), (-1,)]),
    (SolverConfig, "solver", "batch", [0]),
    (SolverConfig, "solver", "lr", [0, -0.1, NAN]),
    (SolverConfig, "solver", "momentum", [-0.1, 1.0]),
    (SolverConfig, "solver", "weight_decay", [-1e-4]),
    (SolverConfig, "solver", "warmup_steps", [-1]),
    (SolverConfig, "solver", "warmup_factor", [0, 1.1]),
    (SolverConfig, "solver", "clip_norm", [-1.0]),
    (SolverConfig, "solver", "precision", ["float16", "bf16"]),
    (SolverConfig, "solver", "seed", [-1]),
    (DataConfig, "data", "short_side", [31]),
    (DataConfig, "data", "long_side", [599]),
    (DataConfig, "data", "short_sides", [(31,), (600, 1001), (600, 480, 600)]),
]
CASES = [(make, part, name, value) for make, part, name, values in REFUSED for value in values]


@pytest.mark.parametrize(("make", "part", "name", "value"), CASES)
def test_refused_values(make: Callable[..., Any], part: str, name: str, value: Any) -> None:
    """One line: field, value, what would be accepted."""
    with pytest.raises(InputError) as caught:
        make(**{name: value})
    line = str(caught.value)
    assert line.startswith(f"{part}.{name} = {value!r} is not accepted; it must be ")
    assert "\n" not in line
    assert len(line.split("it must be ")[1]) > 3


def test_group_norm_wants_channels_in_groups() -> None:
    with pytest.raises(InputError, match=r"model\.channels = 48 .* multiple of 32"):
        ModelConfig(norm="group_norm", channels=48)
    assert ModelConfig(norm="frozen_bn", channels=48).channels == 48


def test_without_a_neck_masks_are_too_small_for_input_d() -> None:
    with pytest.raises(InputError, match=r"maskiou\.input = 'd' .* without a neck"):
        ModelConfig(neck="none", levels=(4,), anchor_sizes=((32, 64),), maskiou=MaskIoUConfig(input="d"))


def test_a_head_that_is_left_out_cannot_be_what_trains() -> None:
    with pytest.raises(InputError, match=r"maskiou\.enabled = False is not accepted; .* model\.trained = 'maskiou'"):
        ModelConfig(trained="maskiou", maskiou=MaskIoUConfig(enabled=False))
    assert not ModelConfig(maskiou=MaskIoUConfig(enabled=False)).maskiou.enabled


FORM = (
    "FIELD=VALUE,... of the fields input, target, tau, weight, rois, unmatched, loss, balanced, evidence, goal, power"
)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        (("depth=3",), f"model.heads = 'depth=3' is not accepted; it must be {FORM}"),
        (("enabled=False",), f"model.heads = 'enabled=False' is not accepted; it must be {FORM}"),
        (("b",), f"model.heads = 'b' is not accepted; it must be {FORM}"),
        (("",), f"model.heads = '' is not accepted; it must be {FORM}"),
        (("input=b,input=c",), f"model.heads = 'input=b,input=c' is not accepted; it must be {FORM}"),
        (("input=b,",), f"model.heads = 'input=b,' is not accepted; it must be {FORM}"),
        (("tau=half",), "model.heads = 'tau=half' is not accepted; it must be tau= and a number"),
        (("evidence=True",), "model.heads = 'evidence=True' is not accepted; it must be evidence= and true or false"),
        (("target=2.0",), "model.heads = 'target=2.0' is not accepted; it must be target= and a number"),
        (("input=g",), "model.heads = 'input=g' is not accepted; maskiou.input = 'g' is not accepted; it must be a, b"),
        (("tau=nan",), "model.heads = 'tau=nan' is not accepted; maskiou.tau = nan is not accepted; it must be in"),
        (("goal=ap",), "model.heads = 'goal=ap' is not accepted; maskiou.goal = 'ap' is not accepted; it must be"),
        (("input=a",), "model.heads = 'input=a' is not accepted; it must be another head than that of maskiou"),
        (("tau=0.5", "tau=.50"), "model.heads = 'tau=.50' is not accepted; it must be another head than those named"),
        (("input=b", "input=b,target=1"), "model.heads = 'input=b,target=1' is not accepted; it must be another head"),
    ],
)
def test_heads_that_are_refused(heads: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        ModelConfig(heads=heads)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_heads_are_named_by_what_differs_from_the_main_one() -> None:
    config = ModelConfig(heads=("tau=.30,input=b", "input=c,target=1", "target=02"))
    assert config.heads == ("input=b,tau=0.3", "input=c", "target=2")
    b, c = MaskIoUConfig(input="b", tau=0.3), MaskIoUConfig(input="c")
    assert config.all_heads == (MaskIoUConfig(), b, c, MaskIoUConfig(target=2))
    assert [MaskIoUConfig().name_of(head) for head in (b, c)] == ["input=b,tau=0.3", "input=c"]
    assert b.variant(b.name_of(c)) == c
    assert ModelConfig(maskiou=b, heads=("input=a",)).all_heads[1] == MaskIoUConfig(tau=0.3)
    assert [plain_name(name) for name in config.heads] == ["input-b_tau-0.3", "input-c", "target-2"]


def test_names_of_heads_beyond_the_paper() -> None:
    texts = ("evidence=true,rois=detections,tau=-1", "input=none", "balanced=true,loss=bce,unmatched=zero,rois=both")
    config = ModelConfig(heads=texts)
    assert config.heads == (
        "tau=-1.0,rois=detections,evidence=true", "input=none", "rois=both,unmatched=zero,loss=bce,balanced=true",
    )  # fmt: skip
    assert config.all_heads[1] == MaskIoUConfig(rois="detections", tau=-1.0, evidence=True)
    assert plain_name(config.heads[0]) == "tau--1.0_rois-detections_evidence-true"
    assert model_config_from_dict(json.loads(json.dumps(to_dict(config)))) == config
    main = MaskIoUConfig(evidence=True)
    assert main.name_of(MaskIoUConfig()) == "evidence=false"
    assert main.variant("evidence=false") == MaskIoUConfig()


def test_worth_to_ap_wants_all_detections_and_cross_entropy() -> None:
    text = "tau=-1,rois=detections,loss=bce,goal=ap"
    worth = MaskIoUConfig(tau=-1.0, rois="detections", loss="bce", goal="ap")
    assert MaskIoUConfig().variant(text) == worth
    assert MaskIoUConfig().name_of(worth) == "tau=-1.0,rois=detections,loss=bce,goal=ap"
    config = ModelConfig(heads=(text,))
    assert config.all_heads[1] == worth
    assert model_config_from_dict(json.loads(json.dumps(to_dict(config)))) == config
    other: list[dict[str, Any]] = [
        {"tau": 0.0}, {"rois": "both"}, {"rois": "proposals"}, {"loss": "l2"}, {"input": "none"}, {"enabled": False},
    ]  # fmt: skip
    for change in other:
        with pytest.raises(InputError, match=r"maskiou\.goal = 'ap' .* rois=detections, tau=-1 and loss=bce"):
            dataclasses.replace(worth, **change)
    assert MaskIoUConfig().name_of(dataclasses.replace(worth, power=4.0)).endswith(",goal=ap,power=4.0")
    strong = dataclasses.replace(worth, power=4.0)
    assert strong.variant("goal=maskiou") == dataclasses.replace(worth, goal="maskiou")
    assert strong.variant(strong.name_of(worth)) == worth
    assert worth.reads_evidence
    assert config.reads_evidence("detections")
    assert not config.reads_evidence("proposals")


def test_a_file_without_the_newer_fields_is_the_paper() -> None:
    plain = to_dict(ModelConfig())
    plain["maskiou"] = {"enabled": True, "input": "b", "target": 1, "tau": 0.3, "weight": 1.0}
    assert model_config_from_dict(plain) == ModelConfig(maskiou=MaskIoUConfig(input="b", tau=0.3))


def test_something_must_learn_where_the_heads_alone_train() -> None:
    none = MaskIoUConfig(input="none")
    with pytest.raises(InputError, match=r"maskiou\.input = 'none' .* where nothing else learns"):
        ModelConfig(trained="maskiou", maskiou=none)
    assert ModelConfig(trained="maskiou", maskiou=none, heads=("input=a",)).trained_on == {"proposals"}
    assert ModelConfig(maskiou=none).trained_on == ModelConfig(maskiou=MaskIoUConfig(enabled=False)).trained_on == set()


def test_heads_survive_plain_values() -> None:
    config = ModelConfig(heads=("input=b,tau=0.3", "target=2"))
    plain = json.loads(json.dumps(to_dict(config)))
    assert plain["heads"] == ["input=b,tau=0.3", "target=2"]
    assert model_config_from_dict(plain) == config
    del plain["heads"]
    assert model_config_from_dict(plain) == ModelConfig()
    assert all(preset.model.heads == () for preset in PRESETS.values())


def test_heads_want_a_main_one_and_masks_that_are_large_enough() -> None:
    with pytest.raises(InputError, match=r"model\.heads = \('input=b',\) .* empty without maskiou\.enabled"):
        ModelConfig(maskiou=MaskIoUConfig(enabled=False), heads=("input=b",))
    with pytest.raises(InputError, match=r"maskiou\.input = 'd' .* without a neck"):
        ModelConfig(neck="none", levels=(4,), anchor_sizes=((32, 64),), heads=("input=d",))


def test_deformable_wants_the_last_stage() -> None:
    with pytest.raises(InputError, match=r"model\.deformable = True is not accepted; .* levels end below 5"):
        ModelConfig(levels=(3, 4), deformable=True)


def test_limits_are_accepted() -> None:
    RPNConfig(positive_iou=1.0, negative_iou=1.0, nms_iou=1.0, samples=1)
    RoIConfig(samples=1, positive_fraction=1.0)
    MaskIoUConfig(tau=0.0, weight=0.0)
    SolverConfig(momentum=0.0, warmup_steps=0, warmup_factor=1.0, decay_epochs=())
    DataConfig(short_side=32, long_side=32)
    ModelConfig(levels=(2, 3, 4, 5), anchor_sizes=((32,),) * 5)


@pytest.mark.parametrize(("samples", "fraction", "slots"), [(512, 0.25, 128), (10, 0.25, 2), (1, 0.1, 1), (8, 1.0, 8)])
def test_slots_of_positive_rois(samples: int, fraction: float, slots: int) -> None:
    assert RoIConfig(samples=samples, positive_fraction=fraction).positive_samples == slots


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"depth": 18}, "depth"),
        ({"rpn": {"anchors": 3}}, "anchors"),
        ({"roi": {"samples": 0}}, r"roi\.samples = 0"),
        ({"channels": -1}, r"model\.channels = -1"),
    ],
)
def test_a_foreign_model_configuration_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_config_from_dict(to_dict(ModelConfig()) | change)


def test_difference_lists_changed_fields() -> None:
    old, new = ModelConfig(), ModelConfig(channels=128, rpn=RPNConfig(nms_iou=0.5))
    assert difference(to_dict(old), to_dict(new)) == ["channels: 256 -> 128", "rpn.nms_iou: 0.7 -> 0.5"]
    assert difference(to_dict(old), to_dict(old)) == []
    assert difference({"a": 1}, {"b": {"c": 2}}) == ["a: 1 -> None", "b.c: None -> 2"]


def test_defaults_are_filled_in_and_left_out() -> None:
    assert [without_defaults(config) for config in (ModelConfig(), SolverConfig(), DataConfig())] == [{}, {}, {}]
    config = ModelConfig(channels=128, maskiou=MaskIoUConfig(tau=0.3))
    assert without_defaults(config) == {"channels": 128, "maskiou": {"tau": 0.3}}
    assert with_defaults(ModelConfig, without_defaults(config)) == to_dict(config)
    assert model_config_from_dict(without_defaults(config)) == config
    assert with_defaults(ModelConfig, {"depth": 18, "rpn": None}) == to_dict(ModelConfig()) | {"depth": 18, "rpn": None}


def test_configurations_cannot_be_changed_in_place() -> None:
    for config in (ModelConfig(), SolverConfig(), DataConfig()):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, dataclasses.fields(config)[0].name, None)


@pytest.mark.parametrize(
    "module",
    [
        "msrcnn",
        "msrcnn.config",
        "msrcnn.presets",
        "msrcnn.errors",
        "msrcnn.maskiou_config",
        "msrcnn.data.shapes_config",
    ],
)
def test_importing_is_cheap(module: str) -> None:
    code = f"import sys, {module}; print(*{{m.split('.')[0] for m in sys.modules}})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "msrcnn" in loaded
    assert not {"torch", "torchvision", "ray", "mlflow", "numpy", "pipelines"} & set(loaded)
