"""The plan of shards: every image once, by bytes, a function of images and seed; what it is bound to."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from msrcnn.data.coco import ImageRecord
from msrcnn.data.rejected import Reason
from pipelines.shard import ShardConfig
from pipelines.shard_plan import MIN_SHARDS, SPREAD_IMAGES, Plan, make_plan, plan_shards
from pipelines.storage import locate

SIZE = (30, 40)  # height, width


def records(sizes: list[int]) -> list[tuple[ImageRecord, int]]:
    return [(ImageRecord(i, f"{i}.png", *SIZE, ()), size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("count", "size", "shards"),
    [
        (1, 10, 1),
        (SPREAD_IMAGES - 1, 10, 1),
        (SPREAD_IMAGES, 10, MIN_SHARDS),
        (600, 1000, MIN_SHARDS),
        (600, 10**5, 30),  # 60 MB at 2 MB a shard
        (3, 10**7, 3),  # images larger than a shard: one each
        (5, 0, 1),  # empty files: rejected later, but planned
    ],
)
def test_plan_holds_every_image_once_in_shards_of_equal_size(count: int, size: int, shards: int) -> None:
    found = records([size] * count)
    plan = plan_shards(found, shard_mb=2, seed=0)
    assert len(plan) == shards
    assert sorted(r.image_id for part in plan for r in part) == list(range(count))
    assert max(map(len, plan)) - min(map(len, plan)) <= 1


def test_plan_balances_bytes() -> None:
    sizes = np.random.default_rng(0).integers(10_000, 400_000, 500).tolist()
    plan = plan_shards(records(sizes), shard_mb=10, seed=0)
    totals = [sum(sizes[r.image_id] for r in part) for part in plan]
    assert len(plan) == -(-sum(sizes) // 10**7)
    assert max(totals) - min(totals) <= 2 * max(sizes)


def test_plan_is_a_function_of_images_and_seed() -> None:
    found = records([1000] * 300)

    def order(seed: int, images: list[tuple[ImageRecord, int]]) -> list[int]:
        return [r.image_id for part in plan_shards(images, shard_mb=64, seed=seed) for r in part]

    assert order(0, found) == order(0, found[::-1])
    assert order(0, found) != order(1, found)
    assert order(0, found) != sorted(order(0, found))


def planned(config: ShardConfig) -> Plan:
    return make_plan(config, locate(config.annotations), locate(config.images))


@pytest.fixture
def config(tmp_path: Path) -> ShardConfig:
    """Five images, one of them missing; planning does not decode them."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    names = ["a.png", "sub/b.png", "c.png", "gone.png", "d.png"]
    for name in names:
        if name != "gone.png":
            (tmp_path / "images" / name).write_bytes(b"pixels")
    images = [{"id": i, "file_name": name, "height": 3, "width": 4} for i, name in enumerate(names)]
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    (tmp_path / "a.json").write_text(json.dumps(content))
    return ShardConfig(tmp_path / "a.json", tmp_path / "images", tmp_path / "out")


def test_plan_sets_missing_images_aside(config: ShardConfig, tmp_path: Path) -> None:
    plan = planned(config)
    assert sorted(r.file_name for shard in plan.shards for r in shard) == ["a.png", "c.png", "d.png", "sub/b.png"]
    assert [(r.reason, r.image_id) for r in plan.rejected] == [(Reason.IMAGE_MISSING, 3)]
    assert plan.rejected[0].detail == str(tmp_path / "images" / "gone.png")


def test_source_follows_from_everything_that_shards_follow_from(config: ShardConfig, tmp_path: Path) -> None:
    source = planned(config).source
    assert planned(config).source == source
    changes = {
        "seed 0, now 1": replace(config, seed=1),
        "shard_mb 64, now 7": replace(config, shard_mb=7),
        "row_group 64, now 8": replace(config, row_group=8),
        "name 'a', now 'b'": replace(config, name="b"),
    }
    for difference, other in changes.items():
        assert planned(other).source.fingerprint != source.fingerprint
        assert planned(other).source.differences(asdict(source)) == difference
    (tmp_path / "images" / "a.png").write_bytes(b"more pixels")
    assert planned(config).source.differences(asdict(source)) == "the image files"
    (tmp_path / "images" / "a.png").write_bytes(b"pixels")
    assert planned(config).source == source
    config.annotations.write_text(config.annotations.read_text() + " ")
    assert planned(config).source.differences(asdict(source)) == "the annotation file"
