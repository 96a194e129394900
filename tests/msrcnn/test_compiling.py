"""What compiling in place leaves as it was: names, weights, files and losses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch

from msrcnn.compiling import compile_parts
from msrcnn.config import DataConfig, MaskIoUConfig
from msrcnn.weights import load_model, save_model
from tests.tiny import CONFIG, LOSSES, batch_of, losses_of, make_model

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def without_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Graphs are made and run, but no code is generated, which takes minutes."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("without_code")
@pytest.mark.parametrize("head", [True, False])
def test_names_weights_and_losses_stay(head: bool, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, maskiou=MaskIoUConfig(enabled=head))
    plain, model, batch = make_model(config), make_model(config), batch_of("all", "all")
    compile_parts(model)
    # How many of them have taken a compiled way in: backbone, RPN head, box, mask and MaskIoU head.
    assert sum(m._compiled_call_impl is not None for m in model.modules()) == (5 if head else 4)
    losses, want = losses_of(model, batch), losses_of(plain, batch)
    assert losses.keys() == (LOSSES if head else LOSSES - {"maskiou"})
    for name, loss in losses.items():
        torch.testing.assert_close(loss, want[name])
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    save_model(tmp_path / "model.pt", model, DataConfig(), [(1, 1, "a"), (2, 2, "b"), (3, 3, "c")])
    read = load_model(tmp_path / "model.pt").model
    assert all(torch.equal(tensor, read.state_dict()[name]) for name, tensor in plain.state_dict().items())
