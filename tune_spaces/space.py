"""Reads what is swept from TOML: the files beside this module, one a table of the paper, or a user's own.

    title = "Samples that train the MaskIoU head"
    tables = [6]                            # of the paper; may be left out, as about, notes and archive may
    about = "what varies, what is fixed, what the published rows are"
    columns = ["AP", "AP50", "AP75"]        # out of `tune_spaces.definition.COLUMNS`
    notes = ["for the report"]
    archive = false                         # true: trials end with an archive for COCO's server
    [fixed]                                 # settings of every trial (`tune_spaces.settings`)
    preset = "r18-fpn"
    [[rows]]                                # a trial; all but the name may be left out
    name = "tau = 0.3"
    settings = {model.maskiou.tau = 0.3}
    ranked = "mask"                         # or "class", "oracle"
    published = {AP = 29.2, AP50 = 46.6, AP75 = 31.1}
    against = "tau = 0"                     # the row that it is compared with; the first if left out, its own: none
    tables = [6]                            # those that have the row, where the file has several
    only_published = false                  # true: shown and not run

or instead of the rows

    search = "random"                       # "grid" (the default: every combination), "random" or "bayes"
    samples = 20                            # trials, not in a grid
    [vary]
    model.selection.method = ["gaussian", "hard"]
    solver.lr = {low = 0.005, high = 0.04, log = true}

Nothing in a file is executed.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from msrcnn.errors import InputError, closest, meant, require
from tune_spaces.definition import Choices, Range, Row, Space
from tune_spaces.settings import GROUPS, KINDS, typed

ENDING = ".toml"
KEYS: dict[str, Any] = {
    "title": str, "about": str, "columns": [str], "tables": [int], "notes": [str], "archive": bool, "fixed": dict,
    "rows": [dict], "vary": dict, "search": str, "samples": int,
}  # fmt: skip
ROW_KEYS: dict[str, Any] = {
    "name": str, "settings": dict, "ranked": str, "published": dict, "against": str, "tables": [int],
    "only_published": bool,
}  # fmt: skip
RANGE_KEYS: dict[str, Any] = {"low": float, "high": float, "log": bool}
WORDS = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", dict: "a table"}


def space_names() -> list[str]:
    """The names of the files that come with the package."""
    names = (file.name for file in resources.files("tune_spaces").iterdir())
    return sorted(name.removesuffix(ENDING) for name in names if name.endswith(ENDING))


def find_space(name_or_path: str | Path) -> Space:
    """The space by the name of a file that comes with the package, by table of the paper, or by path.

    Args:
        name_or_path: `input_fusion`, `table4` (of a file with several tables: only the rows of that one), or a path to
            a file of the same form.

    Raises:
        InputError: there is none, or the file has a mistake.
    """
    text = str(name_or_path)
    if text in space_names():
        return _shipped(text)
    by_table = {f"table{number}": (space, number) for space in map(_shipped, space_names()) for number in space.tables}
    if text in by_table:
        space, number = by_table[text]
        return space.narrowed(number)
    try:
        data = Path(name_or_path).read_bytes()
    except FileNotFoundError:
        there = [*space_names(), *sorted(by_table)]
        hint = meant(closest(text, there))
        raise InputError(f"{text}: no such sweep and no such file; {hint}there are {', '.join(there)}") from None
    except (OSError, ValueError) as error:  # a zero byte in a path is a ValueError
        raise InputError(f"{text}: cannot be read ({getattr(error, 'strerror', error)}); give a TOML file") from None
    return parse(data, text)


def space_of(texts: Sequence[str]) -> Space:
    """The grid of settings that are given as "solver.lr=0.005,0.01,0.02", each text one of them.

    Raises:
        InputError: a text is of another form, a setting comes twice, or takes no such value.
    """
    vary: dict[str, Choices | Range] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        name = name.strip().replace("-", "_")
        require(bool(equals and values), "--vary", text, "SETTING=VALUE,VALUE,..., as solver.lr=0.005,0.01,0.02")
        require(name not in vary, "--vary", text, f"another setting than {name}, which is given already")
        vary[name] = Choices(tuple(_typed(name, _plain(value.strip()), "--vary") for value in values.split(",")))
    try:
        return Space(
            "-".join(name.rpartition(".")[2] for name in vary), ", ".join(vary), ("AP", "AP50", "AP75", "box AP"),
            vary=vary,
        )  # fmt: skip
    except InputError as error:
        raise InputError(f"--vary: {error}") from None


def _plain(text: str) -> Any:
    """A number or truth value as TOML reads it; anything else is a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse(data: bytes, file: str) -> Space:
    """The space in a file's bytes.

    Args:
        data: the file.
        file: its path, for messages and the space's name.

    Raises:
        InputError: naming file, key, value and what is accepted.
    """
    try:
        table = tomllib.loads(data.decode())
    except ValueError as error:  # not TOML, or not UTF-8
        raise InputError(f"{file}: not a TOML file ({error}); see tune_spaces/space.py for the form") from None
    try:
        return _space(table, Path(file).name.removesuffix(ENDING))
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _shipped(name: str) -> Space:
    file = resources.files("tune_spaces") / f"{name}{ENDING}"
    return parse(file.read_bytes(), f"{name}{ENDING}")


def _space(table: Mapping[str, Any], name: str) -> Space:
    _check_keys(table, KEYS, "", needed=("title", "columns"))
    read: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in table.items()}
    read["fixed"] = _settings(table.get("fixed", {}), "[fixed]")
    read["rows"] = tuple(_row(row, number) for number, row in enumerate(table.get("rows", []), start=1))
    varied = _flat(table.get("vary", {}), "[vary]")
    read["vary"] = {setting: _varied(setting, value) for setting, value in varied.items()}
    return Space(name=name, **read)


def _row(table: Mapping[str, Any], number: int) -> Row:
    where = f"row {table['name']!r}" if isinstance(table.get("name"), str) else f"row {number}"
    _check_keys(table, ROW_KEYS, where, needed=("name",))
    settings = _settings(table.get("settings", {}), where)
    tables = tuple(table.get("tables", ()))
    return Row(**{**table, "settings": settings, "tables": tables})


def _settings(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    return {name: _typed(name, value, where) for name, value in _flat(table, where).items()}


def _varied(name: str, value: Any) -> Choices | Range:
    where = f"[vary] {name}"
    if isinstance(value, list):
        return Choices(tuple(_typed(name, each, "[vary]") for each in value))
    if not isinstance(value, dict):
        _typed(name, value, "[vary]")
        raise InputError(f"{where} = {value!r} is not accepted; it must be a list of values or "
                         "{low = ..., high = ..., log = true or false}")  # fmt: skip
    if name in KINDS and KINDS[name] not in (int, float):
        raise InputError(f"{where} = {value!r} is not accepted; it must be a list: only numbers have a distribution")
    if name not in KINDS:
        _typed(name, value, "[vary]")
    _check_keys(value, RANGE_KEYS, where, needed=("low", "high"))
    low, high = (_typed(name, value[end], f"[vary] {end} of") for end in ("low", "high"))
    return Range(low, high, value.get("log", False), KINDS[name] is int)


def _typed(name: str, value: Any, where: str) -> Any:
    try:
        return typed(name, value)
    except InputError as error:
        raise InputError(f"{where} {error}" if where.startswith("[") else f"{where}, {error}") from None


def _flat(table: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted name, whether the file quotes the dots or makes tables of the parts."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        name = f"{prefix}{key}"
        inner = _flat(value, where, f"{name}.") if isinstance(value, dict) and name in GROUPS else {name: value}
        for each in inner:
            if each in flat:
                raise InputError(f"{where} {each} = {inner[each]!r}: given twice; leave one out")
        flat |= inner
    return flat


def _check_keys(table: Mapping[str, Any], kinds: Mapping[str, Any], where: str, needed: Collection[str]) -> None:
    """Raises InputError where a key is unknown or missing, or its value of another kind."""
    at = f"{where}, " if where else ""
    for key, value in table.items():
        if key not in kinds:
            hint = meant(closest(key, kinds))
            raise InputError(f"{at}{key} = {_brief(value)}: unknown key; {hint}accepted are {', '.join(kinds)}")
        kind = kinds[key]
        good, accepted = _is(value, kind), WORDS.get(kind) if isinstance(kind, type) else None
        if isinstance(kind, list):
            good = isinstance(value, list) and all(_is(part, kind[0]) for part in value)
            accepted = f"a list, each {WORDS[kind[0]]}"
        if not good:
            raise InputError(f"{at}{key} = {_brief(value)} is not accepted; it must be {accepted}")
    for key in needed:
        if key not in table:
            raise InputError(f"{at}{key} is missing; it must be given")


def _is(value: Any, kind: Any) -> bool:
    if not isinstance(kind, type) or (isinstance(value, bool) and kind is not bool):
        return False
    return isinstance(value, (int, float) if kind is float else kind)


def _brief(value: Any) -> str:
    text = re.sub(r"\s+", " ", repr(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
