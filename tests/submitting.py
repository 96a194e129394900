"""`msrcnn submit` and its neighbours, given on a machine that knows of a cluster only its address and its token."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.by_hand import ByHand
from tests.commands import ROOT, Command


@dataclass
class Laptop:
    """A folder and an environment with nothing in it but the address of a cluster."""

    folder: Path
    cluster: ByHand

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1",
            "RAY_API_SERVER_ADDRESS": self.cluster.address, "RAY_AUTH_TOKEN_PATH": str(self.cluster.token),
        }  # fmt: skip

    def run(self, *arguments: str, seconds: float = 300, **changed: str) -> subprocess.CompletedProcess[str]:
        """A command, to its end."""
        command = [sys.executable, "-m", "pipelines", *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment | changed, capture_output=True, text=True,
                              timeout=seconds, check=False)  # fmt: skip


def hears_ctrl_c() -> None:
    """For a new process: what a shell starts in the background is deaf to SIGINT, and so is all that it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass
class Submitting(Command):
    """`msrcnn submit` in a process that follows the job."""

    folder: Path
    laptop: Laptop
    command: list[str]

    def arguments(self) -> list[str]:
        return ["submit", *self.command]

    def start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log").open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-m", "pipelines", *self.arguments()], cwd=self.laptop.folder, start_new_session=True,
                env=self.laptop.environment | dict([self.mark.split("=", 1)]), stdout=log, stderr=subprocess.STDOUT,
                preexec_fn=hears_ctrl_c,
            )  # fmt: skip

    def wait_long(self, pattern: str) -> None:
        self.wait_for(pattern, seconds=600)
        time.sleep(0.5)
