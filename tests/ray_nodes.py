"""Ray nodes as an administrator starts them: `ray start` in processes, each with an environment of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.mlflow_server import free_port

ROOT = Path(__file__).parents[1]
START_SECONDS = 120.0


class RayNodes:
    """A cluster on this machine; `ray_nodes` ends it.

    Attributes:
        address: host:port of the head.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, path: Sequence[Path] = (), inside: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        """Starts a node; the first one is the head.

        Args:
            options: of `ray start`.
            path: folders that its Python looks into before all others.
            inside: a command that runs another one, as `unshare --mount`.
        """
        number = len(self.processes)
        head = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        role = [f"--address={self.address}"] if number else head
        command = [
            *inside, sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", *role, "--block",
            "--node-ip-address=127.0.0.1", "--disable-usage-stats",
            "--object-store-memory=100000000", f"--min-worker-port={20000 + 500 * number}",
            f"--max-worker-port={20499 + 500 * number}", *options,
        ]  # fmt: skip
        with (self.folder / f"node-{number}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(command, env=self.environment(path), stdout=log, stderr=log, start_new_session=True)
            )
        return self.processes[-1]

    def wait_for_head(self) -> None:
        """Returns once it accepts connections."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            assert self.processes[0].poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.1)

    def wait_for(self, nodes: int) -> None:
        """Returns once so many nodes belong to the cluster."""
        from ray._raylet import GcsClient

        client, deadline = GcsClient(address=self.address), time.monotonic() + START_SECONDS
        while sum(info.state == 0 for info in client.get_all_node_info().values()) < nodes:
            assert all(process.poll() is None for process in self.processes), self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.2)

    def environment(self, path: Sequence[Path] = ()) -> dict[str, str]:
        """For processes of the cluster, its drivers among them."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        places = os.pathsep.join(str(place) for place in (*path, ROOT))
        return kept | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": places, "PYTHONUNBUFFERED": "1"}

    def log(self) -> str:
        """The ends of what the nodes printed."""
        return "\n".join(path.read_text(errors="replace")[-1500:] for path in sorted(self.folder.glob("node-*.log")))

    def stop(self) -> None:
        """Ends all nodes at once; their processes end with the one that started them."""
        for process in reversed(self.processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@contextmanager
def ray_nodes() -> Iterator[RayNodes]:
    """A cluster without nodes. Its folder has a short name: sockets in it may have no long ones."""
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))
    cluster = RayNodes(folder)
    try:
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)


def replace_ray(folder: Path, version: str, broken: bool = False) -> None:
    """Makes a Ray of another version in a folder that a running node's Python looks into first: it is this
    environment's but for what it says of itself; a broken one cannot be imported.

    So it is when somebody installs another Ray under nodes that run.
    """
    import ray

    real = Path(ray.__file__).parent
    shutil.rmtree(folder / "ray", ignore_errors=True)
    (folder / "ray").mkdir(parents=True)
    for entry in real.iterdir():
        if entry.name != "_version.py":
            (folder / "ray" / entry.name).symlink_to(entry)
    (folder / "ray" / "_version.py").write_text(f'commit = "none"\nversion = "{version}"\n')
    if broken:
        (folder / "ray" / "__init__.py").unlink()
        (folder / "ray" / "__init__.py").write_text('raise ImportError("half of an installation")\n')
    info = folder / f"ray-{version}.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: ray\nVersion: {version}\n")
