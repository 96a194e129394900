"""Sharding that is interrupted, killed or given other input goes on where it stopped, and never mixes two plans."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msrcnn.errors import InputError
from pipelines.manifest import read_manifest
from pipelines.options import VerifyConfig
from pipelines.part_records import begin, discard, parse_record
from pipelines.shard import ShardConfig, shard
from pipelines.shard_job import WriteJob, pack, write_shard
from pipelines.shard_plan import Plan, make_plan
from pipelines.storage import locate
from pipelines.verify import verify

LOSE_A_NODE = """
import sys, threading, time
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from pipelines.shard import ShardConfig, shard

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8})
nodes = [cluster.add_node(num_cpus=1, object_store_memory=10**8) for _ in range(2)]
ray.init(address=cluster.address, log_to_driver=False)
cluster.wait_for_nodes()

def lose():
    while len(list(Path(sys.argv[3]).glob("shard-*.json"))) < 10:
        time.sleep(0.01)
    cluster.remove_node(nodes[0], allow_graceful=False)
    print("lost a node", flush=True)

thread = threading.Thread(target=lose)
thread.start()
report = shard(ShardConfig(*sys.argv[1:], shard_mb=1, row_group=4))
thread.join()
ended = time.monotonic()
while sum(node["Alive"] for node in ray.nodes()) == 3 and time.monotonic() < ended + 60:
    time.sleep(0.1)
print("rows", report.rows, "nodes", sum(node["Alive"] for node in ray.nodes()), flush=True)
ray.shutdown()  # before the cluster goes: else it ends this process
cluster.shutdown()
"""
"""On a cluster of two nodes that work and a head that does not."""
SIDE = 600  # noise: about 1.1 MB of PNG, so that --shard-mb 1 makes a shard of each


def make_images(tmp_path: Path, count: int) -> ShardConfig:
    """Images of noise, each with one instance."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(stream, "PNG", compress_level=1)
        (folder / f"{i}.png").write_bytes(stream.getvalue())
        images.append({"id": i, "file_name": f"{i}.png", "height": SIDE, "width": SIDE})
        box = [10, 10, 30 + i, 10, 30 + i, 90]
        annotations.append({"id": i, "image_id": i, "category_id": 1, "segmentation": [box], "iscrowd": 0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "noise.json").write_text(json.dumps(content))
    return ShardConfig(tmp_path / "noise.json", folder, tmp_path / "shards", shard_mb=1, row_group=4)


def planned(config: ShardConfig) -> tuple[Plan, WriteJob]:
    images, out = locate(config.images), locate(config.out)
    plan = make_plan(config, locate(config.annotations), images)
    return plan, WriteJob(images, out, plan.meta, config.row_group, plan.source.fingerprint)


def records_of(config: ShardConfig) -> list[Path]:
    return sorted(Path(config.out).glob("shard-*.json"))


def check_complete(config: ShardConfig, count: int) -> None:
    """Every image once, with its bytes; sums right; nothing beside shards and manifest."""
    ids = []
    for path in read_manifest(config.out).paths:
        for row in pq.read_table(path).to_pylist():
            ids.append(row["image_id"])
            assert row["image"] == (Path(config.images) / row["file_name"]).read_bytes()
            assert [i["annotation_id"] for i in row["instances"]] == [row["image_id"]]
    assert sorted(ids) == list(range(count))
    verify(VerifyConfig(config.out), lambda _: None)
    names = {path.name for path in Path(config.out).iterdir()}
    assert names == {"manifest.json", *(part.file for part in read_manifest(config.out).parts)}


def test_what_is_done_is_known_from_records_alone(tmp_path: Path) -> None:
    config = make_images(tmp_path, 6)
    plan, job = planned(config)
    Path(config.out).mkdir()
    (Path(config.out) / ".unfinished.tmp-0123456789ab").write_text("{")  # killed at the very beginning
    assert begin(job.out, plan.source) == {}
    assert [path.name for path in Path(config.out).iterdir()] == [".unfinished"]
    done = [write_shard(i, pack(plan.shards[i]), job) for i in range(5)]
    out = Path(config.out)
    (out / "shard-00001.json").write_text("{")  # a record that cannot be read
    (out / "shard-00002.parquet").write_bytes(b"cut")  # a shard that is not what its record says
    (out / "shard-00003.parquet").unlink()
    (out / "shard-00004.json").write_text(
        json.dumps({**json.loads((out / "shard-00004.json").read_text()), "plan": "x"})
    )
    (out / "shard-00005.parquet").write_bytes((out / "shard-00000.parquet").read_bytes())  # in place without a record
    for name in ("shard-00005.parquet.tmp-0123456789ab", "manifest.json.tmp-0123456789ab", "notes.txt"):
        (out / name).write_text("left")
    assert begin(job.out, plan.source) == {0: done[0]}
    names = {path.name for path in out.iterdir()}
    assert not any(".tmp-" in name for name in names)
    discard(job.out)
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_another_plan_is_refused_and_told_why(tmp_path: Path) -> None:
    config = make_images(tmp_path, 3)
    plan, job = planned(config)
    begin(job.out, plan.source)
    write_shard(0, pack(plan.shards[0]), job)
    (Path(config.images) / "0.png").write_bytes(b"other")
    other, _ = planned(replace(config, seed=3, name="mine"))
    with pytest.raises(InputError, match=r"unfinished sharding of something else \(the image files; name 'noise', now "
                       r"'mine'; seed 0, now 3\); give what it began with to go on"):  # fmt: skip
        begin(job.out, other.source)
    assert len(records_of(config)) == 1
    (Path(config.out) / ".unfinished").write_text("")
    with pytest.raises(InputError, match="written by another version"):
        begin(job.out, plan.source)
    (Path(config.out) / ".unfinished").unlink()
    with pytest.raises(InputError, match="is not empty; choose another --out"):
        begin(job.out, plan.source)


def test_folders_that_cannot_be_made(tmp_path: Path) -> None:
    config = make_images(tmp_path, 1)
    plan, _ = planned(config)
    with pytest.raises(InputError, match="cannot be written"):
        begin(locate("/proc/nothing/here"), plan.source)
    with pytest.raises(InputError, match="is a file; choose a folder for --out"):
        begin(locate(config.annotations), plan.source)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_interrupted_sharding_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    """Shards that are there are neither read nor written again: their images are gone when it goes on."""
    config = make_images(tmp_path, 6)

    def interrupt(line: str) -> None:
        if line.startswith("6/6 images"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shard(config, interrupt)
    records = [parse_record(path.read_bytes()) for path in records_of(config)]
    assert sorted(r.shard for r in records) == list(range(6))
    records_of(config)[2].unlink()
    before = {path.name: path.stat().st_mtime_ns for path in Path(config.out).glob("*.parquet")}
    lines: list[str] = []
    report = shard(config, lines.append)
    assert (report.rows, report.shards) == (6, 6)
    assert "5 of 6 shards are there already" in lines
    assert any(line.startswith("1/1 images") for line in lines)
    after = {path.name: path.stat().st_mtime_ns for path in Path(config.out).glob("*.parquet")}
    assert [name for name in sorted(after) if after[name] != before[name]] == ["shard-00002.parquet"]
    check_complete(config, 6)


@pytest.mark.ray
@pytest.mark.slow
def test_driver_killed_three_times_loses_and_repeats_no_row(tmp_path: Path) -> None:
    """Real processes, each with a Ray of its own, killed with SIGKILL while tasks write."""
    count = 80
    config = make_images(tmp_path, count)
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "shard",
               "--annotations", str(config.annotations), "--images", str(config.images), "--out", str(config.out),
               "--shard-mb", "1", "--row-group", "4"]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    kept: list[int] = []
    for _ in range(3):
        had = {path.name for path in records_of(config)}
        with (tmp_path / "log").open("w") as log:
            driver = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            deadline = time.monotonic() + 240
            while len(records_of(config)) < len(had) + 5 and driver.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            driver.kill()
            assert driver.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
        assert not (Path(config.out) / "manifest.json").exists()
        assert had <= {path.name for path in records_of(config)}
        kept.append(len(records_of(config)))
    assert 5 <= kept[0] < kept[1] < kept[2] < count
    last = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert last.returncode == 0, last.stderr
    assert " shards are there already" in last.stdout
    print(f"{kept} of {read_manifest(config.out).rows} shards were there when the driver was killed")
    check_complete(config, count)


@pytest.mark.ray
@pytest.mark.slow
def test_node_killed_half_way_costs_no_row(tmp_path: Path) -> None:
    """Its tasks run again on the node that is left."""
    count = 80
    config = make_images(tmp_path, count)
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-c", LOSE_A_NODE, str(config.annotations), str(config.images), str(config.out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    (end,) = (i for i, line in enumerate(lines) if line.startswith(f"{count}/{count} images, "))
    assert lines.index("lost a node") < end, lines
    assert f"rows {count} nodes 2" in [line for line in lines if line.startswith("rows")]  # head and the one left
    check_complete(config, count)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_second_sharding_into_the_folder_is_refused_while_the_first_runs(little):
    """Another process holds the folder, as a sharding does; when it has gone, sharding goes through."""
    code = "import sys; from pipelines.storage import exclusively, locate\n"
    code += "with exclusively(locate(sys.argv[1]), 'sharding into'): print('in', flush=True); sys.stdin.read()"
    Path(little.out).mkdir()
    other = subprocess.Popen([sys.executable, "-c", code, str(little.out)], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE)  # fmt: skip
    assert other.stdout is not None
    assert other.stdout.readline() == b"in\n"
    with pytest.raises(InputError, match="another process is sharding into it; wait or choose another --out"):
        shard(little, log=lambda _: None)
    assert list(Path(little.out).iterdir()) == []
    other.kill()
    other.communicate()
    assert shard(little, log=lambda _: None).rows == 12
