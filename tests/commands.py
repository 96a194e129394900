"""`msrcnn` as processes of their own, which tests kill and start again."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Command(ABC):
    """A command in a process, with a Ray of its own where it joins none; the same command again goes on.

    Attributes:
        folder: for its log and whatever else it leaves.
        driver: the process.
        cwd: where it runs.
    """

    folder: Path
    driver: subprocess.Popen[bytes] | None = None
    cwd = ROOT

    @abstractmethod
    def arguments(self) -> list[str]:
        """Behind `msrcnn`."""

    @property
    def mark(self) -> str:
        """In the environment of the driver and of all that it starts."""
        return f"MSRCNN_TEST={self.folder}"

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
        environment |= dict([self.mark.split("=", 1)], PYTHONUNBUFFERED="1", PYTHONPATH=str(ROOT))
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", *self.arguments()]
        with (self.folder / "log").open("ab") as log:
            self.driver = subprocess.Popen(command, env=environment, start_new_session=True, stdout=log,
                                           stderr=subprocess.STDOUT, cwd=self.cwd)  # fmt: skip

    def log(self) -> str:
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def check_alive(self) -> None:
        assert self.driver is not None
        assert self.driver.poll() is None, f"ended with {self.driver.returncode}:\n{self.log()[-3000:]}"

    def wait_for(self, pattern: str, times: int = 1, seconds: float = 240) -> None:
        """Returns when the log has so many matches."""
        deadline = time.monotonic() + seconds
        while len(re.findall(pattern, self.log())) < times:
            self.check_alive()
            assert time.monotonic() < deadline, f"not within {seconds} s: {pattern}\n{self.log()[-3000:]}"
            time.sleep(0.05)

    def finish(self, seconds: float = 400) -> int:
        """The exit code, once it has ended."""
        assert self.driver is not None
        try:
            return self.driver.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise AssertionError(f"not within {seconds} s:\n{self.log()[-3000:]}") from None

    def kill_driver(self) -> None:
        """SIGKILL to the driver alone, whose Ray may outlive it for a moment."""
        assert self.driver is not None
        self.driver.kill()
        assert self.driver.wait() == -signal.SIGKILL

    def kill_process(self, title: str, number: int = 0) -> bool:
        """SIGKILL to one of the processes with such a title; False if there is none."""
        found = processes(title, self.mark)
        if found:
            _kill(found[number % len(found)])
        return bool(found)

    def kill_all(self, title: str = "") -> int:
        """SIGKILL to its processes with `title` in their command line (all, if it is empty); how many there were."""
        found = processes(title, self.mark)
        for pid in found:
            _kill(pid)
        if self.driver is not None and not title:
            self.driver.wait()
        return len(found)


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def processes(title: str, mark: str) -> list[int]:
    """Ids of processes with `title` in their command line and `mark` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
            if title in line and mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return sorted(found)
