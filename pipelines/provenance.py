"""Which program ran, how it was called and where: commit, versions, command, machine."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from cluster.credentials import without_password
from cluster.package import COMMIT, PACKAGES, ROOT, SOURCES
from msrcnn import __version__

WATCHED = (*SOURCES, "pyproject.toml")
"""What of the tree is the program: runs and data beside it are nobody's changes."""
GIT_SECONDS = 10.0
"""How long git may take: a tree on a network disk can be slow."""


def _git(root: Path, *arguments: str) -> str | None:
    """What git prints in `root`; None where there is no git, or no repository that it would read."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}  # only looks: must not get in the way of a commit
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=GIT_SECONDS, env=environment
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def git_commit(root: Path = ROOT) -> str | None:
    """The commit that `root` is a checkout of, with "-dirty" if its sources differ from it; None if it is none.

    Sources that were packed for a job say what they were made from.
    """
    if (root / COMMIT).is_file():
        return (root / COMMIT).read_text().strip()
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():  # installed into a folder of somebody else's repository
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changes = _git(root, "status", "--porcelain", "--", *(name for name in WATCHED if (root / name).exists()))
    if not commit or changes is None:
        return None
    return f"{commit}-dirty" if changes else commit


def provenance() -> dict[str, str]:
    """`git_commit` (absent without a checkout) and `version/...` of Python and of each package that is installed."""
    values = {"version/python": platform.python_version(), "version/msrcnn": __version__}
    if commit := git_commit():
        values["git_commit"] = commit
    for name in PACKAGES:
        try:
            values[f"version/{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return values


def command() -> str:
    """The command line of this process, passwords in URLs left out; empty where it is none of ours, as in a worker."""
    name, *arguments = sys.argv or [""]
    if Path(name).name not in ("msrcnn", "__main__.py"):
        return ""
    return without_password(shlex.join(["msrcnn", *arguments]))


def made() -> dict[str, str]:
    """What a result stores about how it came about: `provenance`, command, time (UTC), and the driver's machine."""
    cores = f"{os.cpu_count()} CPUs, {platform.machine()}, {platform.system()}"
    gpus = ""
    if "torch" in sys.modules and (cuda := sys.modules["torch"].cuda).is_available():
        gpus = ", ".join(cuda.get_device_name(i) for i in range(cuda.device_count()))
    values = {
        "command": command(), "time": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "machine": cores, "gpus": gpus,
        **provenance(),
    }  # fmt: skip
    return {name: value for name, value in values.items() if value}
