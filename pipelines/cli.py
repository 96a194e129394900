"""The command line: `msrcnn VERB`. Answers `--help` without importing torch or Ray."""

from __future__ import annotations

import errno
import os
import select
import sys

from msrcnn import __version__
from msrcnn.errors import InputError, closest, meant
from pipelines.job_environment import packages_notice, submitted
from pipelines.verbs import VERBS, parse, run_of

INTERRUPTED = 130
CUT_OFF = 141
"""As shells count a program that SIGPIPE ended."""
FULL = (errno.ENOSPC, errno.EDQUOT)
STORAGE = (*FULL, errno.EACCES, errno.EPERM, errno.EROFS)
"""What a disk says that is full or not ours; Arrow's errors name the file in their text alone."""


def usage() -> str:
    """What `msrcnn --help` prints."""
    lines = [f"  {name:<10} {verb.about}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: msrcnn [--debug] VERB [OPTIONS]",
            "",
            "Mask Scoring R-CNN as a distributed pipeline on Ray.",
            "",
            *lines,
            "",
            "msrcnn VERB --help shows its options. --debug shows tracebacks. --version shows the version.",
        ]
    )


def _no_verb(word: str) -> str:
    """What to say where the first word is no command."""
    there = f"there are {', '.join(VERBS)}"
    if word.startswith("-"):
        return f"{word}: the command comes before its options, msrcnn VERB [OPTIONS]; {there}"
    return f"'{word}' is not a command; {meant(closest(word, VERBS))}{there}"


def _unread() -> bool:
    """Whether nobody is left to read what is printed."""
    state = select.poll()
    state.register(sys.stdout.fileno(), 0)  # asks for nothing but errors, which are always told
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in state.poll(0))


def main() -> None:
    """Entry point: exit code 0, 1 if part of the work failed, 2 for input that cannot be used, 130 when interrupted."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        sys.exit(0 if arguments else 2)
    if arguments[0] == "--version":
        print(__version__)
        return
    try:
        if arguments[0] not in VERBS:
            raise InputError(_no_verb(arguments[0]))
        if submitted() and (notice := packages_notice()):
            print(notice, file=sys.stderr)
        options = parse(arguments[0], arguments[1:])
        code = run_of(arguments[0])(options)
        if isinstance(code, int):
            sys.exit(code)
    except InputError as error:
        if debug:
            raise
        print(f"msrcnn: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _unread():  # of `| head`, say; not of a connection
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains once more at its end
            sys.exit(CUT_OFF)
        if debug or (error.filename is None and error.errno not in STORAGE):
            raise
        where = f"{error.filename}: {error.strerror}" if error.filename else str(error).splitlines()[0]
        remedy = "make room, or choose another path" if error.errno in FULL else "choose another path"
        print(f"msrcnn: {where}; {remedy}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print("msrcnn: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
