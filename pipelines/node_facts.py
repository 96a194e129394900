"""What a node knows about itself, for `msrcnn doctor`. Runs on nodes; imports no torch, which would take long."""

from __future__ import annotations

import getpass
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from cluster.package import PACKAGES, ROOT, sources

SHARED_MEMORY = "/dev/shm"
TORCH_SECONDS = 120.0
"""How long a node may take to import torch."""
COUNT_GPUS = "import torch; print(torch.cuda.device_count(), torch.version.cuda)"


def versions() -> dict[str, str]:
    """Of Python and each package that is installed, by what is on disk.

    Ray's own is also that which runs: a package that was replaced under a running node has two.
    """
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name).partition("+")[0]  # builds for CPU and CUDA go together
        except metadata.PackageNotFoundError:
            continue
    running = getattr(sys.modules.get("ray"), "__version__", None)
    if running is not None and running != found.get("ray"):
        found["ray"] = f"{running} (installed: {found.get('ray', 'none')})"
    return found


def code() -> dict[str, str]:
    """SHA-256 of each source file of ours, by its path in the tree."""
    return {str(f.relative_to(ROOT)): hashlib.sha256(f.read_bytes()).hexdigest()[:16] for f in sources()}


def facts() -> dict[str, Any]:
    """Versions, code, where it lies, the clock, where Ray keeps objects and files, and what is free there."""
    command = _raylet_command()
    session = command.get("session_dir") or command.get("temp_dir") or "/tmp"
    return {
        "versions": versions(),
        "code": code(),
        "root": str(ROOT),
        "clock": time.time(),
        "objects": command.get("plasma_directory"),
        "shared_memory": _free(SHARED_MEMORY),
        "session": session,
        "disk": _free(session),
    }


def user() -> str:
    """Who runs this process, for messages."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"user {os.getuid()}"


def gpus() -> tuple[int, str]:
    """How many GPUs torch sees on this node, and of what CUDA it is; a negative number and what went wrong if none.

    In a process of its own, with the environment of the node's Ray: a process that has asked for no GPU sees none.
    """
    environment = dict(os.environ)
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    visible = _raylet_environment().get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    done = subprocess.run([sys.executable, "-c", COUNT_GPUS], env=environment, capture_output=True, text=True,
                          timeout=TORCH_SECONDS, check=False)  # fmt: skip
    if done.returncode != 0:
        return -1, (done.stderr.strip().splitlines() or ["it ended"])[-1]
    number, cuda = done.stdout.split()[-2:]
    return int(number), cuda


def node_resources() -> list[dict[str, float]]:
    """What each node that is there has in all, by Ray's names of resources."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def free_resources() -> dict[str, dict[str, float]]:
    """What each node has to give at this moment, by its id."""
    import ray

    return ray._private.state.available_resources_per_node()


def _raylet() -> psutil.Process | None:
    """The process of Ray's that has started this one."""
    try:
        parents = psutil.Process().parents()
        return next((p for p in parents if Path((p.cmdline() or [""])[0]).name == "raylet"), None)
    except psutil.Error:
        return None


def _raylet_command() -> dict[str, str]:
    """The options that the node's raylet was started with."""
    raylet = _raylet()
    pairs = (part.removeprefix("--").partition("=") for part in (raylet.cmdline() if raylet else ()))
    return {name.replace("-", "_"): value for name, _, value in pairs if value}


def _raylet_environment() -> dict[str, str]:
    raylet = _raylet()
    try:
        return raylet.environ() if raylet else {}
    except psutil.Error:
        return {}


def _free(folder: str) -> tuple[int, int] | None:
    """Bytes of a file system and how many of them are free; None if it is not there."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return None
    return usage.total, usage.free
