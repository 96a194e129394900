"""`msrcnn doctor` on real clusters: the session's own, and nodes of their own whose troubles are real ones."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pipelines.doctor import doctor
from pipelines.doctor_options import DoctorConfig
from pipelines.doctor_report import FAIL, OK
from tests.by_hand import PRIVATE, private_mounts
from tests.mlflow_server import free_port
from tests.ray_nodes import RayNodes, ray_nodes, replace_ray
from tests.stored_scenes import write_shards


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory, make_scene: Callable) -> Path:
    """Shards of six images in three files."""
    folder = tmp_path_factory.mktemp("scenes") / "shards"
    rng = np.random.default_rng(0)
    write_shards(folder, [make_scene(i, rng, 2, 0, 2).truth for i in range(6)], [(1, "a"), (2, "b")], 3, 1)
    return folder


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_all_is_well_on_one_node(scenes: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    config = DoctorConfig((str(scenes),), (str(tmp_path / "runs"),), f"sqlite:///{tmp_path}/mlflow.db", "1:2")
    report = doctor(config, lines.append)
    assert {finding.state for finding in report.findings} == {OK}, lines
    assert [finding.subject for finding in report.findings] == [
        "node", "versions", "code", "clocks", "objects", "disks", "room", "tracking", "storage", "shards",
    ]  # fmt: skip
    assert lines[-1] == "all is well: 10 checks"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_each_trouble_of_a_job_is_named_with_its_remedy(scenes: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "manifest.json").write_bytes((scenes / "manifest.json").read_bytes())
    (tmp_path / "file").write_text("")
    config = DoctorConfig(
        (str(tmp_path / "shards"),), (str(tmp_path / "file"),), f"http://127.0.0.1:{free_port()}", "3", 1.0, True
    )
    report = doctor(config, lambda _: None)
    found = {finding.subject: finding for finding in report.findings if finding.state == FAIL}
    assert {name: finding.remedy.split()[0] for name, finding in found.items()} == {
        "GPUs": "start", "room": "with", "tracking": "start", "storage": "let", "shards": "copy",
    }  # fmt: skip
    assert "0 workers of 1 CPU and 1 GPU" in found["room"].found
    assert "3 of 3 shards broken" in found["shards"].found
    assert report.failed == 5


class Cluster:
    """A head without CPUs, and a node whose Python looks into `packages` first and that has a `private` of its own."""

    def __init__(self, nodes: RayNodes, folder: Path) -> None:
        self.nodes = nodes
        self.packages, self.private, self.shared = (folder / name for name in ("packages", "private", "shared"))
        for place in (self.packages, self.private, self.shared):
            place.mkdir()
        mount = f'mount -t tmpfs none {self.private} && exec "$0" "$@"'
        nodes.start("--num-cpus=0")
        nodes.wait_for_head()
        nodes.start("--num-cpus=3", path=[self.packages], inside=[*PRIVATE, "sh", "-c", mount])
        nodes.wait_for(2)

    def doctor(self, *options: str, seconds: float = 60) -> subprocess.CompletedProcess[str]:
        """The command in a process; nodes have so many seconds to begin to answer."""
        code = (f"import cluster.probes; cluster.probes.FIRST_SECONDS = {seconds}\n"
                "from pipelines.cli import main; main()")  # fmt: skip
        command = [sys.executable, "-c", code, "doctor", *options]
        environment = self.nodes.environment() | {"RAY_ADDRESS": self.nodes.address}  # as in a submitted job
        return subprocess.run(command, env=environment, cwd=self.shared, capture_output=True, text=True,
                              timeout=240, check=False)  # fmt: skip


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if not private_mounts():
        pytest.skip("this machine does not let a process have mounts of its own (unshare --mount)")
    with ray_nodes() as nodes:
        yield Cluster(nodes, tmp_path_factory.mktemp("cluster"))


@pytest.mark.ray
@pytest.mark.slow
def test_troubles_of_a_node_are_found_by_the_node(cluster: Cluster, scenes: Path) -> None:
    """First nothing is wrong. Then Ray is replaced under the node, which has a folder that is not the head's."""
    fine = cluster.doctor("--storage", str(cluster.shared), "--shards", str(scenes), "--workers", "2", "--cpus", "1")
    assert fine.returncode == 0, fine.stdout + fine.stderr + cluster.nodes.log()
    assert re.findall(r"^FAIL", fine.stdout, re.M) == []
    assert fine.stdout.count("\nok    node ") + fine.stdout.startswith("ok    node ") == 2
    assert "the driver and 2 nodes" in fine.stdout
    assert "each of 2 nodes reaches every other" in fine.stdout
    assert "sqlite" not in fine.stdout
    assert list(cluster.shared.iterdir()) == []

    replace_ray(cluster.packages, "2.59.9")
    ill = cluster.doctor("--storage", str(cluster.private), str(cluster.shared), "--workers", "4", "--cpus", "1")
    assert ill.returncode == 1, ill.stdout + ill.stderr
    failures = re.findall(r"^FAIL  (\w+) +(.*)\n +-> (.*)$", ill.stdout, re.M)
    assert [subject for subject, _, _ in failures] == ["versions", "room", "storage"], ill.stdout
    (_, versions, install), (_, room, fewer), (_, storage, share) = failures
    assert "2.59.9" in versions
    assert "the driver has" in versions
    assert "start Ray on that node again" in install
    assert "2 workers of 1 CPU fit" in room
    assert "fewer --workers" in fewer
    assert "private is not the driver's folder" in storage
    assert "ReadWriteMany" in share
    assert f"{cluster.shared}: written and seen by the driver and 2 nodes" in ill.stdout
    assert [*cluster.private.iterdir(), *cluster.shared.iterdir()] == []


@pytest.mark.ray
@pytest.mark.slow
def test_a_node_that_cannot_answer_is_a_line(cluster: Cluster) -> None:
    """Its Ray cannot be imported any more, so no process of it starts."""
    replace_ray(cluster.packages, "2.59.9", broken=True)
    done = cluster.doctor("--workers", "1", seconds=15)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "no answer within 15 s" in done.stdout
    assert "-> look into the node's own logs" in done.stdout
    assert "as the driver's on the node" in done.stdout  # the head answered
