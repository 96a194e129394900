"""The command line: `msrcnn VERB`. Answers `--help` without importing torch or Ray."""

from __future__ import annotations

import sys

from msrcnn import __version__
from msrcnn.errors import InputError
from pipelines.job_environment import packages_notice, submitted
from pipelines.verbs import VERBS, parse, run_of

INTERRUPTED = 130


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
            raise InputError(f"'{arguments[0]}' is not a command; there are {', '.join(VERBS)}")
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
        if debug or error.filename is None:
            raise
        print(f"msrcnn: {error.filename}: {error.strerror}; choose another path", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        if debug:
            raise
        print("msrcnn: interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
