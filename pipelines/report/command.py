"""`msrcnn report`: reads what runs left, and writes the page.

Time and memory, on two cores: 5,000 images of 150 x 180 pixels with 100 detections each took 4 s and 0.3 GB, the start
of Python included; of that a picture takes 5 to 20 ms. Larger masks take longer. Comparing runs matches their
detections (5 ms an image), and draws images: see `pipelines.report.comparison`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from msrcnn.errors import InputError
from msrcnn.metrics.matches import Matches
from pipelines.output_folder import beginning
from pipelines.progress import duration
from pipelines.provenance import made
from pipelines.report.comparison import intervals_of, lines_of, settings_of
from pipelines.report.page import Found, render
from pipelines.report.picks import KINDS, picks_of
from pipelines.report.pictures import BYTES, MOST_BYTES, Picture, pictures_of
from pipelines.report.rows import read_rows_of
from pipelines.report.runs import Run, baseline, open_runs
from pipelines.report_options import ReportConfig
from pipelines.storage import Location, locate


def report(config: ReportConfig, log: Callable[[str], None] = print) -> Location:
    """Writes the page and returns where.

    Raises:
        InputError: a run cannot be used, or the page cannot be written.
    """
    began = time.monotonic()
    out = locate(config.out)
    if out.is_folder():
        raise InputError(f"{out}: is a folder; give --out a file")
    runs = open_runs(config.runs, config.shards, config.training, with_rows=config.gallery > 0)
    for run in runs:
        for note in run.notes:
            log(f"{run.name}: {note}")
    page = render(runs, found_in(runs, config, log)).encode()
    with beginning(out):
        out.parent.make_folder()
        out.write(page)
    log(f"reported in {duration(time.monotonic() - began)}: {out} ({len(page) / 1e6:.1f} MB)")
    return out


def found_in(runs: Sequence[Run], config: ReportConfig, log: Callable[[str], None]) -> Found:
    """What the rows of the runs give."""
    states: dict[int, Matches] = {}
    pictures: dict[str, list[Picture]] = {}
    instances: dict[tuple[int, str], int] = {}
    base = runs[baseline(runs)]
    with_rows = [run for run in runs if run.detections is not None]
    for index, run in enumerate(runs):
        if run.detections is None or run.manifest is None:
            continue
        comparable = run.dataset == base.dataset
        rows = read_rows_of(run, len(with_rows) > 1 and comparable and config.bootstrap > 0, log)
        if rows.matches is not None:
            states[index] = rows.matches
        if comparable:
            instances = {(c.number, c.name): int(rows.instances[c.number]) for c in run.manifest.categories}
        picks = picks_of(rows, -(-config.gallery // len(with_rows)))
        number = sum(map(len, picks.values())) * len(with_rows)
        pictures[run.name] = pictures_of(run, [pick for kind in KINDS for pick in picks[kind]],
                                         min(MOST_BYTES, BYTES // max(1, number)), log)  # fmt: skip
    several = len(runs) > 1
    intervals = intervals_of(runs, states, config.bootstrap, config.seed, log)
    return Found(
        lines_of(runs, intervals) if several else (), settings_of(runs), pictures, instances, made(),
    )  # fmt: skip
