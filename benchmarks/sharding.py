"""How much memory sharding takes and how fast it is: a COCO data set repeated under new ids, sharded by `msrcnn shard`.

    python -m benchmarks.sharding --data DATA/coco_sample --images 20000

The images are files that are there once; every copy of a record has ids of its own. The command runs in a process of
its own, as a user's does; while it runs, the peak resident size of its driver and of every Ray process under it is
read from /proc (Linux). It counts shared memory, the object store too. Ends with one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.images import data_folder
from pipelines.manifest import read_manifest
from pipelines.shard_plan import MIN_SHARDS

SAMPLE_SECONDS = 0.2
LIMIT_BYTES = 2 * 10**9
"""What driver and workers may take each."""


def repeat(annotations: Path, images: int, to: Path) -> tuple[int, int]:
    """Writes an annotation file of `images` records; returns the number of annotations and the file's size."""
    content = json.loads(annotations.read_bytes())
    own: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        own.setdefault(annotation["image_id"], []).append(annotation)
    records: list[dict[str, Any]] = []
    copies: list[dict[str, Any]] = []
    for i in range(images):
        source = content["images"][i % len(content["images"])]
        records.append({**source, "id": i + 1})
        copies += [{**a, "id": len(copies) + 1 + k, "image_id": i + 1} for k, a in enumerate(own.get(source["id"], ()))]
    to.write_text(json.dumps({**content, "images": records, "annotations": copies}))
    return len(copies), to.stat().st_size


def tree(root: int) -> list[int]:
    """A process and everything below it."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                parent = int(Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
            children.setdefault(parent, []).append(int(entry))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def peak(pid: int) -> tuple[str, int] | None:
    """What a process is (driver or worker of Ray, or other) and its peak resident size in bytes; None if it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return None
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    if not lines:
        return None
    kind = "worker" if command.startswith(b"ray::") else "other"
    return kind, int(lines[0].split()[1]) * 1024


def run(command: list[str]) -> tuple[float, dict[str, dict[int, int]]]:
    """Seconds, and the peak of each process by kind."""
    start = time.perf_counter()
    driver = subprocess.Popen(command)
    peaks: dict[str, dict[int, int]] = {"driver": {}, "worker": {}, "other": {}}
    while driver.poll() is None:
        for pid in tree(driver.pid):
            if measured := peak(pid):
                kind = "driver" if pid == driver.pid else measured[0]
                peaks[kind][pid] = max(measured[1], peaks[kind].get(pid, 0))
        time.sleep(SAMPLE_SECONDS)
    seconds = time.perf_counter() - start
    if driver.returncode:
        raise SystemExit(f"sharding failed with exit code {driver.returncode}")
    return seconds, peaks


def main() -> None:
    """Prints what is measured; exit code 1 if a process takes more than it may."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="1000 images")
    parser.add_argument("--images", type=int, default=20000, help="(default: %(default)s)")
    options = parser.parse_args()
    root = data_folder()
    if root is None:
        print("sharding: set MSRCNN_DATA to the folder that holds coco_sample/", file=sys.stderr)
        raise SystemExit(2)
    images = 1000 if options.quick else options.images
    source = root / "coco_sample"
    annotations = source / "annotations" / "instances_train2017.json"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        instances, size = repeat(annotations, images, folder / "repeated.json")
        print(f"{images} images, {instances} annotations, annotation file {size / 1e6:.0f} MB; "
              f"{os.cpu_count()} CPUs, {platform.platform()}, Python {platform.python_version()}")  # fmt: skip
        seconds, peaks = run([
            sys.executable, "-c", "from pipelines.cli import main; main()", "shard", "--annotations",
            str(folder / "repeated.json"), "--images", str(source / "train2017"), "--out", str(folder / "shards"),
        ])  # fmt: skip
        manifest = read_manifest(folder / "shards")
        assert (manifest.rows, manifest.instances) == (images, instances)
        assert len(manifest.parts) >= min(MIN_SHARDS, images)
    worst = {kind: max(found.values(), default=0) for kind, found in peaks.items()}
    for kind, found in peaks.items():
        print(f"{kind}: {len(found)} processes, peak {worst[kind] / 1e6:.0f} MB")
    print(json.dumps({
        "benchmark": "sharding", "images": images, "instances": instances, "annotation_bytes": size,
        "shards": len(manifest.parts), "shard_bytes": manifest.bytes, "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1), "driver_peak_bytes": worst["driver"],
        "worker_peak_bytes": worst["worker"], "workers": len(peaks["worker"]), "cpus": os.cpu_count(),
    }))  # fmt: skip
    if max(worst["driver"], worst["worker"]) > LIMIT_BYTES:
        raise SystemExit("a process took more than 2 GB")


if __name__ == "__main__":
    main()
