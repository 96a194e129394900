"""The settings that a sweep may change, by dotted name, and the configurations that follow from them.

preset                which of `msrcnn.presets` to start from
weights               what training begins with, as `msrcnn train --weights`
model.*, solver.*, data.*   fields of the dataclasses in `msrcnn.config`, the nested ones included
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any, Literal

from msrcnn.config import DataConfig, ModelConfig, SolverConfig, require
from msrcnn.errors import InputError, closest, meant
from msrcnn.presets import DEFAULT_PRESET, PRESETS, Preset

FROM_SHARDS = "model.num_classes"
"""Follows from the data set, so that a sweep cannot set it."""

GROUPED = "preset, weights, model.*, solver.* and data.*"

Configs = tuple[ModelConfig, SolverConfig, DataConfig]


def _fields(prefix: str, of: Any) -> dict[str, Any]:
    """The type of each field by dotted name, nested dataclasses opened."""
    kinds: dict[str, Any] = {}
    for name, kind in typing.get_type_hints(of).items():
        if dataclasses.is_dataclass(kind):
            kinds |= _fields(f"{prefix}.{name}", kind)
        else:
            kinds[f"{prefix}.{name}"] = kind
    return kinds


KINDS: dict[str, Any] = {
    "preset": str,
    "weights": str,
    **_fields("model", ModelConfig),
    **_fields("solver", SolverConfig),
    **_fields("data", DataConfig),
}
"""The type of every setting by its name."""
GROUPS = frozenset(name[:dot] for name in KINDS for dot, letter in enumerate(name) if letter == ".")
"""What settings are grouped under: `model`, `model.maskiou`, ..."""


def typed(name: str, value: Any) -> Any:
    """The value as the configuration holds it: lists become tuples, whole numbers floats where these are wanted.

    Args:
        name: of the setting.
        value: as TOML, JSON or Ray give it.

    Raises:
        InputError: there is no such setting, or it takes no such value.
    """
    if name not in KINDS:
        hint = meant(closest(name, KINDS)) or f"there are {GROUPED}"
        raise InputError(f"{name} = {value!r}: no such setting; {hint.strip()}")
    if name == FROM_SHARDS:
        raise InputError(f"{name} = {value!r}: follows from the data set; leave it out")
    value = _converted(name, value, KINDS[name])
    if name == "preset":
        require(value in PRESETS, name, value, _either(list(PRESETS)))
    if name == "weights":
        require(bool(value), name, value, "a file or torchvision's name of weights; leave it out for random ones")
    return value


def base_of(settings: Mapping[str, Any]) -> Preset:
    """The preset that the settings start from.

    Raises:
        InputError: there is no such preset.
    """
    return PRESETS[typed("preset", settings.get("preset", DEFAULT_PRESET))]


def configure(base: Preset, settings: Mapping[str, Any]) -> Configs:
    """Model, solver and input with all the settings applied at once, so that only what they give together is checked.

    Args:
        base: what is not set; `base_of(settings)`, or another.
        settings: by dotted name. `preset` and `weights` are checked and change nothing here.

    Raises:
        InputError: a setting is unknown, or its value not accepted, alone or beside the others.
    """
    tree: dict[str, Any] = {"model": {}, "solver": {}, "data": {}}
    for name, value in settings.items():
        value = typed(name, value)
        if name in ("preset", "weights"):
            continue
        *path, field = name.split(".")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[field] = value
    return (
        _replaced(base.model, tree["model"]),
        _replaced(base.solver, tree["solver"]),
        _replaced(base.data, tree["data"]),
    )


def short(settings: Mapping[str, Any]) -> str:
    """Settings in a few words, as in 'lr=0.01, tau=0.3': each by the last part of its name."""
    return ", ".join(f"{name.rpartition('.')[2]}={shown(value)}" for name, value in settings.items())


def shown(value: Any) -> str:
    """A value for people: numbers with four significant digits."""
    if isinstance(value, (bool, str, Integral)):
        return str(value)
    if isinstance(value, (list, tuple)):
        return f"({', '.join(shown(v) for v in value)})"
    return f"{value:.4g}"


def _replaced(config: Any, tree: Mapping[str, Any]) -> Any:
    """A copy of a dataclass with other values; those of nested dataclasses are mappings."""
    return dataclasses.replace(
        config, **{k: _replaced(getattr(config, k), v) if isinstance(v, dict) else v for k, v in tree.items()}
    )


def _converted(name: str, value: Any, kind: Any) -> Any:
    origin, options = typing.get_origin(kind), typing.get_args(kind)
    number = isinstance(value, Real) and not isinstance(value, bool)
    if origin is Literal:
        for option in options:
            if value == option and isinstance(value, bool) == isinstance(option, bool):
                return option
        require(False, name, value, _either(options))
    if origin is tuple:
        require(isinstance(value, (list, tuple)), name, value, "a list")
        return tuple(_converted(name, part, options[0]) for part in value)
    if kind is float:
        require(number and math.isfinite(value), name, value, "a finite number")
        return float(value)
    if kind is int:
        require(number and isinstance(value, Integral), name, value, "a whole number")
        return int(value)
    accepted = {bool: "true or false", str: "a text in quotes"}[kind]
    require(isinstance(value, kind), name, value, accepted)
    return value


def _either(options: typing.Sequence[Any]) -> str:
    """Options in a sentence."""
    *others, last = (str(option) for option in options)
    return f"{', '.join(others)} or {last}" if others else last
