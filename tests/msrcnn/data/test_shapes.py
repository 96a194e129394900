"""The built-in data set: deterministic, truthful, varied, mask difficulty independent of the class."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask
import pytest
from PIL import Image
from pycocotools.coco import COCO

from msrcnn.data import shapes, shapes_surfaces
from msrcnn.data.shapes import ShapesConfig, draw_image, write_shapes
from msrcnn.data.shapes_objects import CAUSES
from msrcnn.data.shapes_outlines import SOLID, THIN, draw_outline
from msrcnn.errors import InputError

SMALL = ShapesConfig(train=5, val=3, size=96)


@pytest.fixture(scope="module")
def hundred() -> list[list[dict]]:
    """The annotations of 100 images."""
    return [draw_image(ShapesConfig(), "train", index)[1] for index in range(100)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    write_shapes(SMALL, folder)
    return folder


def decode(annotation: dict, size: int) -> np.ndarray:
    """The mask of an annotation as pycocotools reads it, bool [size, size]."""
    segmentation = annotation["segmentation"]
    if isinstance(segmentation, list):
        rle = coco_mask.merge(coco_mask.frPyObjects(segmentation, size, size))
    elif isinstance(segmentation["counts"], list):
        rle = coco_mask.frPyObjects(segmentation, size, size)
    else:
        rle = segmentation
    return coco_mask.decode(rle).astype(bool)


def regions(mask: np.ndarray) -> int:
    """How many 4-connected regions a mask [H, W] has, by flooding one after the other."""
    left, count = mask.copy(), 0
    while left.any():
        flood = np.zeros_like(left)
        flood[tuple(np.argwhere(left)[0])] = True
        while True:
            grown = flood.copy()
            grown[1:] |= flood[:-1]
            grown[:-1] |= flood[1:]
            grown[:, 1:] |= flood[:, :-1]
            grown[:, :-1] |= flood[:, 1:]
            grown &= left
            if (grown == flood).all():
                break
            flood = grown
        left &= ~flood
        count += 1
    return count


def has_hole(mask: np.ndarray) -> bool:
    return regions(~np.pad(mask, 1)) > 1


def objects(images: list[list[dict]]) -> list[dict]:
    return [annotation for annotations in images for annotation in annotations if not annotation["iscrowd"]]


def test_same_seed_same_image_and_annotations() -> None:
    first, second = draw_image(SMALL, "train", 2), draw_image(SMALL, "train", 2)
    assert first[0].dtype == np.uint8
    assert first[0].shape == (96, 96, 3)
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]


@pytest.mark.parametrize(
    ("config", "split", "index"),
    [(ShapesConfig(size=96, seed=1), "train", 2), (SMALL, "val", 2), (SMALL, "train", 3)],
    ids=["seed", "split", "index"],
)
def test_seed_split_and_index_each_change_the_image(config: ShapesConfig, split: str, index: int) -> None:
    assert (draw_image(config, split, index)[0] != draw_image(SMALL, "train", 2)[0]).mean() > 0.5


def test_image_does_not_depend_on_how_many_there_are(written: Path, tmp_path: Path) -> None:
    write_shapes(ShapesConfig(train=2, val=1, size=96), tmp_path / "fewer")
    for name in ("train/000001.jpg", "train/000002.jpg", "val/000001.jpg"):
        assert (tmp_path / "fewer" / name).read_bytes() == (written / name).read_bytes()
    more = json.loads((written / "annotations/instances_train.json").read_text())
    fewer = json.loads((tmp_path / "fewer/annotations/instances_train.json").read_text())
    assert fewer["images"] == more["images"][:2]
    assert fewer["annotations"] == more["annotations"][: len(fewer["annotations"])]


def test_processes_write_what_one_process_writes(
    written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shapes, "IMAGES_A_WORKER", 4)
    monkeypatch.setattr(shapes.os, "cpu_count", lambda: 2)
    seen: list[tuple[int, int]] = []
    write_shapes(SMALL, tmp_path / "new" / "shapes", lambda done, total: seen.append((done, total)))
    assert seen == [(done, 8) for done in range(1, 9)]
    files = sorted(path.relative_to(written) for path in written.rglob("*") if path.is_file())
    assert len(files) == 5 + 3 + 2
    for name in files:
        assert (tmp_path / "new" / "shapes" / name).read_bytes() == (written / name).read_bytes()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["shapes"]


@pytest.mark.parametrize("split", ["train", "val"])
def test_pycocotools_reads_the_files_and_agrees_with_area_and_bbox(written: Path, split: str) -> None:
    coco = COCO(written / "annotations" / f"instances_{split}.json")
    assert sorted(coco.getCatIds()) == [3, 7, 11]
    assert len(coco.imgs) == getattr(SMALL, split)
    assert min(coco.imgs) > 0
    assert coco.anns
    for image in coco.imgs.values():
        with Image.open(written / split / image["file_name"]) as opened:
            assert opened.format == "JPEG"
            assert opened.size == (image["width"], image["height"]) == (96, 96)
    for annotation in coco.anns.values():
        rle = coco.annToRLE(annotation)
        assert annotation["area"] == coco_mask.area(rle)
        assert annotation["bbox"] == coco_mask.toBbox(rle).tolist()
        assert annotation["image_id"] in coco.imgs


@pytest.mark.parametrize("size", [64, 160, 512])
def test_masks_are_never_empty_and_never_overlap(size: int) -> None:
    config = ShapesConfig(size=size)
    for index in range(300, 320 if size < 512 else 303):
        _, annotations = draw_image(config, "train", index)
        taken = np.zeros((size, size), dtype=int)
        for annotation in annotations:
            mask = decode(annotation, size)
            assert annotation["area"] == mask.sum() > 0
            rows, columns = np.nonzero(mask)
            x, y = columns.min(), rows.min()
            assert annotation["bbox"] == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]
            taken += mask
        assert taken.max(initial=0) <= 1


def test_ids_are_unique_and_positive(hundred: list[list[dict]]) -> None:
    ids = [annotation["id"] for annotations in hundred for annotation in annotations]
    assert len(set(ids)) == len(ids)
    assert min(ids) > 0


def test_everything_appears_in_a_hundred_images(hundred: list[list[dict]]) -> None:
    found = objects(hundred)
    assert 3.5 < len(found) / 100 < 5
    assert 1 <= sum(not annotations for annotations in hundred) <= 12
    assert 1 <= sum(a["iscrowd"] for annotations in hundred for a in annotations) <= 15
    assert {a["category_id"] for a in found} == {3, 7, 11}
    assert {a["outline"] for a in found} == {*SOLID, *THIN, "ring"}
    for cause in CAUSES:
        assert sum(cause in a["causes"] for a in found) >= 20, cause
    assert sum(a["difficulty"] < 0.1 for a in found) / len(found) == pytest.approx(0.4, abs=0.1)
    assert sum(a["difficulty"] > 0.7 for a in found) / len(found) > 0.15
    assert {type(a["segmentation"]) for a in found} == {list, dict}


def test_objects_show_enough_of_themselves(hundred: list[list[dict]]) -> None:
    for annotation in objects(hundred):
        assert annotation["area"] >= 60
        assert annotation["causes"].get("occlusion", 0) <= 0.75


def test_rings_have_holes_and_some_objects_are_cut_in_two(hundred: list[list[dict]]) -> None:
    whole_rings = [a for a in objects(hundred) if a["outline"] == "ring" and "occlusion" not in a["causes"]]
    # A ring that the image's edge cuts open has no hole.
    inside = [a for a in whole_rings if min(a["bbox"][:2]) > 0 and max(np.add(a["bbox"][:2], a["bbox"][2:])) < 160]
    assert len(inside) >= 20
    assert np.mean([has_hole(decode(a, 160)) for a in inside]) > 0.9
    blobs = [a for a in objects(hundred) if a["outline"] in SOLID]
    assert not any(has_hole(decode(a, 160)) for a in blobs if "occlusion" not in a["causes"])
    pieces = [regions(decode(a, 160)) for a in blobs if a["causes"].get("occlusion", 0) > 0.1]
    assert max(pieces) >= 2


def test_crowd_is_a_run_length_list_over_many_small_objects() -> None:
    crowds = [
        annotation
        for index in range(200)
        for annotation in draw_image(ShapesConfig(size=64), "val", index)[1]
        if annotation["iscrowd"]
    ]
    assert 3 <= len(crowds) <= 25
    for annotation in crowds:
        counts = annotation["segmentation"]["counts"]
        assert sum(counts) == 64 * 64
        np.testing.assert_array_equal(
            np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(64, 64, order="F"),
            decode(annotation, 64),
        )


def test_difficulty_of_mask_and_class_are_independent(hundred: list[list[dict]]) -> None:
    found = objects(hundred)
    assert len(found) >= 300
    difficulty = [a["difficulty"] for a in found]
    numbers = {"difficulty": difficulty} | {c: [a["causes"].get(c, 0) for a in found] for c in CAUSES}
    for name, values in numbers.items():
        assert abs(np.corrcoef(values, [a["ambiguity"] for a in found])[0, 1]) < 0.15, name
        for category in (3, 7, 11):
            belongs = [a["category_id"] == category for a in found]
            assert abs(np.corrcoef(values, belongs)[0, 1]) < 0.15, (name, category)
    for category in (3, 7, 11):
        belongs = [a["category_id"] == category for a in found]
        assert abs(np.corrcoef([a["ambiguity"] for a in found], belongs)[0, 1]) < 0.15


def test_thin_shows_in_the_outline() -> None:
    """Thin outlines have far more border for their area than solid ones, the more the stronger."""
    rng = np.random.default_rng(0)

    def compactness(thin: float | None) -> float:
        values = []
        for _ in range(40):
            outline = draw_outline(rng, 60.0, thin, None)
            points = outline.parts[0]
            following = np.roll(points, -1, axis=0)
            area = abs((points[:, 0] * following[:, 1] - points[:, 1] * following[:, 0]).sum()) / 2
            values.append(4 * np.pi * area / np.hypot(*(following - points).T).sum() ** 2)
        return float(np.mean(values))

    solid, mild, strong = compactness(None), compactness(0.1), compactness(1.0)
    assert solid > mild > strong
    assert strong < 0.5 * solid


@pytest.mark.parametrize("thin", [None, 0.0, 1.0])
@pytest.mark.parametrize("hole", [None, 0.0, 1.0])
def test_outline_has_the_length_asked_for(thin: float | None, hole: float | None) -> None:
    for seed in range(10):
        outline = draw_outline(np.random.default_rng(seed), 50.0, thin, hole)
        points = np.concatenate(outline.parts)
        assert np.ptp(points, axis=0).max() == pytest.approx(50.0)
        assert bool(outline.holes) == (hole is not None)


def test_surface_moves_towards_the_other_class_with_ambiguity() -> None:
    """The mean colour of red stripes mixed with blue checks moves along the line between the two."""
    means = [
        np.mean(
            [
                shapes_surfaces.draw_surface(np.random.default_rng(seed), 64, 7.0, 0, 2, ambiguity).mean((0, 1))
                for seed in range(20)
            ],
            axis=0,
        )
        for ambiguity in (0.0, 0.2, 0.45)
    ]
    redness = [mean[0] - mean[2] for mean in means]
    assert redness[0] > redness[1] > redness[2] > 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("train", 0),
        ("val", -1),
        ("size", 63),
        ("size", 160.5),
        ("classes", 9),
        ("classes", True),
        ("seed", -1),
    ],
)
def test_bad_config_names_field_value_and_what_is_accepted(field: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"shapes\.{field} = {value!r} .* whole number in \d+\.\.\d+"):
        ShapesConfig(**{field: value})


def test_unknown_split_and_index_are_refused() -> None:
    with pytest.raises(InputError, match=r"split = 'test'.*'train' or 'val'"):
        draw_image(SMALL, "test", 0)
    with pytest.raises(InputError, match="index = -1"):
        draw_image(SMALL, "train", -1)


def test_occupied_folder_is_refused_and_left_alone(written: Path, tmp_path: Path) -> None:
    before = (written / "annotations/instances_train.json").stat().st_mtime_ns
    with pytest.raises(InputError, match="already holds this very data set; delete it or choose another folder"):
        write_shapes(SMALL, written)
    with pytest.raises(InputError, match="is not empty; delete it or choose another folder"):
        write_shapes(ShapesConfig(seed=9), written)
    assert (written / "annotations/instances_train.json").stat().st_mtime_ns == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        write_shapes(SMALL, tmp_path / "file")
    with pytest.raises(InputError, match="cannot be written"):
        write_shapes(SMALL, tmp_path / "file" / "below")
    assert (tmp_path / "file").read_text() == "mine"


def test_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    write_shapes(ShapesConfig(train=1, val=1, size=64), tmp_path / "empty")
    assert (tmp_path / "empty/val/000001.jpg").is_file()


@pytest.mark.parametrize("images_a_worker", [4, 50], ids=["processes", "one process"])
def test_interrupted_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, images_a_worker: int
) -> None:
    monkeypatch.setattr(shapes, "IMAGES_A_WORKER", images_a_worker)

    def stop(done: int, _total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shapes(SMALL, tmp_path / "shapes", stop)
    assert list(tmp_path.iterdir()) == []
