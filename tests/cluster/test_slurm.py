"""The job script for Slurm, with stand-ins for `srun` and `scontrol` that do on this machine what they are told."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.manifest import read_manifest
from tests.commands import ROOT, processes
from tests.little import make_little

SCRIPT = ROOT / "cluster" / "slurm" / "train.sbatch"

SRUN = """#!/bin/bash
# Runs the step here, as a node of so many CPUs as its name ends with.
echo "srun $(stat -c %a "$RAY_AUTH_TOKEN_PATH") $*" >>"$STANDIN/calls"
while [[ $1 == --* ]]; do
    [[ $1 == --nodelist=* ]] && export SLURM_CPUS_ON_NODE=${1##*-}
    shift
done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "scontrol $*" >>"$STANDIN/calls"
if [[ $1 == show ]]; then tr , '\\n' <<<"$3"; fi
"""
RAY = """#!{python}
import os, signal, socket, sys
with open(os.environ["STANDIN"] + "/calls", "a") as calls:
    print("ray", *sys.argv[1:], file=calls)
if os.environ.get("HEAD_FAILS"):
    sys.exit("no head today")
options = dict(a.split("=", 1) for a in sys.argv if "=" in a)
if "--head" in sys.argv:
    server = socket.create_server((options["--node-ip-address"], int(options["--port"])))
signal.pause()
"""
WAITS = """#!/bin/bash
# For so many nodes as python is told to wait for.
for _ in {1..600}; do
    [[ $(grep -c ^ray "$STANDIN/calls") -ge $3 ]] && exit 0
    sleep 0.1
done
exit 1
"""
MSRCNN = """#!/bin/bash
echo "msrcnn $*" >>"$STANDIN/calls"
exec {python} -c 'import sys, time; time.sleep(float(sys.argv[1])); sys.exit(3)' "$2"
"""


def executable(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text.replace("{python}", sys.executable))
    path.chmod(0o755)


@dataclass
class Slurm:
    """A job's environment, and what was called in it."""

    folder: Path
    environment: dict[str, str]

    def start(self, *command: str) -> subprocess.Popen[str]:
        return subprocess.Popen(["bash", str(SCRIPT), *command], env=self.environment, cwd=self.folder, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip

    def calls(self, program: str) -> list[str]:
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line.partition(" ")[2] for line in lines if line.split()[0] == program]

    def wait_for(self, program: str, job: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 60
        while not self.calls(program):
            assert job.poll() is None, job.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def left(self) -> list[int]:
        """Processes that the job has left behind, once they had a moment to end."""
        deadline = time.monotonic() + 30
        while (found := processes("", f"STANDIN={self.folder}")) and time.monotonic() < deadline:
            time.sleep(0.1)
        return found


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[Slurm]:
    """A job of two nodes, which are this machine twice, of 1 and 2 CPUs."""
    executable(tmp_path / "bin" / "srun", SRUN)
    executable(tmp_path / "bin" / "scontrol", SCONTROL)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_", "MSRCNN_"))}
    environment |= {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "STANDIN": str(tmp_path),
        "SLURM_JOB_ID": str(10_000 + os.getpid()),
        "SLURM_JOB_NODELIST": "node-1,node-2",
        "MSRCNN_ADDRESS": "127.0.0.1",
        "MSRCNN_LEAST_SHM_GIB": "0",
        "MSRCNN_START_SECONDS": "120",
    }
    job = Slurm(tmp_path, environment)
    yield job
    for pid in processes("", f"STANDIN={tmp_path}"):
        os.kill(pid, signal.SIGKILL)
    shutil.rmtree(f"/tmp/msrcnn-{environment['SLURM_JOB_ID']}", ignore_errors=True)


@pytest.fixture
def without_ray(slurm: Slurm) -> Slurm:
    """The same, with stand-ins for what the nodes have installed; a command sleeps as told, and fails with 3."""
    executable(slurm.folder / "venv" / "bin" / "ray", RAY)
    executable(slurm.folder / "venv" / "bin" / "msrcnn", MSRCNN)
    executable(slurm.folder / "venv" / "bin" / "python", WAITS)
    slurm.environment["MSRCNN_VENV"] = str(slurm.folder / "venv")
    return slurm


def test_it_is_bash() -> None:
    subprocess.run(["bash", "-n", str(SCRIPT)], check=True)
    options = re.findall(r"^#SBATCH (\S+)$", SCRIPT.read_text(), re.MULTILINE)
    assert {"--requeue", "--no-kill", "--signal=B:USR1@120", "--ntasks-per-node=1"} <= set(options)


def test_every_node_is_started_and_all_end_with_the_command(without_ray: Slurm) -> None:
    job = without_ray.start("train", "0", "--shards", "a b")
    output, _ = job.communicate(timeout=60)
    assert job.returncode == 3, output  # the command's own
    assert without_ray.calls("msrcnn") == ["train 0 --shards a b"]
    assert without_ray.left() == []
    head, worker = without_ray.calls("ray")
    port = 20_000 + int(without_ray.environment["SLURM_JOB_ID"]) % 1200 * 10
    assert f"--head --node-ip-address=127.0.0.1 --port={port} " in head
    assert f"--address=127.0.0.1:{port} " in worker
    assert "--num-cpus=1" in head
    assert "--num-cpus=2" in worker
    ports = re.findall(r"--(?:port|\S+-port)=([1-9]\d*)", f"{head} {worker}")
    assert len(set(ports)) == len(ports) == 5
    assert all(call.startswith("600 --nodes=1 --ntasks=1 --nodelist=node-") for call in without_ray.calls("srun"))
    (folder,) = without_ray.folder.glob("msrcnn-job-*")
    assert sorted(path.name for path in folder.iterdir()) == ["ray-head-node-1.log", "ray-worker-node-2.log"]


@pytest.mark.parametrize(
    ("told", "code", "again"), [(signal.SIGUSR1, 0, True), (signal.SIGTERM, 143, False)], ids=["time ends", "cancelled"]
)
def test_a_job_whose_time_ends_is_queued_again_and_a_cancelled_one_is_not(
    without_ray: Slurm, told: signal.Signals, code: int, again: bool
) -> None:
    job = without_ray.start("train", "600")
    without_ray.wait_for("msrcnn", job)
    job.send_signal(told)
    output, _ = job.communicate(timeout=60)
    assert job.returncode == code, output
    requeued = [call for call in without_ray.calls("scontrol") if "requeue" in call]
    assert requeued == ([f"requeue {without_ray.environment['SLURM_JOB_ID']}"] if again else [])
    assert without_ray.left() == []


def test_what_is_wrong_is_said(without_ray: Slurm) -> None:
    def failing(*command: str, **environment: str) -> str:
        without_ray.environment |= environment
        job = without_ray.start(*command)
        output, _ = job.communicate(timeout=60)
        assert job.returncode == 2, output
        assert without_ray.calls("msrcnn") == []
        assert without_ray.left() == []
        return output

    assert "no command" in failing()
    assert "no head today" in failing("train", "0", HEAD_FAILS="1")
    assert "/dev/shm has" in failing("train", "0", MSRCNN_LEAST_SHM_GIB="1000000")
    assert "msrcnn is not installed in it" in failing("train", "0", MSRCNN_VENV=str(without_ray.folder))


@pytest.mark.slow
@pytest.mark.ray
def test_a_command_runs_on_a_cluster_of_all_nodes(slurm: Slurm) -> None:
    config = make_little(slurm.folder)
    slurm.environment["MSRCNN_VENV"] = str(Path(sys.executable).parents[1])
    job = slurm.start("shard", "--annotations", str(config.annotations), "--images", str(config.images),
                      "--out", str(config.out))  # fmt: skip
    output, _ = job.communicate(timeout=400)
    logs = "\n".join(path.read_text()[-2000:] for path in slurm.folder.glob("msrcnn-job-*/*.log"))
    assert job.returncode == 0, f"{output}\n{logs}"
    assert "2 of 2 nodes are there" in output
    assert "'CPU': 3.0" in output
    assert read_manifest(config.out).rows == 12
    assert slurm.left() == []
    with socket.socket() as free:  # nobody listens any more
        port = 20_000 + int(slurm.environment["SLURM_JOB_ID"]) % 1200 * 10
        assert free.connect_ex(("127.0.0.1", port)) != 0
