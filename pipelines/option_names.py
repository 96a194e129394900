"""Options that a command line gets wrong, told in one line with what was probably meant. Imports neither torch nor Ray.

tyro answers with a box of many lines, and with every option that shares a word with the wrong one.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from itertools import pairwise
from typing import Annotated, TypeVar, get_type_hints

import tyro

from msrcnn.errors import InputError, closest, meant

T = TypeVar("T")
OnUnlessNot = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
"""A switch that is on unless --no-NAME is given, whose help says what that does: '(default: True)' would deny it."""
HELP = ("-h", "--help", "-H", "--help-verbose")
FRAME = "╭╮╰╯│─ "
"""What tyro draws boxes with."""
HELPTEXT = re.compile(r"(For full|Argument) helptext.*|\(required\)")
"""What it says in them besides what is wrong."""
CLOSE = 0.85
"""How alike names are of which one is the other misspelt, by difflib's measure."""
TRUTHS = {"true", "false", "yes", "no", "on", "off", "0", "1"}


def named_options(options: type, prefix: str = "--") -> Iterator[tuple[str, bool]]:
    """The options of a dataclass by name, as --solver.lr, and whether each must be given.

    A switch has the name that turns it off, too. What is marked for tyro otherwise than as an option that may be given
    several times, as positional, is left out.
    """
    hints = get_type_hints(options, include_extras=True)
    for field in fields(options):
        hint, name = hints[field.name], field.name.replace("_", "-")
        hint = bool if hint == OnUnlessNot else hint
        if tyro.conf.UseAppendAction not in getattr(hint, "__metadata__", (tyro.conf.UseAppendAction,)):
            continue
        if is_dataclass(hint) and isinstance(hint, type):
            yield from named_options(hint, f"{prefix}{name}.")
            continue
        yield f"{prefix}{name}", field.default is MISSING and field.default_factory is MISSING
        if hint is bool:
            yield f"{prefix}no-{name}", False


def check_names(command: str, options: type, arguments: Sequence[str]) -> None:
    """Refuses names that are no options, switches with a value, and a command that lacks what it cannot run without.

    Raises:
        InputError: naming the first that is wrong, or all that are missing.
    """
    if set(arguments) & {*HELP}:
        return
    known = dict(named_options(options))
    given = [_name(argument) for argument in arguments]
    for name, following in pairwise([*given, ""]):
        if name.startswith("--") and name not in known:
            raise InputError(f"{name}: no option of {command}; {meant(_likely(name, known))}{command} --help shows all")
        off = "no-".join(re.split(r"(?<=--)(?!.*\.)|(?<=\.)(?!.*\.)", name, maxsplit=1))
        if off in known and following.lower() in TRUTHS:
            raise InputError(f"{name} takes no value ({following}); give {name} or {off}")
    if missing := [name for name, needed in known.items() if needed and name not in given]:
        raise InputError(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing; {command} --help "
                         "shows what to give")  # fmt: skip


def _name(argument: str) -> str:
    """Of an option as we write it. tyro takes underscores and a value behind '=', and numbers what is in a tuple."""
    if not argument.startswith("--"):
        return argument
    return re.sub(r"\.\d+$", "", argument.partition("=")[0].replace("_", "-"))


def _likely(wrong: str, known: Collection[str]) -> str:
    """Which option is meant. The last part of a name may stand for it: --lr for --solver.lr, --batch-size for
    --solver.batch."""
    last = wrong.removeprefix("--").rpartition(".")[2]
    ends = {name.removeprefix("--").rpartition(".")[2]: name for name in reversed([*known])}
    begun = next((name for end, name in ends.items() if last.startswith(f"{end}-")), "")
    guesses = closest(wrong, known, CLOSE), ends.get(last), begun, closest(wrong, known), ends.get(closest(last, ends))
    return next(filter(None, guesses), "")


def in_one_line(command: str, read: Callable[[], T]) -> T:
    """What `read` returns; where tyro would print a box and exit, what is in the box.

    Raises:
        InputError: a value cannot be read.
        SystemExit: help has been printed.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return read()
    except SystemExit as ended:
        if not ended.code:
            raise
        _, *lines = [line.strip(FRAME) for line in said.getvalue().splitlines()]  # the first one is a title
        lines = [line for line in lines if set(line) != {"-"}]  # it draws so where a terminal knows no Unicode
        text = HELPTEXT.sub("", " ".join(" ".join(lines).split())).strip(" .")
        raise InputError(f"{text}; {command} --help shows what is accepted") from None
