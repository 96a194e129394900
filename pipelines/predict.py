"""`msrcnn predict`: a model and images that nothing is known of, to overlays, rows and COCO results.

OUT/overlays/      each image, or video, with its detections drawn on it, named after it
OUT/parts/         rows of the images that are done, until all are
OUT/detections.parquet, detections.json, images.json   see `pipelines.predict_rows`; there at the end
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any

import torch

from msrcnn.errors import InputError
from msrcnn.weights import load_model
from pipelines.detection_parts import VERSION, Key, Origin, PartInfo, prepare
from pipelines.output_folder import beginning, going_on, held_in
from pipelines.predict_inputs import Source, find_sources
from pipelines.predict_job import OVERLAYS, PARTS, Part, PredictJob, Predictor, expected_images, parts_of
from pipelines.predict_options import PredictConfig
from pipelines.predict_rows import DETECTIONS, IMAGES, RESULTS, Joined, finished, join
from pipelines.progress import Progress, duration
from pipelines.run_directory import find_model
from pipelines.storage import ASIDE, Location, exclusively, locate, on_disk, sha256_of
from pipelines.text_tables import counted
from pipelines.video import check_encoder, video_library

FAILED = 1
"""The exit code where more images than `--max-failed` could not be used."""


def predict(config: PredictConfig, log: Callable[[str], None] = print) -> int:
    """Detects, draws, stores; nothing where the folder holds the predictions that it would make.

    Returns:
        the exit code: 1 if more than `max_failed` images could not be used, else 0.

    Raises:
        InputError: model, inputs or output folder cannot be used, or not a single image can.
    """
    began, out = time.monotonic(), locate(config.out)
    weights, _ = find_model(config.model)
    sources = find_sources(config.images, out)
    if any(source.is_video for source in sources):
        video_library()
        if config.overlays:
            check_encoder()
    if config.gpu and not on_cluster(config) and not torch.cuda.is_available():
        raise InputError("--gpu: this machine has no GPU that CUDA knows; leave it out, or give --address")
    _check_output(out)
    with on_disk(weights) as path:
        model = load_model(path)
        settings: dict[str, Any] = {"rows": VERSION, "min-score": config.min_score, "overlays": config.overlays}
        if changed := config.inference.changed(model.model.config):
            settings["inference"] = changed
        origin = Origin(sha256_of(path), _fingerprint(sources), settings)
    categories = [(category, name) for _, category, name in model.categories]
    del model
    if joined := _held(out, origin, log):
        return _said(joined, config, log)
    job = PredictJob(weights.url, out, origin, config.min_score, config.overlays, config.batch, config.inference)
    log(f"detecting in {_counted(sources)} with {weights}")
    with beginning(out):
        out.make_folder()
    with exclusively(out, "predicting into"):
        if joined := _held(out, origin, log):  # another process may have finished meanwhile
            return _said(joined, config, log)
        done = prepare(out / PARTS, origin)
        _remove_halves(out)
        joined = _finish(out, _run(config, job, parts_of(sources), done, log), categories, origin)
    code = _said(joined, config, log)
    log(f"done in {duration(time.monotonic() - began)}: {out}")
    return code


def on_cluster(config: PredictConfig) -> bool:
    """Whether processes of a Ray cluster do the work; otherwise this one does."""
    return bool(config.address or config.actors or os.environ.get("RAY_ADDRESS"))


def _run(
    config: PredictConfig, job: PredictJob, parts: Sequence[Part], done: dict[Key, PartInfo], log: Callable[[str], None]
) -> list[PartInfo]:
    """Does the parts that are missing; what is in all, in their order."""
    missing = [part for part in parts if (part.number, 0) not in done]
    if done:
        log(f"{len(parts) - len(missing)} of {len(parts)} parts are there already")
    if missing and on_cluster(config):
        from cluster.session import connect
        from pipelines.predict_cluster import run_parts

        with connect(config.address):
            new = run_parts(job, missing, config.actors, config.gpu, log)
    else:
        new = _run_here(job, missing, log)
    done |= {info.key: info for info in new}
    return [done[part.number, 0] for part in parts]


def _run_here(job: PredictJob, parts: Sequence[Part], log: Callable[[str], None]) -> list[PartInfo]:
    """In this process."""
    if not parts:
        return []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    predictor = Predictor(job, device)
    expected = expected_images(parts)
    progress, infos = Progress(sum(expected.values()), log), []
    with threads_for(device):
        for part in parts:
            before = progress.done
            infos.append(predictor.run(part, progress.add))
            progress.expect(progress.total + progress.done - before - expected[part.number])
    return infos


@contextmanager
def threads_for(device: torch.device) -> Iterator[None]:
    """For the block, as many of torch's threads as suit the device: one beside a GPU, as in a cluster's process.

    Masks are pasted with them, each so small that two threads mostly wait for one another (docs/log.md).
    """
    threads = torch.get_num_threads()
    if device.type == "cuda":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _finish(out: Location, infos: Sequence[PartInfo], categories: Sequence[tuple[int, str]], origin: Origin) -> Joined:
    """Writes the files."""
    if all(info.errors == info.images for info in infos):
        with going_on(out):
            (out / PARTS).remove_folder()
        raise InputError(f"none of {sum(i.images for i in infos)} images could be used (first: {infos[0].first_error})")
    with going_on(out):
        joined = join(out, out / PARTS, infos, categories, origin)
        (out / PARTS).remove_folder()
    return joined


def _said(joined: Joined, config: PredictConfig, log: Callable[[str], None]) -> int:
    """Says what there is; the exit code."""
    for line in lines(joined, locate(config.out)):
        log(line)
    return FAILED if joined.failed > config.max_failed else 0


def lines(joined: Joined, out: Location) -> list[str]:
    """What was found, and what could not be used."""
    found = [f"{joined.detections} detections in {joined.with_detections} of {joined.images} images: "
             f"{DETECTIONS}, {RESULTS}, {IMAGES}"]  # fmt: skip
    if joined.detections == 0:
        found.append("no mask score reaches --min-score; with a lower one there may be detections")
    if joined.failed:
        found += [f"{joined.failed} could not be used:", *(f"  {error}" for error in joined.errors)]
    if joined.failed > len(joined.errors):
        found.append(f"  and {joined.failed - len(joined.errors)} more: the rows with an 'error' in {out / DETECTIONS}")
    return found


def _check_output(out: Location) -> None:
    """Raises InputError where `out` holds something that is no predictions."""
    held = held_in(out)
    if held and not {DETECTIONS, PARTS} & {*held}:
        raise InputError(f"{out}: is not empty; choose another --out")


def _held(out: Location, origin: Origin, log: Callable[[str], None]) -> Joined | None:
    """What is in a finished folder; None where it is not finished.

    A scheduler that gives the command of a finished job again, as RayJobs and Slurm may, is told how that ended.

    Raises:
        InputError: it holds the predictions of another model, or others of this one.
    """
    if (out / DETECTIONS).size() is None:
        return None
    found = finished(out)
    different = origin.differences(found[0]) if found else "they do not say of what"
    if found is None or different:
        raise InputError(f"{out}: already holds other predictions ({different}); choose another --out or delete it")
    (out / PARTS).remove_folder()  # of a process that was killed just then
    log(f"{out}: holds the predictions of this model for these images, nothing to do")
    return found[1]


def _remove_halves(out: Location) -> None:
    """What a process that was killed had not finished."""
    for name in out.list():
        if (aside := ASIDE.fullmatch(name)) and aside["name"] in (DETECTIONS, RESULTS, IMAGES):
            (out / name).remove()
    if out.local is not None:
        for path in (out.local / OVERLAYS).rglob("*.tmp-*"):
            if ASIDE.fullmatch(path.name):
                path.unlink(missing_ok=True)


def _fingerprint(sources: Sequence[Source]) -> str:
    """Another where names, or sizes and times, of the files differ: what was made of the old ones is then of no use."""
    checksum = hashlib.sha256()
    for source in sources:
        checksum.update(json.dumps([*astuple(source)]).encode())
    return checksum.hexdigest()


def _counted(sources: Sequence[Source]) -> str:
    videos = sum(source.is_video for source in sources)
    kinds = [(len(sources) - videos, "image"), (videos, "video")]
    return " and ".join(counted(number, kind) for number, kind in kinds if number)
