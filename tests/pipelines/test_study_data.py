"""The training images of a study in two parts: by images, disjoint, complete, always the same."""

from __future__ import annotations

import json

import numpy as np
import pytest

from msrcnn.errors import InputError
from pipelines.study_data import part, study_shards


def write_annotations(path, images: int):
    """Ids with gaps, in no order; images with 0 to 3 annotations, some of them crowds."""
    rng = np.random.default_rng(0)
    ids = (rng.permutation(10 * images)[:images] + 1).tolist()
    rows = [{"image_id": i, "iscrowd": int(rng.random() < 0.3)} for i in ids for _ in range(rng.integers(0, 4))]
    rows = [{"id": number, "category_id": 1, **row} for number, row in enumerate(rng.permutation(rows).tolist())]
    value = {"info": {"year": 2019}, "categories": [{"id": 1, "name": "disc"}],
             "images": [{"id": i, "file_name": f"{i}.png"} for i in ids], "annotations": rows}  # fmt: skip
    path.write_text(json.dumps(value))
    return value


@pytest.mark.parametrize("images", [3, 12, 50, 101])
def test_parts_are_disjoint_and_complete(tmp_path, images):
    whole = write_annotations(tmp_path / "all.json", images)
    fit, choose = (json.loads(path.read_text()) for path in part(tmp_path / "all.json", tmp_path / "parts"))
    assert len(choose["images"]) == round(0.2 * images)
    ids = [{row["id"] for row in half["images"]} for half in (fit, choose)]
    assert not ids[0] & ids[1]
    for of in ("images", "annotations"):
        both = [*fit[of], *choose[of]]
        assert sorted(both, key=lambda row: row["id"]) == sorted(whole[of], key=lambda row: row["id"])
    for half, own in zip((fit, choose), ids, strict=True):
        assert {row["image_id"] for row in half["annotations"]} <= own
        assert (half["categories"], half["info"]) == (whole["categories"], whole["info"])


def test_parts_are_always_the_same(tmp_path):
    """Whatever the order of the images in the file; and what is there is left alone."""
    value = write_annotations(tmp_path / "all.json", 40)
    (_, choose) = part(tmp_path / "all.json", tmp_path / "one")
    (tmp_path / "turned.json").write_text(json.dumps(value | {"images": value["images"][::-1]}))
    (_, again) = part(tmp_path / "turned.json", tmp_path / "other")
    first, second = ({row["id"] for row in json.loads(path.read_text())["images"]} for path in (choose, again))
    assert first == second
    assert first != set(sorted(row["id"] for row in value["images"])[:8])  # not simply the first ones
    choose.write_text("changed")
    part(tmp_path / "all.json", tmp_path / "one")
    assert choose.read_text() == "changed"


def test_too_few_images(tmp_path):
    write_annotations(tmp_path / "all.json", 2)
    with pytest.raises(InputError, match="2 images cannot be parted; give a training set of at least 3"):
        part(tmp_path / "all.json", tmp_path / "parts")


def test_a_folder_of_another_form(tmp_path):
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_train.json").write_text("{}")  # but no instances_val.json
    with pytest.raises(InputError, match=f"--data {tmp_path}: neither annotations/instances_train.json and"):
        study_shards(tmp_path / "out", tmp_path, None, print)
    assert not (tmp_path / "out").exists()
