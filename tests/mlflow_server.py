"""Real MLflow servers in processes of their own: of runs, which a test can kill and start again, and of a model."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_SECONDS = 120.0


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """`mlflow server` over a SQLite file and a folder of artifacts in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Server:
        """Returns once it answers."""
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as lines:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/server.db",
                 "--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1",
                 "--port", str(self.port), "--workers", "1"],
                stdout=lines, stderr=lines, start_new_session=True, env=environment, cwd=self.folder,
            )  # fmt: skip
        if not _answers(self.process, self.address):
            self.kill()
            raise RuntimeError(f"mlflow server did not start: {(self.folder / 'server.log').read_text()[-2000:]}")
        return self

    def kill(self) -> None:
        """Ends it and its workers at once, as a machine that fails would."""
        if self.process is not None:
            _end(self.process)
            self.process = None


@contextmanager
def model_server(uri: str, tracking: str, folder: Path) -> Iterator[str]:
    """`mlflow models serve` of a model that is at that tracking address, one thread a computation; gives its URL."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it looks for uvicorn there
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"PATH": path, "MLFLOW_TRACKING_URI": tracking, "OMP_NUM_THREADS": "1"}
    with (folder / "model_server.log").open("wb") as lines:
        process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", uri, "--env-manager", "local",
             "--host", "127.0.0.1", "--port", str(port), "--timeout", "300"],
            stdout=lines, stderr=lines, start_new_session=True, env=environment, cwd=folder,
        )  # fmt: skip
    try:
        assert _answers(process, address), (folder / "model_server.log").read_text()[-2000:]
        yield address
    finally:
        _end(process)


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    """Returns once the process is healthy; False if it ended or took too long."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends it and its workers at once."""
    with contextlib.suppress(ProcessLookupError):  # it has ended by itself
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
