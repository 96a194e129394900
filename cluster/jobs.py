"""Ray jobs, seen from a machine that is not in the cluster: submitted, found again, followed, stopped."""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from cluster.addresses import use_token
from msrcnn.errors import InputError

RUN, COMMAND = "msrcnn.run", "msrcnn.command"
"""Of a job's metadata: what it works on (see `Request.run`), and its command."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
POLL_SECONDS = 1.0
LONGEST_SILENCE = 600.0
"""How many seconds a cluster that stops answering is asked again, while a job is followed."""


@dataclass(frozen=True)
class Request:
    """A job to run.

    Attributes:
        command: of ours, a verb and its arguments.
        run: what it works on, a path or URL; two jobs with the same are never submitted beside each other. Empty for
            a command that may run any number of times.
        name: what its id begins with.
        runtime_env: Ray's.
        python: what runs it.
    """

    command: tuple[str, ...]
    run: str
    name: str
    runtime_env: dict[str, Any]
    python: str = "python"


@dataclass(frozen=True)
class Job:
    """A job as the cluster knows it. Times are seconds since 1970.

    Attributes:
        name: its id.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        command: ours, or the whole entry point of somebody else's job.
        run: see `Request`.
        message: what Ray says about its state.
        exit_code: of the command, once it has ended by itself.
    """

    name: str
    status: str
    command: str
    run: str
    started: float | None
    ended: float | None
    message: str
    exit_code: int | None

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self.status not in ENDED


class Jobs:
    """The jobs of one cluster.

    Args:
        address: of its dashboard, http://HOST:8265.

    Raises:
        InputError: it does not answer as Ray, or wants a token that we do not have.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        os.environ["RAY_API_SERVER_ADDRESS"] = address  # else what is in the environment would go before it
        use_token()
        from ray.dashboard.modules.job import sdk

        # It tells of each upload and each closed connection.
        for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
        with self._explained():
            self._client = sdk.JobSubmissionClient(address)

    @property
    def ray_version(self) -> str | None:
        """Which Ray the cluster runs, where it says so."""
        return self._client._server_ray_version

    def all(self) -> list[Job]:
        """Those that were submitted, the newest last; drivers that joined by themselves are not among them."""
        with self._explained():
            jobs = [_job(details) for details in self._client.list_jobs() if details.submission_id]
        return sorted(jobs, key=lambda job: job.started or 0)

    def get(self, name: str) -> Job:
        """The job of that id.

        Raises:
            InputError: there is none.
        """
        with self._explained(name):
            return _job(self._client.get_job_info(name))

    def submit(self, request: Request) -> tuple[Job, bool]:
        """Submits, or finds the job that works on the same run already; and whether it was submitted.

        A run's first job has the request's name as its id, the next ones a number after it. Ray takes an id once, so
        that of two submitters at the same moment one finds the other's job.

        Raises:
            InputError: a job with another command works on the run, or the cluster refuses the job.
        """
        for _ in range(3):
            jobs = self.all()
            if request.run and (found := [j for j in jobs if j.running and j.run == request.run]):
                return _same(found[-1], request), False
            name = _free(request.name, {job.name for job in jobs})
            try:
                self._submit(name, request)
            except InputError:
                if request.run and any(job.name == name for job in self.all()):
                    continue
                raise
            return self.get(name), True
        raise InputError(f"{request.run}: other jobs keep being submitted for it; see `msrcnn jobs`")

    def _submit(self, name: str, request: Request) -> None:
        with self._explained():
            self._client.submit_job(
                entrypoint=shlex.join([request.python, "-m", "pipelines", *request.command]),
                submission_id=name,
                runtime_env=request.runtime_env,
                metadata={RUN: request.run, COMMAND: shlex.join(request.command)},
            )

    def stop(self, name: str) -> Job:
        """Stops a job and waits until it has ended; one that has ended already stays as it is.

        Raises:
            InputError: there is none of that id.
        """
        if self.get(name).running:
            with self._explained(name):
                self._client.stop_job(name)
        while (job := self.get(name)).running:
            time.sleep(POLL_SECONDS)
        return job

    def printed(self, name: str) -> str:
        """What a job has printed so far.

        Raises:
            InputError: there is none of that id.
        """
        with self._explained(name):
            return self._client.get_job_logs(name)

    def follow(self, name: str, write: Callable[[str], object], log: Callable[[str], None]) -> Job:
        """Passes on what a job prints, from its beginning, until it has ended.

        A connection that breaks is made again, and nothing is passed on twice.

        Args:
            name: its id.
            write: takes pieces of text.
            log: takes a line when the cluster stops answering.

        Raises:
            InputError: there is none of that id, or the cluster has not answered for `LONGEST_SILENCE` seconds.
        """
        job, passed, silent_since = self.get(name), 0, None

        def take(text: str) -> None:
            nonlocal passed
            write(text)
            passed += len(text)

        while True:
            try:
                asyncio.run(self._tail(name, passed, take))
                job, silent_since = self._answer(name), None
                if not job.running:
                    take(self._client.get_job_logs(name)[passed:])  # what came after the connection's last look
                    return job
            except _SILENCE as error:
                now = time.monotonic()
                if silent_since is None:
                    silent_since = now
                    log(f"{self.address}: does not answer ({_first_line(error)}); the job goes on, asking again")
                if now - silent_since > LONGEST_SILENCE:
                    raise InputError(f"{self.address}: has not answered for {LONGEST_SILENCE:.0f} s; once it does, "
                                     f"`msrcnn logs {name}` shows the job") from None  # fmt: skip
            time.sleep(POLL_SECONDS)

    def _answer(self, name: str) -> Job:
        return _job(self._client.get_job_info(name))

    async def _tail(self, name: str, skip: int, take: Callable[[str], None]) -> None:
        """Passes on what is printed after the first `skip` characters, until the job or the connection ends."""
        async for piece in self._client.tail_job_logs(name):
            skipped = min(skip, len(piece))
            skip -= skipped
            if piece[skipped:]:
                take(piece[skipped:])

    @contextmanager
    def _explained(self, name: str = "") -> Iterator[None]:
        """Turns what Ray's client raises into a line that says what to do."""
        try:
            yield
        except Exception as error:  # requests', aiohttp's and Ray's own, which have no common base
            text = str(error)
            if "uthentication" in text or "401" in text.split("\n")[0] or "403" in text.split("\n")[0]:
                raise InputError(
                    f"{self.address}: asks for Ray's token, and the one here is absent or another; put it into "
                    "~/.ray/auth_token, or its path into RAY_AUTH_TOKEN_PATH"
                ) from error
            if name and ("404" in text or "does not exist" in text):
                raise InputError(f"{name}: no such job at {self.address}; `msrcnn jobs` lists them") from error
            raise InputError(f"{self.address}: {_first_line(error)}") from error


_SILENCE = (OSError, RuntimeError, asyncio.TimeoutError, ValueError)
"""What a cluster raises that does not answer, or answers with nothing that can be read."""


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    started, ended = ((moment / 1000 if moment else None) for moment in (details.start_time, details.end_time))
    return Job(
        details.submission_id or details.job_id or "", str(getattr(details.status, "value", details.status)),
        metadata.get(COMMAND) or details.entrypoint or "", metadata.get(RUN, ""), started, ended,
        details.message or "", details.driver_exit_code,
    )  # fmt: skip


def _same(job: Job, request: Request) -> Job:
    """The job, if it does what is asked for."""
    if job.command != shlex.join(request.command):
        raise InputError(f"{request.run}: job {job.name} works on it with another command (msrcnn {job.command}); "
                         f"wait, `msrcnn stop {job.name}`, or give the same command to follow it")  # fmt: skip
    return job


def _free(name: str, taken: Sequence[str] | set[str]) -> str:
    """The name, or with the lowest number after it that makes it one that is not taken."""
    number = 1
    while (candidate := name if number == 1 else f"{name}-{number}") in taken:
        number += 1
    return candidate


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
