"""Several MaskIoU heads on one trunk: each is what it would be alone, and none touches the trunk or another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo import config as compiler
from torch._dynamo.utils import counters

from msrcnn import maskiou_targets
from msrcnn.compiling import compile_parts
from msrcnn.config import DataConfig, MaskIoUConfig, ModelConfig, RPNConfig, SolverConfig
from msrcnn.detector import MaskScoringRCNN
from msrcnn.maskiou_heads import loss_names
from msrcnn.pooling import PyramidPooler
from msrcnn.pretrained import load_weights
from msrcnn.solver import clip_gradients, guarded_step, make_optimizer
from msrcnn.weights import load_model, save_model
from tests.tiny import C4, CONFIG, batch_of, detections_of, losses_of, make_model, with_good_masks

pytestmark = pytest.mark.usefixtures("one_thread")

HEADS = (*(f"input={letter}" for letter in "bcdef"), "target=2", "target=3", "tau=0.3", "tau=0.5", "tau=0.7")
"""With the default head the 11 of Tables 4 to 6."""
MANY = dataclasses.replace(CONFIG, heads=HEADS, rpn=RPNConfig(samples=64, train_proposals=80, test_proposals=80))
NUMBERS = range(len(HEADS) + 1)
LIMIT = 0.02
"""Of a gradient's norm: below what heads have at first, so that each is clipped."""


def alone(number: int, config: ModelConfig = MANY) -> ModelConfig:
    """The detector with one of the heads and no other."""
    return dataclasses.replace(config, maskiou=config.all_heads[number], heads=())


def trunk_of(model: MaskScoringRCNN) -> dict[str, Tensor]:
    return {name: value for name, value in model.state_dict().items() if not name.startswith(("maskiou.", "heads."))}


def single(number: int, whole: MaskScoringRCNN, config: ModelConfig = MANY) -> MaskScoringRCNN:
    """The detector of one head on the trunk of `whole`, the head as initialised."""
    model = make_model(alone(number, config))
    model.load_state_dict(trunk_of(whole), strict=False)
    return model


def trained_by(model: MaskScoringRCNN, steps: int) -> list[dict[str, Tensor]]:
    """Takes optimiser steps with clipped gradients; the losses of each."""
    optimizer, history = make_optimizer(model, SolverConfig(lr=0.5)), []
    for step in range(steps):
        losses = losses_of(model, batch_of(*(("all", "all"), ("none", "all"), ("all", "crowds"))[step % 3]))
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()
        norm = clip_gradients(model, LIMIT)
        guarded_step(optimizer, norm.isfinite())
        assert norm > LIMIT
        history.append({name: loss.detach() for name, loss in losses.items()})
    return history


@pytest.fixture(scope="module")
def calibrated() -> tuple[MaskScoringRCNN, list[dict[str, Tensor]]]:
    """All heads after five steps on a finished trunk, and the losses of the steps."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = with_good_masks(dataclasses.replace(MANY, trained="maskiou"))
    for number, head in enumerate(model.maskiou_heads()):  # `sure` draws the main head's last layer anew
        head.load_state_dict(make_model(alone(number)).maskiou_heads()[0].state_dict())
    history = trained_by(model, 5)
    torch.set_num_threads(threads)
    return model, history


@pytest.mark.parametrize("number", NUMBERS, ids=["main", *HEADS])
def test_each_head_begins_and_learns_as_it_would_alone(number: int, calibrated) -> None:
    """Same initial weights bit by bit; the same losses and weights after five clipped steps."""
    many, history = calibrated
    fresh, lone = make_model(MANY), make_model(alone(number))
    assert all(torch.equal(a, b) for a, b in zip(fresh.maskiou_heads()[number].parameters(),
                                                 lone.maskiou_heads()[0].parameters(), strict=True))  # fmt: skip
    model = single(number, many, dataclasses.replace(MANY, trained="maskiou"))
    name = loss_names(MANY)[number]
    losses = trained_by(model, 5)
    assert all(step.keys() == {"maskiou"} for step in losses)
    for step, of_many in zip(losses, history, strict=True):
        torch.testing.assert_close(of_many[name], step["maskiou"], rtol=0, atol=1e-5)
    assert losses[0]["maskiou"] > 0
    begun = dict(lone.maskiou_heads()[0].named_parameters())
    ours = dict(many.maskiou_heads()[number].named_parameters())
    for key, value in model.maskiou_heads()[0].named_parameters():
        torch.testing.assert_close(ours[key], value, rtol=0, atol=1e-5)
        assert (value - begun[key]).abs().max() > 1e-4 or not key.endswith("weight")


def test_heads_differ_in_what_they_learn(calibrated) -> None:
    _, history = calibrated
    assert len({round(loss.item(), 7) for loss in history[0].values()}) == len(NUMBERS)


def test_the_generator_is_left_as_if_the_first_head_had_been_made_alone() -> None:
    after = []
    for config in (MANY, alone(0)):
        make_model(config)
        after.append(torch.rand(3))
    assert torch.equal(*after)


@pytest.mark.parametrize("change", [{}, C4 | {"heads": tuple(h for h in HEADS if h != "input=d")}], ids=["fpn", "c4"])
def test_the_trunk_trains_as_a_mask_rcnn(change: dict) -> None:
    """Bit by bit the same losses and gradients, whatever the heads do."""
    many = make_model(dataclasses.replace(MANY, **change), sure=True)
    plain = make_model(dataclasses.replace(MANY, **change | {"heads": (), "maskiou": MaskIoUConfig(enabled=False)}))
    plain.load_state_dict(trunk_of(many))
    ours, theirs = (losses_of(model, batch_of("all", "all")) for model in (many, plain))
    assert all(torch.equal(loss, ours[name]) for name, loss in theirs.items())
    assert list(ours) == [*theirs, *loss_names(many.config)]
    for losses in (ours, theirs):
        torch.stack(list(losses.values())).sum().backward()
    found = dict(many.named_parameters())
    for name, parameter in plain.named_parameters():
        assert torch.equal(found[name].grad, parameter.grad), name
    assert all(p.grad is not None for head in many.maskiou_heads() for p in head.parameters())
    clip_gradients(many, LIMIT)
    assert clip_gradients(plain, LIMIT) > LIMIT
    assert all(torch.equal(found[name].grad, p.grad) for name, p in plain.named_parameters())


def test_no_head_reaches_another() -> None:
    """A head whose loss weighs a million: the others' gradients, clipped or not, stay as they are."""
    grown = dataclasses.replace(MANY, heads=("input=b,weight=1e6", *HEADS[1:]))
    gradients = []
    for config in (MANY, grown):
        model = make_model(config, sure=True)
        torch.stack(list(losses_of(model, batch_of("all", "all")).values())).sum().backward()
        whole = torch.cat([p.grad.flatten().double() for p in model.parameters()]).norm()
        torch.testing.assert_close(clip_gradients(model, LIMIT).double(), whole, rtol=1e-4, atol=0)
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    own = [name for name in gradients[0] if name.startswith("heads.0.")]
    assert len(own) > 5
    for name, gradient in gradients[0].items():
        assert torch.equal(gradient, gradients[1][name]) or name in own, name
    for of_one in gradients:
        assert torch.cat([of_one[name].flatten() for name in own]).norm() <= LIMIT * 1.001


def test_without_further_heads_gradients_are_clipped_as_torch_does() -> None:
    norms, gradients = [], []
    for clip in (lambda m: clip_gradients(m, 0.5), lambda m: torch.nn.utils.clip_grad_norm_(m.parameters(), 0.5)):
        model = make_model()
        torch.stack(list(losses_of(model, batch_of("all", "all")).values())).sum().backward()
        norms.append(clip(model))
        gradients.append([p.grad for p in model.parameters()])
    assert torch.equal(*norms)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("keep", [("all", "none"), ("none", "none")], ids=str)
def test_one_pass_detects_what_each_detector_would(keep: tuple[str, str]) -> None:
    """Boxes, scores and masks bit by bit; each head's MaskIoUs are those of its own detector."""
    many, batch = make_model(MANY, sure=True), batch_of(*keep, training=False)
    found = detections_of(many, batch)
    assert found.head_maskious.shape == (*found.valid.shape, len(HEADS))
    assert found.valid.sum() > 5
    columns = torch.cat([found.maskious[..., None], found.head_maskious], -1)  # [B, D, 1 + V]
    for number in NUMBERS:
        model = single(number, many)
        model.maskiou_heads()[0].load_state_dict(many.maskiou_heads()[number].state_dict())
        lone = detections_of(model, batch)
        for name in ("boxes", "labels", "class_scores", "masks", "valid"):
            assert torch.equal(getattr(found, name), getattr(lone, name)), name
        torch.testing.assert_close(columns[..., number], lone.maskious, rtol=0, atol=1e-6)
        assert lone.head_maskious.shape[-1] == 0
    assert len({tuple(column.tolist()) for column in columns[found.valid].unbind(-1)}) == 7  # 6 inputs; one is `sure`


def test_what_is_the_same_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for module, name in ((maskiou_targets, "_other_classes"), (maskiou_targets, "_maskiou")):
        inner = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, inner=inner, name=name: calls.append(name) or inner(*a))
    model = make_model(MANY)
    pooled: list[int] = []
    pool = PyramidPooler.__call__
    monkeypatch.setattr(PyramidPooler, "__call__", lambda *a: pooled.append(a[-1]) or pool(*a))
    losses_of(model, batch_of("all", "all"))
    assert sorted(pooled) == [7, 14, 28]  # box head, mask head, input (d)
    assert calls.count("_other_classes") == 1
    own = [name for name in calls if name == "_maskiou"]
    calls.clear()
    losses_of(make_model(alone(HEADS.index("target=2") + 1)), batch_of("all", "all"))
    assert len(own) == calls.count("_maskiou")


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made and run, but no code is generated, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    counters.clear()
    with compiler.patch(recompile_limit=8):
        yield
    torch.compiler.reset()


@pytest.mark.usefixtures("without_code")
def test_compiled_heads_have_the_same_losses() -> None:
    """All of them are compiled, though they run the same code in more forms than torch compiles by default."""
    more = ("rois=both", "rois=detections,evidence=true", "loss=bce", "tau=-1,rois=detections,loss=bce,goal=ap")
    config = dataclasses.replace(MANY, heads=(*HEADS, *more))
    plain, model = make_model(config), make_model(config)
    compile_parts(model)
    for keep in (("all", "all"), ("none", "all"), ("all", "crowds")):
        losses, want = losses_of(model, batch_of(*keep)), losses_of(plain, batch_of(*keep))
        for name, loss in losses.items():
            torch.testing.assert_close(loss, want[name])
    detections_of(model, batch_of("all", "all", training=False))
    assert sum(m._compiled_call_impl is not None for m in model.modules()) == 4 + len(NUMBERS) + len(more)
    assert counters["frames"]["ok"] == counters["frames"]["total"] > 8


def test_files_hold_heads_beyond_the_paper(tmp_path: Path) -> None:
    """Heads of other shapes find their own weights, and one without weights takes no place."""
    heads = ("input=none", "evidence=true", "rois=detections,tau=-1.0", "tau=-1.0,rois=detections,loss=bce,goal=ap")
    many, categories = make_model(dataclasses.replace(CONFIG, heads=heads)), [(1, 1, "a"), (2, 2, "b"), (3, 3, "c")]
    save_model(tmp_path / "model.pt", many, DataConfig(), categories)
    assert load_model(tmp_path / "model.pt").model.config.heads == (*heads[:2], "tau=-1.0,rois=detections", heads[3])
    torch.manual_seed(5)
    other = MaskScoringRCNN(dataclasses.replace(
        CONFIG, maskiou=MaskIoUConfig(input="none"),
        heads=("input=a,evidence=true", f"input=a,{heads[3]}", "input=a,tau=-1,rois=detections"),
    ))  # fmt: skip
    report = load_weights(other, str(tmp_path / "model.pt"), ["a", "b", "c"])
    assert report.missing == ()
    for mine, theirs in ((0, 1), (1, 3), (2, 2)):
        pairs = zip(other.heads[mine].parameters(), many.heads[theirs].parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert {name.partition(": ")[2].partition(".")[0] for name in report.left_over} <= {"maskiou"}


def test_files_hold_the_heads(tmp_path: Path) -> None:
    """Written and read whole; and read in part, where a head's name and not its place decides."""
    path, categories = tmp_path / "model.pt", [(1, 1, "a"), (2, 2, "b"), (3, 3, "c")]
    many = make_model(MANY)
    save_model(path, many, DataConfig(), categories)
    read = load_model(path).model
    assert read.config == MANY
    assert all(torch.equal(value, many.state_dict()[name]) for name, value in read.state_dict().items())

    torch.manual_seed(5)
    other = MaskScoringRCNN(dataclasses.replace(
        MANY, maskiou=MaskIoUConfig(input="b"), heads=("input=a,tau=0.7", "input=e", "input=a", "tau=0.5"),
    ))  # fmt: skip
    before = {name: value.clone() for name, value in other.state_dict().items()}
    report = load_weights(other, str(path), ["a", "b", "c"])
    places = {0: "input=b", 1: "tau=0.7", 2: "input=e", 3: None}
    for place, name in places.items():
        source = many.maskiou_heads()[0 if name is None else HEADS.index(name) + 1]
        for a, b in zip(other.maskiou_heads()[place].parameters(), source.parameters(), strict=True):
            assert torch.equal(a, b), name
    assert report.missing
    assert all(name.startswith("heads.3.") for name in report.missing)  # input=b,tau=0.5 is not in the file
    assert all(torch.equal(other.state_dict()[name], before[name]) for name in report.missing)
    unused = [n for n in range(len(HEADS)) if HEADS[n] not in places.values()]
    assert {n.partition("heads.")[2].partition(".")[0] for n in report.left_over} == {str(n) for n in unused}


@pytest.mark.parametrize("head", [True, False])
def test_weights_of_a_detector_with_one_head_or_none(head: bool, tmp_path: Path) -> None:
    source = make_model(dataclasses.replace(CONFIG, maskiou=MaskIoUConfig(enabled=head)))
    save_model(tmp_path / "model.pt", source, DataConfig(), [(1, 1, "a"), (2, 2, "b"), (3, 3, "c")])
    torch.manual_seed(5)
    report = load_weights(many := MaskScoringRCNN(MANY), str(tmp_path / "model.pt"), ["a", "b", "c"])
    assert report.left_over == ()
    assert {name.partition(".")[0] for name in report.missing} == {"heads"} if head else {"maskiou", "heads"}
    assert all(torch.equal(value, many.state_dict()[name]) for name, value in source.state_dict().items())
