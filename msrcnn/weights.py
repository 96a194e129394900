"""Model checkpoints: a file that holds the weights and everything needed to rebuild the model around them."""

from __future__ import annotations

import os
import re
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from msrcnn import MODEL
from msrcnn.config import DataConfig, Precision, model_config_from_dict, to_dict
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A model read back from disk."""

    model: MaskScoringRCNN
    data: DataConfig
    categories: tuple[tuple[int, int, str], ...]  # number (1..C), id in the source annotations, name
    precision: Precision = "float32"  # what layers compute in when the model detects

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device


def write_aside(path: Path, value: dict[str, Any]) -> None:
    """`torch.save` into a file beside `path`, then renamed: `path` is whole or absent."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        torch.save(value, aside)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_plain(path: Path, what: str) -> dict[str, Any]:
    """Reads a file of tensors and plain values; nothing in it is executed.

    A command line's options (`argparse.Namespace`) are plain values: torchvision's training script stores its own.

    Raises:
        InputError: the file is absent, damaged, or holds anything else; `what` says what was expected.
    """
    try:
        with torch.serialization.safe_globals([Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected {what}") from None
    except Exception as error:  # of any type: damaged bytes lead the unpickler anywhere
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        if reason.startswith("Weights only load failed"):  # torch goes on about how to run what is in it
            reason = "it is no file of tensors and plain values"
            if held := re.search(r"GLOBAL ([\w.]+) was not an allowed global", str(error)):
                raise InputError(f"{path}: not {what} (it holds a {held[1]}, and nothing but tensors and plain values "
                                 "is read); save the model's state_dict by itself") from None  # fmt: skip
        raise InputError(f"{path}: not {what} ({reason}); it may be damaged, use another") from None
    if not isinstance(value, dict):
        raise InputError(f"{path}: not {what} (it holds a {type(value).__name__}); use another")
    return value


def save_model(
    path: Path, model: MaskScoringRCNN, data: DataConfig, categories: Sequence[tuple[int, int, str]]
) -> None:
    """Writes the model with its configuration, input sizes and categories."""
    write_aside(
        path,
        {
            "format": FORMAT,
            "model": to_dict(model.config),
            "data": to_dict(data),
            "categories": [list(c) for c in categories],
            "weights": model.state_dict(),
        },
    )


def load_model(
    path: str | Path, device: torch.device | str = "cpu", inference: InferenceConfig | None = None
) -> Checkpoint:
    """Reads a model written by `save_model`, in testing mode.

    Args:
        path: the file, or the folder of a finished training, which holds it as `model.pt`.
        device: where the model goes.
        inference: how it detects, where that is to be otherwise than the file says.

    Raises:
        InputError: the file is absent, damaged, of another format, or its weights do not fit its configuration or are
            not finite; or `inference` means nothing with this model.
    """
    path = Path(path)
    path = path / MODEL if path.is_dir() else path
    value = read_plain(path, "a model checkpoint")
    if "format" not in value:
        raise InputError(f"{path}: no model of msrcnn; give a run directory or its model.pt. `msrcnn train --weights "
                         "FILE --model.trained maskiou` makes one of torchvision's Mask R-CNN")  # fmt: skip
    if value["format"] != FORMAT:
        raise InputError(
            f"{path}: checkpoint format {value['format']!r}, this program reads {FORMAT}; "
            "give a run directory or its model.pt"
        )
    try:
        config = model_config_from_dict(value["model"])
        categories = tuple((int(n), int(i), str(s)) for n, i, s in value["categories"])
        data = DataConfig(**value["data"])
        weights = dict(value["weights"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise InputError(f"{path}: not a model checkpoint ({what}); give a run directory or its model.pt") from None
    model = MaskScoringRCNN(config if inference is None else inference.applied(config))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        line = " ".join(str(error).split())[:300]
        raise InputError(f"{path}: weights do not fit the model configuration beside them: {line}") from None
    # The sum of what is not finite is neither; it takes a tenth of the time.
    if broken := next((name for name, x in model.state_dict().items() if not x.sum().isfinite()), None):
        raise InputError(f"{path}: {broken} is not finite; did training diverge? Give an earlier checkpoint")
    precision: Precision = "float32" if inference is None else inference.precision
    return Checkpoint(model.to(device).eval(), data, categories, precision)
