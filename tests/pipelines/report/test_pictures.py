"""Outlines cover their masks; pictures show the right place and say the right numbers."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from pipelines.provenance import made as program
from pipelines.report.outlines import Window, outline, simplified
from pipelines.report.page import Found, render
from pipelines.report.picks import Pick, picks_of
from pipelines.report.pictures import ASPECT, BYTES, described, look, pictures_of, window_around
from pipelines.report.rows import read_rows_of
from pipelines.report.runs import open_runs
from pipelines.report_options import MOST_PICTURES
from tests.reports import CATEGORIES, picture, write_evaluation
from tests.stored_scenes import write_shards

NUMBER = re.compile(r"-?\d*\.?\d+")


def rle_of(mask: np.ndarray) -> bytes:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"]


def filled(path: str, width: int, height: int) -> np.ndarray:
    """The path's inside by the even-odd rule, as bool [height, width], drawn eight times as large to be exact."""
    big = 8
    inside = np.zeros((height * big, width * big), dtype=bool)
    for loop in re.findall(r"M([^z]+)z", path):
        start, _, steps = loop.partition("l")
        points = np.cumsum([list(map(float, pair)) for pair in _pairs(f"{start} {steps}")], axis=0)
        image = Image.new("1", (width * big, height * big))
        ImageDraw.Draw(image).polygon([tuple(p * big) for p in points], fill=1)
        inside ^= np.array(image)
    return inside[big // 2 :: big, big // 2 :: big]


def _pairs(text: str) -> list[tuple[str, str]]:
    numbers = NUMBER.findall(text)
    return list(zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.5])
def test_an_outline_encloses_its_mask(make_scene, scale):
    scene = make_scene(1, np.random.default_rng(3), instances=8, detections=1, classes=1)
    height = scene.truth.height
    window = Window(20, 10, 160, 130, scale)
    for mask, rle in zip(scene.truth_masks, scene.truth.rles, strict=True):
        piece = mask[10:130, 20:160]
        path = outline(rle, height, window, 9999)
        if not piece.any():
            assert path == ""
            continue
        shown = np.array(Image.fromarray(piece).resize(window.size, Image.Resampling.NEAREST))
        inside = filled(path, *window.size)
        rim = (0.8 + 0.4 * scale) * np.sqrt(4 * np.pi * shown.sum()) + 8
        assert (shown ^ inside).sum() <= rim


def test_holes_and_parts_stay_apart():
    mask = np.zeros((60, 80), bool)
    mask[10:50, 10:50] = True
    mask[20:40, 20:40] = False
    mask[5:15, 60:75] = True
    path = outline(rle_of(mask), 60, Window(0, 0, 80, 60, 1.0), 9999)
    assert path.count("M") == 3
    assert (filled(path, 80, 60) ^ mask).sum() < 12
    assert len(path) < 200  # straight sides are few points
    assert outline(rle_of(np.zeros((60, 80), bool)), 60, Window(0, 0, 80, 60, 1.0), 9999) == ""


@pytest.mark.parametrize("most", [200, 700, 3000])
def test_a_long_outline_is_drawn_more_coarsely_until_it_fits(most):
    rng = np.random.default_rng(0)
    rough = np.zeros((120, 160), bool)
    rough[20:100, 20:140] = True
    rough[16:104, 16:144] |= rng.random((88, 128)) < 0.5
    path = outline(rle_of(rough), 120, Window(0, 0, 160, 120, 3.0), most)
    assert 0 < len(path) <= most
    whole = np.array(Image.fromarray(rough).resize((480, 360), Image.Resampling.NEAREST))
    inside = filled(path, 480, 360)
    assert (whole & inside).sum() / (whole | inside).sum() > 0.8
    speckle = outline(rle_of(rng.random((120, 160)) < 0.5), 120, Window(0, 0, 160, 120, 3.0), most)
    assert 0 < len(speckle) <= most


def test_a_page_with_as_many_pictures_as_allowed_is_under_5_mb(tmp_path, make_scene):
    """Noise, which JPEG cannot make small, and masks that are nothing but edges."""
    rng, images, scenes = np.random.default_rng(0), {}, []
    for i in range(1, 7):
        scene = make_scene(i, rng, instances=3, detections=4, classes=3)
        truth, found = scene.truth, scene.detections
        noisy = [rle_of(rng.random((truth.height, truth.width)) < 0.5) for _ in range(7)]
        scenes.append(replace(scene, truth=replace(truth, rles=noisy[:3]), detections=replace(found, rles=noisy[3:])))
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (truth.height, truth.width, 3), np.uint8)).save(stream, "PNG")
        images[i] = stream.getvalue()
    write_shards(tmp_path / "shards", [s.truth for s in scenes], CATEGORIES, files=1, row_group=3, images=images)
    write_evaluation(tmp_path / "run", tmp_path / "shards", scenes)
    (run,) = open_runs([tmp_path / "run"], [], [], True)
    picks = [p for of in picks_of(read_rows_of(run, False, lambda _: None), 20).values() for p in of]
    number = 3 * MOST_PICTURES
    most = BYTES // number
    few = pictures_of(run, picks[::3], most, lambda _: None)
    assert len(few) >= 8
    assert all(p.found or p.truth for p in few)
    assert all(len(base64.b64decode(p.jpeg)) <= most for p in few)
    page = render([run], Found(pictures={run.name: (few * number)[:number]}, made=program()))
    assert page.count("data:image/jpeg") == number
    assert 2_000_000 < len(page.encode()) < 5_000_000


def test_a_simplified_line_stays_near_and_keeps_its_ends():
    angle = np.linspace(0, 2 * np.pi, 400)
    circle = np.stack([50 * np.cos(angle), 50 * np.sin(angle)], axis=1)
    few = simplified(circle, 0.5)
    assert 8 < len(few) < 60
    assert (few[0] == circle[0]).all()
    assert (few[-1] == circle[-1]).all()
    middle = (few[:-1] + few[1:]) / 2
    assert np.hypot(*middle.T).min() > 49.4


def test_a_picture_has_room_around_its_masks_and_stays_in_the_image(make_scene):
    truth = make_scene(1, np.random.default_rng(5), instances=9, detections=1, classes=1).truth
    for rle, box in zip(truth.rles, truth.boxes, strict=True):
        window = window_around([rle], truth)
        assert 0 <= window.x0 <= box[0]
        assert box[2] <= window.x1 <= truth.width
        assert 0 <= window.y0 <= box[1]
        assert box[3] <= window.y1 <= truth.height
        across, high = window.x1 - window.x0, window.y1 - window.y0
        assert across / high == pytest.approx(ASPECT, rel=0.05) or across == truth.width or high == truth.height


def test_pictures_show_the_image_and_say_what_the_rows_hold(made):
    (run,) = open_runs([made.first], [], [], True)
    picks = [p for of in picks_of(read_rows_of(run, False, lambda _: None), 6).values() for p in of]
    lines: list[str] = []
    pictures = pictures_of(run, picks, 9000, lines.append)
    assert [p.pick for p in pictures] == picks
    scenes = {s.truth.image_id: s for s in made.scenes}
    for shown in pictures:
        pick, facts = shown.pick, dict(shown.facts)
        jpeg = Image.open(io.BytesIO(base64.b64decode(shown.jpeg)))
        assert jpeg.size == (shown.width, shown.height)
        assert len(base64.b64decode(shown.jpeg)) <= 9000
        original = np.asarray(Image.open(io.BytesIO(picture(pick.image_id, 150, 180))).convert("RGB"), float)
        assert abs(np.asarray(jpeg, float).mean() - original.mean()) < 60
        scene = scenes[pick.image_id]
        assert all(f"{value}" in shown.text for value in facts.values())
        assert shown.file == f"{pick.image_id}.jpg"
        if pick.kind == "missed":
            assert shown.truth
            assert facts["area"] == f"{scene.truth_masks[pick.row].sum():,} px"
            continue
        order = np.argsort(-scene.detections.class_scores, kind="stable")
        detection = order[pick.row]
        assert shown.found or not scene.detection_masks[detection].any()
        assert facts["class score"] == f"{scene.detections.class_scores[detection]:.2f}"
        assert facts["predicted MaskIoU"] == f"{scene.detections.maskious[detection]:.2f}"
        same = (scene.truth.categories == scene.detections.categories[detection]) & ~scene.truth.crowd
        masks = scene.truth_masks[same]
        ious = [(m & scene.detection_masks[detection]).sum() / max(1, (m | scene.detection_masks[detection]).sum())
                for m in masks]  # fmt: skip
        assert facts["true MaskIoU"] == f"{max(ious, default=0):.2f}"
        if max(ious, default=0) == 0:
            assert "annotated there" in shown.rest or "overlaps" in shown.rest


def test_a_worth_is_shown_where_it_is_not_the_maskiou(make_scene):
    """The mask score is then the product of two numbers that are there."""
    scene = make_scene(1, np.random.default_rng(0), 4, 6, 3)
    pick = Pick("misled", int(scene.detections.categories[0]), 0, 0, 1, 0, 1.0, 1, 1)
    names = {number: name for number, (_, name) in enumerate(CATEGORIES, start=1)}
    for worths, expected in ((None, None), (scene.detections.maskious, None), (np.full(6, 1.5, np.float32), "1.50")):
        found = replace(scene.detections, worths=worths)
        facts = dict(described(look(pick, scene.truth, found), names)[1])
        assert facts.get("worth") == expected
        assert facts["mask score"] == f"{found.mask_scores[0]:.2f}"
