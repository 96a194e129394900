"""The options of the verbs that talk about a cluster: submit, jobs, logs, stop, context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from msrcnn.config import require
from pipelines.option_names import OnUnlessNot


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Which cluster."""

    address: str | None = None
    """of the cluster's dashboard, http://HOST:8265; RAY_API_SERVER_ADDRESS or RAY_ADDRESS if absent, else what
    `msrcnn context` keeps"""


@dataclass(frozen=True, kw_only=True)
class SubmitConfig(ClusterOptions):
    """Run a command on a cluster, as a Ray job, and follow what it prints.

    msrcnn submit [OPTIONS] COMMAND...

    COMMAND is any other command of msrcnn with its options; paths in it are the cluster's. The program goes along as it
    is here. Interrupting, or losing the connection, leaves the job running; the same command again follows it.
    """

    wait: OnUnlessNot = True
    """do not follow the job; without this, msrcnn prints what the job prints, and ends with its exit code"""
    env: tuple[str, ...] = ()
    """variables for the job: NAME=VALUE, or NAME for its value here. Secrets are refused: everybody who can list jobs
    sees them"""
    packages: Literal["installed", "locked"] = "installed"
    """locked: every node first installs requirements.lock for the job (uv), for clusters that have nothing but Ray;
    installed: the nodes have the packages, and the job says what differs from the lock"""
    image: str | None = None
    """container image that the job runs in, on nodes with Podman; it has the packages and the program"""
    python: str = "python"
    """interpreter on the head node, with --packages installed"""
    command: tyro.conf.Suppress[tuple[str, ...]] = ()
    """the command and its arguments"""

    def __post_init__(self) -> None:
        for item in self.env:
            name = item.partition("=")[0]
            good = name.isidentifier() and name.isascii()
            require(good, "--env", name, "NAME=VALUE or NAME")
        require(not (self.image and self.packages == "locked"), "--packages", self.packages,
                "absent with --image, which has its own")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class JobsConfig(ClusterOptions):
    """List the jobs of a cluster: id, state, when it began, how long it took, its command."""

    all: bool = False
    """also those that ended more than a day ago"""


@dataclass(frozen=True, kw_only=True)
class LogsConfig(ClusterOptions):
    """Print what a job has printed, and follow it until it ends."""

    job: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JOB")]
    """its id, as `msrcnn jobs` lists it"""
    follow: OnUnlessNot = True
    """print what there is, and do not wait for more"""


@dataclass(frozen=True, kw_only=True)
class StopConfig(ClusterOptions):
    """Stop a job. Submitted again, a training, an evaluation or a sweep resumes."""

    job: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="JOB")]
    """its id, as `msrcnn jobs` lists it"""


@dataclass(frozen=True)
class ContextConfig:
    """Keep the address of a cluster's dashboard for submit, jobs, logs and stop; without one, show what is kept."""

    address: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[ADDRESS]")] = None
    """http://HOST:8265"""
    forget: bool = False
    """keep none any more"""

    def __post_init__(self) -> None:
        require(not (self.forget and self.address), "--forget", self.forget, "without an address")
