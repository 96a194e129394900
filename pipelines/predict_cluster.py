"""`msrcnn predict` as processes of a Ray cluster: each keeps the model and does one part after the other."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields

import pyarrow as pa
import torch

from pipelines.detection_parts import PartInfo
from pipelines.inference import DONE_ROW
from pipelines.job_rows import job_rows
from pipelines.one_row_blocks import one_row_blocks
from pipelines.pool import Pool
from pipelines.predict_inputs import Source
from pipelines.predict_job import Part, PredictJob, Predictor, expected_images
from pipelines.progress import Progress


class PredictActor:
    """A process: a part's sources in, a row about what it wrote out."""

    def __init__(self, job: PredictJob, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self._predictor = Predictor(job, torch.device("cuda" if gpu else "cpu"))

    def __call__(self, plan: pa.Table) -> pa.Table:
        done = []
        for row in plan.to_pylist():
            part = Part(row["number"], tuple(Source(*values) for values in json.loads(row["sources"])))
            done.append(asdict(self._predictor.run(part)))
        return pa.Table.from_pylist(done, DONE_ROW)


def run_parts(
    job: PredictJob, parts: Sequence[Part], actors: int, gpu: bool, log: Callable[[str], None]
) -> list[PartInfo]:
    """Does these parts.

    Args:
        job: what every process is told.
        parts: that are missing.
        actors: processes; 0: from one to as many as the cluster has room for.
        gpu: a GPU each.
        log: takes lines about how far it is.

    Raises:
        InputError: something cannot be read or written, or a process was lost again and again.
    """
    pool = Pool.of_cluster(actors, gpu, len(parts))
    plan = [
        {"number": part.number, "sources": json.dumps([[getattr(s, f.name) for f in fields(s)] for s in part.sources])}
        for part in parts
    ]
    rows = pool.map(one_row_blocks(pa.Table.from_pylist(plan)), PredictActor, job)
    expected = expected_images(parts)
    infos, progress = [], Progress(sum(expected.values()), log)
    for row in job_rows(rows):
        info = PartInfo(**row)
        infos.append(info)
        progress.total += info.images - expected[info.shard]
        progress.add(info.images)
    return infos
