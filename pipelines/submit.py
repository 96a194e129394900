"""`msrcnn submit COMMAND...`: any of our commands as a job on a Ray cluster.

The command is checked here, before anything is sent: its options as on this machine, its paths, which must be
the cluster's, and that nothing secret is in it.
"""

from __future__ import annotations

import os
import re
import sys
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any

from cluster.addresses import job_address
from cluster.credentials import check_command, check_variable
from cluster.jobs import Job, Jobs, Request
from cluster.package import locked, locked_versions, packed
from msrcnn.errors import InputError
from pipelines.job_environment import SUBMITTED
from pipelines.progress import duration
from pipelines.provenance import git_commit
from pipelines.submit_options import SubmitConfig
from pipelines.verbs import OF_A_CLUSTER, VERBS, parse

RUNS = ("run", "out")
"""Options that say what a command works on: two jobs with the same are one."""
PLACES = ("trunk", "from_checkpoint", "storage", "shards")
"""Options that take a path and are texts by their type."""
NOT_PLACES = ("weights",)
"""Options that take a path, or what is none: torchvision's name of weights, 'none'."""
FAILED, DETACHED = 1, 130


def submit(config: SubmitConfig, log: Callable[[str], None] = print) -> int:
    """Submits, and follows the job unless told otherwise; returns the exit code.

    Raises:
        InputError: command, variables or address cannot be used, or the cluster refuses the job.
    """
    request_of = _checked(config)  # before a cluster is asked for anything
    address, source = job_address(config.address)
    cluster = Jobs(address)
    _check_ray(cluster, config)
    job, new = request_of(cluster)
    did = "submitted" if new else "is running already"
    log(f"job {job.name} {did}: {address} (from {source})")
    if not config.wait:
        log(f"msrcnn logs {job.name} follows it, msrcnn stop {job.name} ends it")
        return 0
    return follow(cluster, job.name, log)


def follow(cluster: Jobs, name: str, log: Callable[[str], None]) -> int:
    """Prints what a job prints until it has ended, and returns its exit code; interrupted, leaves it running."""

    def write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    try:
        job = cluster.follow(name, write, log)
    except KeyboardInterrupt:
        log(f"\njob {name} goes on; `msrcnn logs {name}` follows it, `msrcnn stop {name}` ends it")
        return DETACHED
    log(outcome(job))
    return 0 if job.status == "SUCCEEDED" else job.exit_code or FAILED


def outcome(job: Job) -> str:
    """How a job ended, in a line."""
    took = f" after {duration(job.ended - job.started)}" if job.started and job.ended else ""
    if job.status == "SUCCEEDED":
        return f"job {job.name} succeeded{took}"
    if job.status == "STOPPED":
        return f"job {job.name} was stopped{took}; the same command goes on where it stopped"
    if job.exit_code is not None:
        return f"job {job.name} failed with exit code {job.exit_code}{took}"
    return f"job {job.name} failed{took}: {' '.join(job.message.split())[:500]}"


def _checked(config: SubmitConfig) -> Callable[[Jobs], tuple[Job, bool]]:
    """What submits the command to a cluster, once everything about it has been found right."""
    if not config.command:
        raise InputError(f"no command to submit; give one of {', '.join(v for v in VERBS if v not in OF_A_CLUSTER)}")
    verb, arguments = config.command[0], config.command[1:]
    if verb in OF_A_CLUSTER:
        raise InputError(f"'{verb}' cannot be submitted: it runs here, and talks to the cluster")
    arguments, files = with_files(verb, arguments)
    options = parse(verb, arguments)
    if getattr(options, "address", None):
        raise InputError("--address: the job joins the cluster that it is submitted to; give it before the command: "
                         f"msrcnn submit --address ... {verb}")  # fmt: skip
    check_places(options)
    check_command(arguments)
    variables = _variables(config.env)

    def send(cluster: Jobs) -> tuple[Job, bool]:
        with packed(git_commit(), files) as folder:
            environment = runtime_env(config, folder, variables)
            run = run_of(options)
            return cluster.submit(Request((verb, *arguments), run, job_name(verb, run), environment, config.python))

    return send


def with_files(verb: str, arguments: Sequence[str]) -> tuple[tuple[str, ...], list[Path]]:
    """A command as it is on the cluster, and the files of this machine that go along: the spaces of a sweep."""
    if verb != "sweep":
        return tuple(arguments), []
    here = {a: Path(a) for a in arguments if a.endswith(".toml") and not a.startswith("-") and Path(a).is_file()}
    names = [path.name for path in here.values()]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InputError(f"{min(twice)}: two spaces with this file name; rename one")
    return tuple(f"files/{here[a].name}" if a in here else a for a in arguments), list(here.values())


def check_places(options: Any) -> None:
    """Refuses paths that would mean another place on the cluster than here.

    Raises:
        InputError: naming the option.
    """
    for field in fields(options):
        value = getattr(options, field.name)
        values = value if isinstance(value, tuple) else (value,)
        option = f"--{field.name.replace('_', '-')}"
        if "Positional" in str(field.type):
            option = field.name.upper()
        if field.name == "out" and _writes_nothing(options):
            continue
        if "Path" in str(field.type) or field.name in PLACES:
            wrong = [v for v in values if v is not None and not _anywhere(str(v))]
        elif field.name in NOT_PLACES:
            wrong = [v for v in values if v and not _anywhere(v) and ("/" in v or Path(v).suffix in (".pt", ".pth"))]
        else:
            continue
        if wrong:
            raise InputError(f"{option} {wrong[0]}: on the cluster, a path that does not begin with / is in a folder "
                             "that goes with the job; give a URL, or a whole path that every node sees")  # fmt: skip
    tracking = getattr(options, "tracking", None)
    if tracking and tracking.startswith("sqlite:") and not tracking.startswith("sqlite:////"):
        raise InputError(f"--tracking {tracking}: would be a file in a folder that goes with the job; give the address "
                         "of an MLflow server")  # fmt: skip


def run_of(options: Any) -> str:
    """What the command works on; empty for one that may run any number of times."""
    if _writes_nothing(options):
        return ""
    return next((str(v).rstrip("/") for name in RUNS if (v := getattr(options, name, None))), "")


def job_name(verb: str, run: str) -> str:
    """The id of a run's first job: readable, and the same for the same run."""
    if not run:
        return f"{verb}-{uuid.uuid4().hex[:6]}"
    name = re.sub(r"[^A-Za-z0-9]+", "-", run.rpartition("/")[2]).strip("-")[:40]
    return f"{verb}-{name}-{sha256(run.encode()).hexdigest()[:6]}"


def runtime_env(config: SubmitConfig, folder: Path, variables: dict[str, str]) -> dict[str, Any]:
    """Ray's runtime environment of the job: our sources, the packages or the image, the variables."""
    variables = {**variables, SUBMITTED: "1"}
    environment: dict[str, Any] = {"working_dir": str(folder), "env_vars": variables}
    if config.image:
        environment["image_uri"] = config.image
    if config.packages == "locked":
        environment["uv"] = {"packages": locked()}
        environment["config"] = {"setup_timeout_seconds": 1800}
    return environment


def _variables(items: Sequence[str]) -> dict[str, str]:
    variables = {}
    for item in items:
        name, given, value = item.partition("=")
        if not given:
            if name not in os.environ:
                raise InputError(f"--env {name}: is not set here; set it, or give {name}=VALUE")
            value = os.environ[name]
        check_variable(name, value)
        variables[name] = value
    return variables


def _check_ray(cluster: Jobs, config: SubmitConfig) -> None:
    """A job cannot bring another Ray along than the cluster runs."""
    there, ours = cluster.ray_version, locked_versions("ray")
    if config.packages == "locked" and there and ours and there not in ours:
        raise InputError(f"{cluster.address}: runs Ray {there}, requirements.lock names {ours[0]}; start the cluster "
                         f"with ray=={ours[0]}")  # fmt: skip


def _writes_nothing(options: Any) -> bool:
    """Whether its --out is not used: `msrcnn data` without a gallery."""
    return getattr(options, "gallery", None) == 0


def _anywhere(place: str) -> bool:
    return "://" in place or place.startswith("/")
