"""`msrcnn score`: the scoring stage alone, on stored detections or on the COCO results of any detector.

`pipelines.reporting` says what is in the folder that it makes.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress

from cluster.session import connect
from pipelines.detection_parts import DETECTIONS, folder_of, read_parts
from pipelines.manifest import read_manifest
from pipelines.progress import duration
from pipelines.reading import row_groups
from pipelines.reporting import SUMMARY, Evaluated, check_output, finish, finished, follows_from, mark, report
from pipelines.results_json import import_results, origin_of_results
from pipelines.scoring import Summary, score_all
from pipelines.scoring_options import ScoreConfig
from pipelines.storage import Location, exclusively, locate
from pipelines.tracking import Tracker, status_of


def score_once(config: ScoreConfig, log: Callable[[str], None] = print) -> None:
    """`msrcnn score`: as `score`, but nothing to do where the folder holds what it would compute."""
    out, given = locate(config.out), locate(config.detections)
    manifest = read_manifest(config.shards)
    is_file = given.size() is not None
    folder = out / DETECTIONS if is_file else folder_of(given)
    held = finished(out, folder)
    if held is not None:
        stored = read_parts(folder, manifest, row_groups(manifest)).origin if not is_file else None
        wanted = follows_from(stored or origin_of_results(given, manifest), config)
        if wanted == {name: held.get(name) for name in wanted}:
            log(f"{out}: holds the numbers of these detections on these shards, nothing to do")
            return
    score(config, log)


def score(config: ScoreConfig, log: Callable[[str], None] = print) -> Summary:
    """Scores, draws, logs.

    Raises:
        InputError: detections, shards or output folder cannot be used, or do not belong together.
    """
    began = time.monotonic()
    out, given = locate(config.out), locate(config.detections)
    manifest = read_manifest(config.shards)
    is_file = given.size() is not None
    folder = out / DETECTIONS if is_file else folder_of(given)
    check_output(out)
    groups = row_groups(manifest)
    stored = None if is_file else read_parts(folder, manifest, groups)
    mark(out)
    with exclusively(out, "scoring into"):
        tracker = Tracker(config.tracking, config.experiment, None, f"score {out.name}")
        try:
            stored = stored or import_results(given, manifest, groups, folder, log)
            with connect(config.address):
                scores = score_all(manifest, groups, stored, log)
            evaluated = Evaluated(manifest, groups, stored)
            made_from = {**_model_of(given), "rows": str(given), "seconds": round(time.monotonic() - began, 1)}
            summary = report(evaluated, scores, config, out, made_from, log)
        except BaseException as error:
            tracker.close(status_of(error))
            raise
        finish(tracker, given, evaluated, summary, out, log)
    log(f"scored in {duration(time.monotonic() - began)}: {out / SUMMARY}")
    return summary


def _model_of(given: Location) -> dict[str, str]:
    """Which model an evaluation's own numbers name; nothing where there are none."""
    with suppress(OSError, ValueError, TypeError, KeyError):
        return {"model": str(json.loads((given / SUMMARY).read())["model"])}
    return {}
