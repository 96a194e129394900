"""What `msrcnn doctor` makes of what nodes say, without Ray: nodes are dictionaries, questions run here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.network import listen
from cluster.probes import Answers, Node, within
from msrcnn.errors import InputError
from pipelines import node_facts
from pipelines.doctor_files import check_shards, check_storage
from pipelines.doctor_nodes import (
    check_clocks,
    check_code,
    check_disks,
    check_gpus,
    check_network,
    check_object_stores,
    check_versions,
)
from pipelines.doctor_options import DoctorConfig
from pipelines.doctor_report import FAIL, OK, WARN, Report
from pipelines.doctor_room import judge_room
from pipelines.doctor_tracking import check_tracking
from pipelines.storage import locate
from tests.mlflow_server import free_port
from tests.object_store import object_store
from tests.stored_scenes import write_shards

HEAD = Node("a" * 8, "head", "127.0.0.1", {"object_store_memory": 4e9}, head=True)
ONE = Node("b" * 8, "one", "127.0.0.1", {"CPU": 8.0, "GPU": 2.0, "object_store_memory": 4e9})
TWO = Node("c" * 8, "two", "127.0.0.1", {"CPU": 4.0, "object_store_memory": 4e9})
NODES = [HEAD, ONE, TWO]


class Here:
    """In the place of processes on nodes: questions are answered in this one, or by what stands for an answer.

    Args:
        instead: the answers of some nodes, or of a node to a function; an exception is a node that fails to answer.
    """

    def __init__(self, nodes: list[Node], instead: dict[Any, Any] | None = None) -> None:
        self.nodes, self.instead = nodes, instead or {}

    def ask(self, function: Callable[..., Any], arguments=lambda _: (), nodes=None, seconds=None) -> Answers:  # noqa: ARG002
        values, failures = {}, {}
        for node in nodes or self.nodes:
            known = next((key for key in ((node, function), node) if key in self.instead), None)
            answer = function(*arguments(node)) if known is None else self.instead[known]
            if isinstance(answer, Exception):
                failures[node] = str(answer)
            else:
                values[node] = answer
        return Answers(values, failures)


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture
def report(lines: list[str]) -> Report:
    return Report(lines.append)


def states(report: Report) -> list[str]:
    return [finding.state for finding in report.findings]


def test_the_same_versions_are_named_once(report: Report) -> None:
    ours = node_facts.versions()
    assert {"python", *node_facts.PACKAGES} == set(ours)
    check_versions(report, {node: {"versions": ours} for node in NODES}, ours)
    assert states(report) == [OK]
    assert f"numpy {np.__version__}" in report.findings[0].found


def test_each_package_that_differs_is_named_with_both_versions_and_the_node(report: Report) -> None:
    ours = {"python": "3.11.7", "ray": "2.60.0", "mlflow": "3.17.0"}
    found = {HEAD: ours, ONE: ours | {"ray": "2.59.1"}, TWO: {"python": "3.12.1", "ray": "2.60.0"}}
    check_versions(report, {node: {"versions": versions} for node, versions in found.items()}, ours)
    assert states(report) == [FAIL, FAIL]
    one, two = report.findings
    assert one.found == "one bbbbbb: ray 2.59.1, the driver has 2.60.0"
    assert two.found == ("two cccccc: python 3.12.1, the driver has 3.11.7; "
                         "mlflow is missing, the driver has 3.17.0")  # fmt: skip
    assert "start Ray on that node again" in one.remedy


def test_nodes_with_the_same_trouble_share_a_line(report: Report) -> None:
    nodes = [replace(ONE, id=f"{i:08}", host=f"n{i}") for i in range(40)]
    check_versions(report, {node: {"versions": {"ray": "2"}} for node in nodes}, {"ray": "3"})
    (finding,) = report.findings
    assert finding.found == "n0 000000, n1 000000, n2 000000 and 37 more: ray 2, the driver has 3"


def test_a_package_replaced_under_a_running_ray_has_two_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    installed = node_facts.versions()["ray"]
    monkeypatch.setattr(ray, "__version__", "2.1.0")
    assert node_facts.versions()["ray"] == f"2.1.0 (installed: {installed})"


def test_code_that_differs_is_named_by_file(report: Report) -> None:
    ours = node_facts.code()
    assert {"pipelines/cli.py", "msrcnn/boxes.py", "cluster/session.py", "tune_spaces/space.py"} <= set(ours)
    stale = ours | {"pipelines/train.py": "old"}
    del stale["cluster/probes.py"]
    found = {HEAD: {"code": ours, "root": "/app"}, ONE: {"code": stale, "root": "/old"}}
    check_code(report, found, ours)
    (finding,) = report.findings
    assert finding.state == FAIL
    assert finding.found == "one bbbbbb: /old is not the driver's code: cluster/probes.py, pipelines/train.py"
    assert "working_dir" in finding.remedy


def test_clocks_count_from_the_asking_to_the_last_answer(report: Report) -> None:
    check_clocks(report, {HEAD: {"clock": 1000.0}, ONE: {"clock": 1019.0}}, 1000.0, 1020.0)
    assert states(report) == [OK]
    check_clocks(report, {HEAD: {"clock": 1010.0}, ONE: {"clock": 700.0}, TWO: {"clock": 1090.0}}, 1000.0, 1020.0)
    assert [f.found for f in report.findings[1:]] == ["one bbbbbb: clock 300 s off the driver's",
                                                      "two cccccc: clock 70 s off the driver's"]  # fmt: skip


def test_objects_on_a_disk_are_a_warning(report: Report) -> None:
    found = {HEAD: {"objects": "/dev/shm", "shared_memory": (8 * 10**9, 1)},
             ONE: {"objects": "/tmp/ray", "shared_memory": (67_000_000, 1)}}  # fmt: skip
    check_object_stores(report, found)
    assert states(report) == [WARN]
    assert "4.0 GB of objects in /tmp/ray, on a disk: /dev/shm has 0.1 GB" in report.findings[0].found
    assert "--shm-size" in report.findings[0].remedy


def test_a_full_disk_is_a_failure(report: Report) -> None:
    found = {HEAD: {"disk": (100, 50), "session": "/tmp/ray"}, ONE: {"disk": (100, 4), "session": "/tmp/ray"},
             TWO: {"disk": None, "session": "/gone"}}  # fmt: skip
    check_disks(report, found)
    assert [f.found for f in report.findings] == ["one bbbbbb: the disk of /tmp/ray is 96% full (0.0 GB free)",
                                                  "two cccccc: /gone, Ray's folder, is gone"]  # fmt: skip


def test_nodes_that_do_not_reach_others(report: Report) -> None:
    check_network(report, Here(NODES))
    assert states(report) == [OK]
    silent = Here(NODES, {TWO: TimeoutError("no answer within 30 s")})
    check_network(report, silent)
    assert report.findings[1].found == "two cccccc: no answer within 30 s"
    assert "logs" in report.findings[1].remedy
    deaf = Report(lambda _: None)
    check_network(deaf, Here(NODES, {(TWO, listen): free_port()}))
    assert [f.found.partition(":")[0] for f in deaf.findings] == ["head aaaaaa, one bbbbbb"]
    assert "cannot connect to two cccccc (Connection refused)" in deaf.findings[0].found
    assert "open all TCP ports" in deaf.findings[0].remedy


def test_gpus_are_those_that_torch_sees(report: Report) -> None:
    check_gpus(report, Here([HEAD, TWO]))
    assert "Ray has none" in report.findings[0].found
    told = {(2, "12.8"): "2 on 1 node, and torch sees them", (0, "None"): "built without CUDA",
            (1, "12.8"): "Ray offers 2 GPU, torch sees 1", (-1, "no torch"): "(no torch)"}  # fmt: skip
    for answer, says in told.items():
        check_gpus(report, Here(NODES, {ONE: answer}))
        assert says in report.findings[-1].found
    assert states(report) == [FAIL, OK, FAIL, FAIL, FAIL]


@pytest.mark.parametrize(
    ("options", "state", "says", "remedy"),
    [
        ({"workers": "4", "cpus": 3}, FAIL, "3 workers of 3 CPU fit beside their readers now", "3 would fit"),
        ({"workers": "2:4", "cpus": 3}, OK, "3 workers of 3 CPU fit now, --workers 2:4", ""),
        ({"workers": "3", "cpus": 3}, OK, "3 workers of 3 CPU fit", ""),
        ({"workers": "1", "cpus": 9}, FAIL, "0 workers of 9 CPU fit", "0 would fit"),
        ({"workers": "1:9", "cpus": 4}, FAIL, "fit than beside their readers", "lower --cpus by 0.2"),
        ({"workers": "2", "gpu": True}, OK, "2 workers of 0.9 CPU and 1 GPU fit", ""),
        ({"workers": "4:8", "gpu": True}, FAIL, "2 workers of 0.9 CPU and 1 GPU", "the autoscaler may go to 64 CPU"),
    ],
)
def test_room_is_counted_by_node(report: Report, options: dict, state: str, says: str, remedy: str) -> None:
    free = {node: node.resources for node in NODES}
    judge_room(report, DoctorConfig(**options), free, {"CPU": 64.0})
    (finding,) = report.findings
    assert finding.state == state
    assert says in finding.found
    assert remedy in finding.remedy


def test_room_that_others_use_is_said_to_be_theirs(report: Report) -> None:
    judge_room(report, DoctorConfig(workers="2", cpus=3), {ONE: {"CPU": 1.0}, TWO: {"CPU": 4.0}}, {})
    (finding,) = report.findings
    assert finding.state == FAIL
    assert "one bbbbbb has 1 of 8 CPU free" in finding.found
    assert "others use the rest" in finding.remedy


def test_storage_is_left_as_it_was(report: Report, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("kept")
    for place in ("there", "not/yet/there"):
        check_storage(report, Here(NODES), str(tmp_path / place))
    assert states(report) == [OK, OK]
    assert "the driver and 3 nodes" in report.findings[0].found
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["there", "there/file"]


@pytest.mark.parametrize(
    ("place", "says"),
    [("file/inside", "cannot write into"), ("file", "cannot write into"), ("nosuch://x", "no file system for it")],
)
def test_storage_that_the_driver_cannot_use(report: Report, tmp_path: Path, place: str, says: str) -> None:
    (tmp_path / "file").write_text("")
    check_storage(report, Here(NODES), place if "://" in place else str(tmp_path / place))
    (finding,) = report.findings
    assert finding.state == FAIL
    assert says in finding.found
    assert finding.remedy
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_storage_of_a_node_that_takes_no_part(report: Report, tmp_path: Path) -> None:
    """One says that it wrote, and nothing is seen of it; another does not answer."""
    check_storage(report, Here(NODES, {ONE: None, TWO: TimeoutError("no answer within 60 s")}), str(tmp_path / "x"))
    assert [f.found.partition(":")[0] for f in report.findings] == ["two cccccc", "one bbbbbb"]
    assert "the driver does not see the file" in report.findings[1].found
    assert "ReadWriteMany" in report.findings[1].remedy
    assert not (tmp_path / "x").exists()


def test_an_object_store_is_storage(report: Report) -> None:
    with object_store() as url:
        check_storage(report, Here(NODES), url.format("runs/here"))
        assert states(report) == [OK]
        assert "word" not in report.findings[0].found
        assert not any(".msrcnn-doctor" in name for name in locate(url.format("runs")).list())


def test_shards_that_are_missing_or_cut_short(report: Report, tmp_path: Path, make_scene: Callable) -> None:
    rng = np.random.default_rng(0)
    truths = [make_scene(i, rng, 2, 0, 2).truth for i in range(8)]
    write_shards(tmp_path / "shards", truths, [(1, "a"), (2, "b")], files=8, row_group=1)
    check_shards(report, Here(NODES), str(tmp_path / "shards"))
    assert "8 images in 8 shards" in report.findings[0].found
    for i in range(4):
        (tmp_path / "shards" / f"shard-0000{i}.parquet").unlink()
    (tmp_path / "shards" / "shard-00007.parquet").write_bytes(b"x")
    check_shards(report, Here(NODES), str(tmp_path / "shards"))
    found = report.findings[1].found
    assert "5 of 8 shards broken: shard-00000.parquet (missing), " in found
    assert found.endswith("and 2 more")
    assert "copy the folder again" in report.findings[1].remedy
    check_shards(report, Here(NODES), str(tmp_path / "elsewhere"))
    assert "no manifest.json" in report.findings[2].found
    assert "msrcnn shard" in report.findings[2].remedy
    assert states(report) == [OK, FAIL, FAIL]


def test_a_tracking_server_that_is_gone(report: Report) -> None:
    check_tracking(report, Here(NODES), f"http://127.0.0.1:{free_port()}")
    (finding,) = report.findings
    assert finding.state == FAIL
    assert "Connection refused" in finding.found
    assert "word" not in finding.found
    assert "start the server" in finding.remedy


def test_a_database_file_is_the_drivers_alone(report: Report, tmp_path: Path) -> None:
    address = f"sqlite:///{tmp_path}/mlflow.db"
    check_tracking(report, Here([HEAD]), address)
    check_tracking(report, Here(NODES), address)
    (tmp_path / "mlflow.db").write_text("no database")
    check_tracking(report, Here([HEAD]), address)
    assert states(report) == [OK, WARN, FAIL]
    assert "--tracking http" in report.findings[1].remedy
    assert not os.path.exists(tmp_path / "mlruns")


def test_lines_and_the_sum(report: Report, lines: list[str]) -> None:
    report.ok("a", "fine")
    report.fail("b", "broken", "mend it")
    report.warn("c", "slow", "hurry")
    report.close()
    assert lines == ["ok    a         fine", "FAIL  b         broken", "                -> mend it",
                     "warn  c         slow", "                -> hurry",
                     "1 failure in 3 checks, 1 warning"]  # fmt: skip


def test_what_takes_too_long_is_left_behind() -> None:
    assert within(5, sum, [1, 2]) == 3
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer within"):
        within(0.1, time.sleep, 20)
    assert time.monotonic() - began < 5
    with pytest.raises(KeyError):
        within(5, {}.__getitem__, "x")


@pytest.mark.parametrize("options", [{"workers": "3:2"}, {"workers": "0"}, {"cpus": -1.0}])
def test_options_that_are_not_accepted(options: dict) -> None:
    with pytest.raises(InputError):
        DoctorConfig(**options)
