"""Starting and joining Ray, each in a process of its own: in this one it may already run."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

STARTS_AND_STOPS = """
import os
os.environ.pop("RAY_ADDRESS", None)
from cluster.session import connect
with connect(cpus=3):
    import ray
    assert ray.cluster_resources()["CPU"] == 3
    with connect(cpus=7):  # inside a command that already has one
        assert ray.cluster_resources()["CPU"] == 3
    assert ray.is_initialized()
    assert ray.data.range(6, override_num_blocks=2).map(lambda row: {"id": row["id"] * 2}).sum("id") == 30
assert not ray.is_initialized()
for late in (lambda: ray.put(1), lambda: ray.remote(int).remote()):  # of a thread that has not ended
    try:
        late()
    except ray.exceptions.RaySystemError:
        pass
    assert not ray.is_initialized()
"""

JOINS = """
import os
os.environ["RAY_AUTH_MODE"] = "disabled"
import ray
from ray.cluster_utils import Cluster
from cluster.session import connect
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 5})
for way in (cluster.address, None):
    os.environ["RAY_ADDRESS"] = cluster.address if way is None else "127.0.0.1:1"
    with connect(way):
        assert ray.get_runtime_context().gcs_address == cluster.address
        assert ray.cluster_resources()["CPU"] == 5
    assert not ray.is_initialized()
with connect(cluster.address):  # it still runs
    assert len(ray.nodes()) == 1
cluster.shutdown()
"""

DOES_NOT_ANSWER = """
import os, time
from cluster.session import connect
from msrcnn.errors import InputError
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
start = time.perf_counter()
for address in (None, "ray://127.0.0.1:2", "127.0.0.1", "127.0.0.1:no", "127.0.0.1:99999"):
    try:
        with connect(address):
            print("connected")
    except InputError as error:
        print(error)
assert time.perf_counter() - start < 60
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
@pytest.mark.ray
def test_local_ray_starts_quietly_and_stops() -> None:
    result = run(STARTS_AND_STOPS)
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("", "")


@pytest.mark.slow
@pytest.mark.ray
def test_a_running_cluster_is_joined_and_left_running() -> None:
    result = run(JOINS)
    assert result.returncode == 0, result.stderr


def test_an_address_that_does_not_answer_is_told_at_once() -> None:
    result = run(DOES_NOT_ANSWER)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert [line.split("(")[0].split(";")[0].rstrip() for line in lines] == [
        "Ray address '127.0.0.1:1': no cluster answers there",
        "Ray address 'ray://127.0.0.1:2': no cluster answers there",
        "Ray address '127.0.0.1': expected host:port, ray://host:port, auto or local",
        "Ray address '127.0.0.1:no': expected host:port, ray://host:port, auto or local",
        "Ray address '127.0.0.1:99999': expected host:port, ray://host:port, auto or local",
    ]


def test_a_cluster_of_another_ray_is_named_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Ray's own words, which its check of versions raises."""
    import ray
    from ray._private.utils import check_version_info

    from cluster.session import connect
    from msrcnn.errors import InputError

    def refuse(**_: object) -> None:
        check_version_info({"ray_version": "2.1.0", "python_version": "3.10.2"}, "node 10.0.0.7")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(InputError) as raised, connect(address):
            pass
    message = str(raised.value)
    assert "the cluster runs Ray 2.1.0 on Python 3.10.2, this process Ray " + ray.__version__ in message
    assert "\n" not in message
