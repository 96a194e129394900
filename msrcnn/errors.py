"""The one exception that means "the input is wrong", as opposed to "the program is wrong"; and the check of a field."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher


class InputError(Exception):
    """Something the user gave cannot be used: a path, a file's content, an option.

    The message is one line that says what is wrong, where (file, image id, field) and what to do about it. The
    command line prints that line and exits with code 2; it shows a traceback only under `--debug`.
    """


def closest(wrong: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """The known word that `wrong` is most likely a misspelling of, whatever the case; empty if none is, or two are.

    Args:
        cutoff: how alike they must be, by difflib's measure, 1 for equal.
    """
    alike = [(SequenceMatcher(None, word.lower(), wrong.lower()).ratio(), word) for word in known]
    best = max((ratio for ratio, _ in alike), default=0.0)
    found = [word for ratio, word in alike if ratio == best]
    return found[0] if best >= cutoff and len(found) == 1 else ""


def meant(word: str) -> str:
    """'did you mean WORD? ', or nothing for no word: for the end of a message."""
    return f"did you mean {word}? " if word else ""


def require(condition: bool, name: str, value: object, accepted: str) -> None:
    """Raises InputError naming the field, its value and what would be accepted, unless `condition` holds."""
    if not condition:
        raise InputError(f"{name} = {value!r} is not accepted; it must be {accepted}")
