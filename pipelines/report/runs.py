"""What a page is made from: the numbers of an evaluation, its rows, its shards, and the training behind its model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.credentials import without_password
from msrcnn.errors import InputError
from pipelines.detection_parts import DETECTIONS, SHORT, StoredDetections, folder_of, read_parts
from pipelines.manifest import Manifest, read_manifest
from pipelines.reading import RowGroup, row_groups
from pipelines.reporting import SUMMARY, UNFINISHED
from pipelines.run_directory import METRICS, RUN, RunRecord, read_record
from pipelines.storage import Location, Place, explained, locate

NEEDED = ("dataset", "images", "detections", "ap", "maskiou", "bins", "calibration", "thresholds", "tide", "curves",
          "density")  # fmt: skip
"""What a page takes from `summary.json`."""


@dataclass(frozen=True)
class Training:
    """A run directory of `msrcnn train`."""

    folder: Location
    record: RunRecord
    lines: tuple[dict[str, Any], ...]
    """of metrics.jsonl, by step"""


@dataclass(frozen=True)
class Run:
    """One column of the page.

    Attributes:
        name: short, and different from the other runs'.
        place: the folder that was given.
        summary: of an evaluation, as in `summary.json`; None for a training alone.
        training: behind the evaluation's model; None where it is not known or not there any more.
        manifest: of the shards; None where they are not read.
        groups: their row groups.
        detections: the stored rows; None where they are deleted or not read.
        notes: what the page lacks and why, in sentences.
    """

    name: str
    place: Location
    summary: dict[str, Any] | None
    training: Training | None
    manifest: Manifest | None = None
    groups: tuple[RowGroup, ...] = ()
    detections: StoredDetections | None = None
    notes: tuple[str, ...] = field(default=())

    @property
    def dataset(self) -> str:
        """Fingerprint of the shards that were evaluated on; empty for a training alone."""
        return (self.summary or {}).get("shards", "")


def baseline(runs: Sequence[Run]) -> int:
    """Which run the others are compared with: the first evaluation; 0 where all are trainings alone."""
    return next((index for index, run in enumerate(runs) if run.summary), 0)


def open_runs(
    places: Sequence[Place], shards: Sequence[Place], training: Sequence[Place], with_rows: bool
) -> tuple[Run, ...]:
    """Finds everything, and reads what is small.

    Args:
        places: the runs.
        shards: where their shards are now: none as stored, one for all, or one for each.
        training: likewise the run directories of the trainings.
        with_rows: whether shards and detections are wanted.

    Raises:
        InputError: something that is needed is missing, unfinished or of something else.
    """
    found = tuple(_open(locate(place), _nth(shards, i), _nth(training, i), with_rows) for i, place in enumerate(places))
    return tuple(replace(run, name=name) for run, name in zip(found, _names(found), strict=True))


def _nth(places: Sequence[Place], index: int) -> Place | None:
    return places[index if len(places) > 1 else 0] if places else None


def _open(place: Location, shards: Place | None, training: Place | None, with_rows: bool) -> Run:
    held = _listed(place)
    if SUMMARY not in held and RUN in held:
        return Run(place.name, place, None, _training(place))
    if UNFINISHED in held:
        raise InputError(f"{place}: the evaluation in it is not finished; give the command that began it again")
    if SUMMARY not in held:
        raise InputError(f"{place}: no {SUMMARY} in it; give a folder that `msrcnn evaluate` or `msrcnn score` made, "
                         "or a run directory of `msrcnn train`")  # fmt: skip
    summary = _summary(place / SUMMARY)
    behind, notes = _behind(summary, training)
    run = Run(place.name, place, summary, behind, notes=notes)
    return _with_rows(run, shards) if with_rows else run


def _listed(place: Location) -> dict[str, int | None]:
    try:
        held = place.list()
    except NotADirectoryError:
        raise InputError(f"{place}: is a file; give the folder of an evaluation") from None
    except OSError as error:
        raise InputError(f"{place}: cannot be listed ({explained(error)}); give the folder of an evaluation") from None
    if not held:
        raise InputError(f"{place}: no such folder, or an empty one; give one that `msrcnn evaluate` made")
    return held


def _summary(path: Location) -> dict[str, Any]:
    try:
        summary = json.loads(path.read())
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not the numbers of an evaluation ({error}); evaluate again") from None
    lacking = [name for name in NEEDED if name not in summary] if isinstance(summary, dict) else ["ap"]
    if lacking:
        raise InputError(f"{path}: no {lacking[0]} in it: another version made it; `msrcnn score --detections "
                         f"{path.parent}` computes the numbers again")  # fmt: skip
    return summary


def _training(place: Location) -> Training:
    record = read_record(place)
    if record is None:
        raise InputError(f"{place}: no {RUN} in it; give a run directory of `msrcnn train`")
    path = place / METRICS
    text = path.read().decode("utf-8", "replace") if path.size() is not None else ""
    lines = []
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            value = json.loads(line)
            lines.append((value["step"], number, value))
        except (ValueError, TypeError, KeyError):  # the last one may be half-written
            if number < len(text.splitlines()):
                raise InputError(f"{path}: line {number} is no record of a training; restore the file") from None
    return Training(place, record, tuple(value for _, _, value in sorted(lines, key=lambda x: x[:2])))


def _behind(summary: dict[str, Any], given: Place | None) -> tuple[Training | None, tuple[str, ...]]:
    """The training of the evaluation's model, and what to say where there is none."""
    if given is not None:
        return _training(locate(given)), ()
    if "model" not in summary:
        return None, ("The detections name no model of this program, so there is no training to show.",)
    where = "--training says where it is now"
    try:
        folder = locate(summary["model"]).parent
        if (folder / RUN).size() is not None:
            return _training(folder), ()
    except (OSError, InputError) as error:  # the numbers are here all the same
        return None, (f"No training is shown: {_what(error)}; {where}.",)
    return None, (f"No run directory of a training at {folder}; {where}.",)


def shards_of(run: Run, given: Place | None) -> tuple[Manifest, tuple[RowGroup, ...]]:
    """The shards that a run was evaluated on, and their row groups.

    Args:
        run: with a summary.
        given: where the user says that they are now; None: as stored.

    Raises:
        InputError: they are not there, or others.
    """
    place = (run.summary or {}).get("shards_folder") if given is None else given
    try:
        if place is None:
            raise InputError(f"{run.place}: {SUMMARY} does not say where its shards are")
        manifest = read_manifest(place)
        if manifest.fingerprint != run.dataset:
            raise InputError(f"{without_password(str(place))}: other shards than {run.place} was evaluated on "
                             f"({manifest.fingerprint[:SHORT]}, not {run.dataset[:SHORT]})")  # fmt: skip
        return manifest, tuple(row_groups(manifest))
    except (OSError, InputError) as error:
        now = "--shards says where the shards are now"
        what_to_do = now if given is None else "give those of the evaluation with --shards"
        raise InputError(f"{_what(error)}; {what_to_do}") from None


def rows_place(run: Run) -> Location:
    """Where a run's detections are: beside its numbers, or where these were computed from; perhaps deleted."""
    beside = run.place / DETECTIONS
    return beside if beside.is_folder() else locate((run.summary or {}).get("rows", beside))


def _with_rows(run: Run, given: Place | None) -> Run:
    """The run with its shards and detections. Where the user did not say where they are, a note says what is lacking.

    Raises:
        InputError: the given shards are not there or others, or the detections beside the numbers are damaged.
    """
    try:
        manifest, groups = shards_of(run, given)
    except InputError as error:
        if given is not None:
            raise
        return _noted(run, f"No pictures: {error}.")
    run = replace(run, manifest=manifest, groups=groups)
    try:
        folder = rows_place(run)
        there = folder.is_folder() and bool(folder_of(folder).list())
    except (OSError, InputError) as error:
        return _noted(run, f"No pictures: {_what(error)}.")
    if not there:
        return _noted(run, f"No detections at {folder}: they were deleted or moved, so there are no pictures.")
    return replace(run, detections=read_parts(folder_of(folder), manifest, groups))


def _noted(run: Run, note: str) -> Run:
    return replace(run, notes=(*run.notes, note))


def _what(error: OSError | InputError) -> str:
    """What is wrong, without what to do: that is of other commands."""
    return explained(error) if isinstance(error, OSError) else str(error).split(";")[0]


def _names(runs: Sequence[Run]) -> list[str]:
    """The shortest ends of the places that tell the runs apart."""
    paths = [[part for part in run.place.path.split("/") if part] for run in runs]
    for length in range(1, max(map(len, paths)) + 1):
        names = ["/".join(path[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{run.place.name} ({i})" for i, run in enumerate(runs, start=1)]
