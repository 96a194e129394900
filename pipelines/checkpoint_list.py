"""Ray Train's list of a run's checkpoints, from the driver's side. Imports no torch: Ray's own processes use it.

Ray Train keeps the list (checkpoint_manager_snapshot.json) and deletes old checkpoints. A folder that is not on it is
what a killed process left; one that is on it is whole, for it gets there when the last byte is stored.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import ray

from pipelines import storage
from pipelines.run_directory import IMAGES, MODEL, VALIDATION
from pipelines.storage import Location

TRAINING = "training.pt"
PREFIX = "step-"
ASIDE = f".{PREFIX}"
"""How a folder begins that is still being written, where it can be renamed."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's own list of the checkpoints."""


def checkpoint_name(step: int) -> str:
    """The folder, in the run directory, of the checkpoint taken after `step` steps."""
    return f"{PREFIX}{step:08d}"


def step_of(name: str) -> int:
    """The step that a checkpoint's folder is named after."""
    return int(name.removeprefix(PREFIX))


def committed(run: Location) -> list[int]:
    """The steps of the checkpoints on Ray Train's list, the newest last; empty if there is none.

    Raises:
        ValueError: the list cannot be read: it is being written, or its writer was killed.
    """
    place = run / SNAPSHOT
    if place.size() is None:
        return []
    snapshot = json.loads(place.read())
    return sorted(step_of(result["checkpoint_dir_name"]) for result in snapshot["checkpoint_results"])


def next_step(run: Location) -> int:
    """The step at which the run goes on: that of its last checkpoint, 0 if there is none."""
    return max(committed(run), default=0)


def tidy(run: Location, log: Callable[[str], None]) -> None:
    """Repairs the list of checkpoints if its writer was killed over it, and deletes what is not on it."""
    whole = sorted(step_of(name) for name in _folders(run) if {MODEL, TRAINING} <= (run / name).list().keys())
    try:
        known = committed(run)
    except ValueError:
        known, problem = whole, "cut short"
    else:
        problem = "lists what is not there" if set(known) - set(whole) else ""
        known = [step for step in known if step in whole]
    if problem:
        log(f"{run / SNAPSHOT}: {problem}; written again from the checkpoints that are there")
        (run / SNAPSHOT).write(_snapshot(known))
    kept = [checkpoint_name(step) for step in known]
    for name in [*_folders(run), *_folders(run, ASIDE)]:
        if name not in kept:
            log(f"{run / name}: left by a process that ended before it was stored; deleted")
            (run / name).remove_folder()
    for folder in (run, run / IMAGES, run / VALIDATION):
        for name in folder.list():
            if storage.ASIDE.fullmatch(name):
                (folder / name).remove()


def _folders(run: Location, prefix: str = PREFIX) -> list[str]:
    return [name for name, size in run.list().items() if size is None and name.startswith(prefix)]


def _snapshot(steps: list[int]) -> bytes:
    results = [{"version": 0, "checkpoint_dir_name": checkpoint_name(s), "metrics": {"step": s}} for s in steps]
    value: dict[str, Any] = {
        "ray_version": ray.__version__, "version": 0, "checkpoint_results": results,
        "checkpoint_report_indices": list(range(len(steps))), "current_report_index": len(steps),
        "latest_checkpoint_result": results[-1] if results else None, "pending_training_results": [],
        "pending_validation_specs": [], "validated_checkpoint_dir_names": [],
        "timed_out_validation_checkpoint_dir_names": [], "failed_validation_checkpoint_dir_names": [],
    }  # fmt: skip
    return json.dumps(value).encode()
