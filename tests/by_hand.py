"""A Ray cluster as a person makes one by hand: `ray start --head`, `ray start --address`, a token for all."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.commands import processes
from tests.mlflow_server import free_port

START_SECONDS = 180.0
PRIVATE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
"""Runs a command that has mounts of its own."""


def private_mounts() -> bool:
    """Whether this machine lets a process have mounts of its own."""
    return subprocess.run([*PRIVATE, "true"], capture_output=True, check=False).returncode == 0


@dataclass
class ByHand:
    """Nodes as processes of this machine; use it as a context, which ends them.

    Args:
        folder: for the token, the logs, and the head's and nodes' environment.
        session: where the nodes keep sockets and logs, each its own at this path, which must be short; if absent, one
            that Ray chooses for all.
        environment: that all nodes are started with, as a Kubernetes Secret or a profile would give it to them.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    session: Path | None = None
    nodes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    port: int = 0
    dashboard: int = 0

    def __enter__(self) -> ByHand:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.port, self.dashboard = free_port(), free_port()
        try:
            self.start("head", "--head", f"--port={self.port}", f"--dashboard-port={self.dashboard}",
                       "--include-dashboard=true", f"--ray-client-server-port={free_port()}", "--num-cpus=0",
                       *([f"--temp-dir={self.session}"] if self.session else []))  # fmt: skip
            self.wait_until(lambda: bool(self._answer("/api/version")), "the dashboard answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self.nodes):
            self.kill(name)

    @property
    def token(self) -> Path:
        return self.folder / "token"

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    @property
    def client(self) -> dict[str, str]:
        """What a machine outside needs in its environment."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}

    def add(self, name: str, cpus: int) -> None:
        """Starts one more node and waits until the cluster has it."""
        before = self.alive()
        self.start(name, f"--address=127.0.0.1:{self.port}", f"--num-cpus={cpus}")
        self.wait_until(lambda: self.alive() > before, f"{name} joins")

    def start(self, name: str, *options: str) -> None:
        """`ray start` with options, as processes that know which node they are."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        environment |= {**self.environment, **self.client, "MSRCNN_NODE": self._mark(name)}
        environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment.pop("PYTHONPATH", None)  # the sources come with the job
        command = [*self._inside(name), "ray", "start", *options, "--object-store-memory=200000000",
                   "--dashboard-agent-listen-port=0", "--disable-usage-stats", "--block"]  # fmt: skip
        with (self.folder / f"{name}.log").open("ab") as log:
            self.nodes[name] = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=self.folder,
                                                start_new_session=True)  # fmt: skip

    def kill(self, name: str) -> None:
        """SIGKILL to all processes of a node, as of a machine that loses power."""
        process = self.nodes.pop(name)
        for _ in range(3):  # what is killed may have started one more
            for pid in processes("", f"MSRCNN_NODE={self._mark(name)}"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        process.wait()

    def alive(self) -> int:
        """Nodes that the cluster counts as alive, the head among them."""
        answer = self._answer("/api/v0/nodes?limit=100")
        if not answer:
            return 0
        rows = json.loads(answer)["data"]["result"]["result"]
        return sum(row["state"] == "ALIVE" for row in rows)

    def wait_until(self, condition, what: str, seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            for name, process in self.nodes.items():
                assert process.poll() is None, f"{name}: {(self.folder / f'{name}.log').read_text()[-2000:]}"
            assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
            time.sleep(0.3)

    def _inside(self, name: str) -> list[str]:
        """Runs a node other than the head where the session's folder is one of its own, as on another machine."""
        if self.session is None or name == "head":
            return []
        (self.folder / f"{name}-session").mkdir(exist_ok=True)
        mount = f'mount --bind {self.folder / f"{name}-session"} {self.session} && exec "$0" "$@"'
        return [*PRIVATE, "sh", "-c", mount]

    def _mark(self, name: str) -> str:
        return f"{self.folder}/{name}."

    def _answer(self, path: str) -> bytes:
        request = urllib.request.Request(f"{self.address}{path}",
                                         headers={"Authorization": f"Bearer {self.token.read_text()}"})  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.read()
        except OSError:
            return b""
