"""What is wrong in a data set is set aside with its reason, and the rest goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from msrcnn.data.rejected import Reason
from msrcnn.errors import InputError
from pipelines.manifest import read_manifest
from pipelines.options import VerifyConfig
from pipelines.shard import ShardConfig, shard
from pipelines.verify import verify
from tests.little import SIZE, check_rows, edit, encoded, files_of, rows_of


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_what_is_wrong_is_set_aside_counted_and_told(little: ShardConfig) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["images"].append({**content["images"][0], "id": 50, "file_name": "gone.png"})
        content["images"].append(dict(content["images"][1]))
        content["annotations"][0]["category_id"] = 0
        content["annotations"][1]["segmentation"] = [[1, 1, 2, 2]]
        content["annotations"].append({**content["annotations"][2], "image_id": 77, "id": 78})

    edit(little, spoil)
    (little.images / "2.jpeg").write_bytes(b"broken")
    lines: list[str] = []
    report = shard(little, log=lines.append)
    assert report.rejected == {
        Reason.CATEGORY_ZERO: 1,
        Reason.UNKNOWN_IMAGE: 1,
        Reason.POLYGON: 1,
        Reason.DUPLICATE_IMAGE: 1,
        Reason.IMAGE_MISSING: 1,
        Reason.IMAGE_UNDECODABLE: 1,
    }
    assert read_manifest(little.out).rejected == report.rejected
    rows = {row["image_id"]: row for row in rows_of(little.out)}
    assert sorted(rows) == [1, *range(3, 13)]
    assert [i["annotation_id"] for i in rows[1]["instances"]] == [102, 103]
    assert report.instances == 44 - 2 - 4
    listed = pq.read_table(little.out / "rejected.parquet")
    assert listed.schema.equals(
        pa.schema(
            {
                "image_id": pa.int64(),
                "annotation_id": pa.int64(),
                "reason": pa.string(),
                "detail": pa.string(),
            }
        )
    )
    found = {(row["image_id"], row["annotation_id"], row["reason"]) for row in listed.to_pylist()}
    assert found == {
        (1, 100, Reason.CATEGORY_ZERO),
        (77, 78, Reason.UNKNOWN_IMAGE),
        (1, 101, Reason.POLYGON),
        (2, None, Reason.DUPLICATE_IMAGE),
        (50, None, Reason.IMAGE_MISSING),
        (2, None, Reason.IMAGE_UNDECODABLE),
    }
    told = [line for line in lines if line.startswith("set aside: ")]
    assert len(told) == 6
    assert "set aside: 1 x image undecodable (first: image 2: " in "\n".join(told)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_no_usable_image_leaves_nothing(little: ShardConfig) -> None:
    for path in little.images.rglob("*.*"):
        path.write_bytes(b"broken")
    with pytest.raises(
        InputError, match=r"none of its 12 images can be used \(for example image undecodable: .*\.(png|jpeg)"
    ):
        shard(little, log=lambda _: None)
    assert files_of(little.out) == []


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_every_kind_of_dirt_once_and_the_good_rows_intact(little: ShardConfig) -> None:
    """Each image or annotation that is spoiled here is set aside for one reason; everything else is as it was."""

    def spoil(content: dict[str, Any]) -> None:
        images, annotations = content["images"], {a["id"]: a for a in content["annotations"]}
        images += [{**images[0], "id": 50, "file_name": "gone.png"}, dict(images[1])]
        images += [{**images[0], "id": 51, "height": "30"}, {**images[0], "id": 52, "file_name": "sub/../1.png"}]
        square = annotations[400]
        content["annotations"] += [
            {**square, "id": 9901, "image_id": 77}, {**square, "id": 9902, "category_id": 5}, dict(square),
            {**square, "id": 9903, "category_id": 0}, "an annotation",
        ]  # fmt: skip
        size = list(SIZE)
        for annotation_id, segmentation in {
            400: [[1, 1, 9, 9]],
            401: [[1, 1, float("nan"), 1, 9, 9]],
            402: [[1, 1, float("inf"), 1, 9, 9]],
            403: [[-20, -20, -10, -20, -10, -10]],
            500: [[1, 1, 9e9, 1, 9, 9]],
            501: {"size": SIZE[::-1], "counts": [1200]},
            502: {"size": size, "counts": "0"},
            503: {"size": size, "counts": [1200]},
            600: {"size": size, "counts": [100, 50]},
            601: None,
        }.items():
            annotations[annotation_id]["segmentation"] = segmentation

    def write(name: str, content: bytes) -> None:
        (little.images / name).write_bytes(content)

    edit(little, spoil)
    write("2.jpeg", b"<html>404 not found</html>")
    write("7.png", encoded("png", 7)[:900])
    write("8.jpeg", b"")
    write("10.jpeg", encoded("jpeg", 10, SIZE[::-1]))
    report = shard(little, log=lambda _: None)
    spoiled = {
        Reason.IMAGE_RECORD: [51], Reason.DUPLICATE_IMAGE: [2], Reason.IMAGE_MISSING: [50],
        Reason.IMAGE_UNDECODABLE: [2], Reason.IMAGE_TRUNCATED: [7, 8], Reason.IMAGE_SIZE: [10],
        Reason.ANNOTATION_RECORD: [None, 601], Reason.DUPLICATE_ANNOTATION: [400], Reason.UNKNOWN_IMAGE: [9901],
        Reason.UNKNOWN_CATEGORY: [9902], Reason.CATEGORY_ZERO: [9903], Reason.POLYGON: [400, 401, 402, 500],
        Reason.RLE: [501, 502, 600], Reason.EMPTY_MASK: [403, 503],
    }  # fmt: skip
    assert set(spoiled) == set(Reason)
    assert report.rejected == {reason: len(ids) for reason, ids in spoiled.items()}
    listed: dict[str, list[int]] = {}
    for row in pq.read_table(little.out / "rejected.parquet").to_pylist():
        of_image = row["reason"].startswith("image") or row["reason"] == Reason.DUPLICATE_IMAGE
        listed.setdefault(row["reason"], []).append(row["image_id" if of_image else "annotation_id"])
    assert {k: sorted(v, key=str) for k, v in listed.items()} == {k: sorted(v, key=str) for k, v in spoiled.items()}

    def without_spoiled(content: dict[str, Any]) -> None:
        seen = {0}
        content["images"] = [
            i for i in content["images"]
            if i["id"] not in {2, 7, 8, 10, 50, 51} and not (i["id"] in seen or seen.add(i["id"]))
        ]  # fmt: skip
        bad = {400, 401, 402, 403, 500, 501, 502, 503, 600, 601, 9901, 9902, 9903}
        content["annotations"] = [
            a for a in content["annotations"]
            if isinstance(a, dict) and a["id"] not in bad and a["image_id"] in {i["id"] for i in content["images"]}
        ]  # fmt: skip

    edit(little, without_spoiled)
    assert check_rows(rows_of(little.out), little) == report.instances == 44 - 4 * 4 - 10
    assert report.rows == 12 - 4 + 1
    verify(VerifyConfig(little.out), lambda _: None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_strict_fails_instead_and_leaves_nothing(little: ShardConfig) -> None:
    strict = replace(little, strict=True)
    (little.images / "2.jpeg").write_bytes(b"broken")
    (little.images / "4.jpeg").write_bytes(encoded("jpeg", 4)[:300])
    lenient = replace(little, out=little.out.with_name("lenient"))
    assert shard(lenient, log=lambda _: None).rows == 10
    with pytest.raises(
        InputError, match=r"without --strict, and what was set aside is 1 x image truncated, 1 x image u"
    ):
        shard(replace(lenient, strict=True), log=lambda _: None)
    told = r"1 x image truncated, 1 x image undecodable \(first: image \d: .*\); nothing was kept, because of --strict$"
    with pytest.raises(InputError, match=rf"little.json: {told}"):
        shard(strict, log=lambda _: None)
    assert files_of(little.out) == []
    edit(little, lambda content: content["annotations"][0].update(category_id=0))
    told = r"annotation of category 0, which does not exist \(first: image 1, annotation 100: annotations\[0\]: .*\)"
    with pytest.raises(InputError, match=rf"1 x {told}; nothing was written, because of --strict$"):
        shard(replace(strict, out=little.out / "new"), log=lambda _: None)
    assert files_of(little.out) == []
    edit(little, lambda content: content["annotations"][0].update(category_id=3))
    for name in ("2.jpeg", "4.jpeg"):
        (little.images / name).write_bytes(encoded("jpeg", int(name[0])))
    assert shard(strict, log=lambda _: None).rejected == {}  # what is only corrected is no failure
