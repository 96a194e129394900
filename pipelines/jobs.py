"""`msrcnn jobs`, `logs`, `stop` and `context`: what goes on in a cluster, seen from outside."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime

from cluster.addresses import context_file, forget, job_address, keep, kept
from cluster.jobs import Job, Jobs
from pipelines.progress import duration
from pipelines.submit import follow, outcome
from pipelines.submit_options import ContextConfig, JobsConfig, LogsConfig, StopConfig

DAY = 86400.0


def jobs(config: JobsConfig, log: Callable[[str], None] = print) -> None:
    """Lists the jobs, the newest last.

    Raises:
        InputError: no cluster answers.
    """
    address, source = job_address(config.address)
    everything = Jobs(address).all()
    listed = [job for job in everything if config.all or job.running or time.time() - (job.ended or 0) < DAY]
    for line in table(listed, time.time()):
        log(line)
    left = len(everything) - len(listed)
    older = f", {left} that ended more than a day ago (--all)" if left else ""
    log(f"{len(listed)} jobs at {address} (from {source}){older}")


def table(listed: list[Job], now: float) -> list[str]:
    """A line a job, in columns; the command comes last, since it is long."""
    rows = [("JOB", "STATE", "BEGAN", "TOOK", "COMMAND")]
    for job in listed:
        began = datetime.fromtimestamp(job.started).strftime("%Y-%m-%d %H:%M:%S") if job.started else "-"
        took = duration((job.ended or now) - job.started) if job.started else "-"
        rows.append((job.name, job.status, began, took, job.command))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    return ["  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[4]]) for row in rows]


def logs(config: LogsConfig, log: Callable[[str], None] = print) -> int:
    """Prints what a job has printed; followed to its end, returns its exit code.

    Raises:
        InputError: no cluster answers, or there is no such job.
    """
    cluster = Jobs(job_address(config.address)[0])
    if config.follow:
        return follow(cluster, config.job, log)
    sys.stdout.write(cluster.printed(config.job))
    return 0


def stop(config: StopConfig, log: Callable[[str], None] = print) -> None:
    """Stops a job.

    Raises:
        InputError: no cluster answers, or there is no such job.
    """
    cluster = Jobs(job_address(config.address)[0])
    if (job := cluster.get(config.job)).running:
        log(f"stopping {config.job}: msrcnn {job.command}")
    log(outcome(cluster.stop(config.job)))


def context(config: ContextConfig, log: Callable[[str], None] = print) -> None:
    """Keeps, shows or forgets the address.

    Raises:
        InputError: it is none, or the file is damaged.
    """
    if config.forget:
        log("forgotten" if forget() else "none was kept")
    elif config.address:
        path = keep(config.address)
        log(f"{kept()} kept in {path}")
    elif address := kept():
        log(f"{address} (from {context_file()})")
    else:
        log("none is kept; `msrcnn context http://HOST:8265` keeps one")
