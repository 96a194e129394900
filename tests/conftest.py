"""Fixtures for all tests: the real data's folder, one local Ray, random scenes whose masks are known pixel by pixel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from msrcnn.rows import ImageDetections, ImageTruth


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets that MSRCNN_DATA names; tests that need it are skipped without."""
    if not os.environ.get("MSRCNN_DATA"):
        pytest.skip("MSRCNN_DATA is not set")
    return Path(os.environ["MSRCNN_DATA"]).absolute()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray with 2 CPUs for all tests marked `ray`: starting one takes about 10 seconds."""
    from cluster.session import connect

    with connect(address="local", cpus=2):
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """On a busy machine threads that wait for one another cost far more than they bring at this size."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


HEIGHT, WIDTH = 150, 180  # room for COCO's "large", over 96 x 96


@dataclass(frozen=True)
class Scene:
    """One image: the rows under test and, beside them, the boolean masks that they encode."""

    truth: ImageTruth
    detections: ImageDetections
    truth_masks: np.ndarray  # [G, H, W] bool
    detection_masks: np.ndarray  # [D, H, W] bool


def _ellipses(centres: np.ndarray, radii: np.ndarray) -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    dy = (y - centres[:, 0, None, None]) / radii[:, 0, None, None]  # [n, H, W]
    dx = (x - centres[:, 1, None, None]) / radii[:, 1, None, None]
    return dy**2 + dx**2 <= 1


def _boxes(masks: np.ndarray) -> np.ndarray:
    boxes = np.zeros((len(masks), 4), dtype=np.float32)
    for i, mask in enumerate(masks):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        if len(rows):
            boxes[i] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _rles(masks: np.ndarray) -> list[bytes]:
    return [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"] for mask in masks]


def _make_scene(image_id: int, rng: np.random.Generator, instances: int, detections: int, classes: int) -> Scene:
    """Detections are jittered instances, mostly with the right class; scores are coarse, so that they tie."""
    centres = rng.uniform([0, 0], [HEIGHT, WIDTH], (instances, 2))
    radii = np.exp(rng.uniform(np.log(4), np.log(80), (instances, 2)))
    categories = rng.integers(1, classes + 1, instances).astype(np.int32)
    truth_masks = _ellipses(centres, radii)
    if instances:
        source = rng.integers(0, instances, detections)
        jitter = rng.normal(0, 0.15, (2, detections, 2))
        found_centres, found_radii = (
            centres[source] + jitter[0] * radii[source],
            radii[source] * np.exp(jitter[1]),
        )
        wrong = rng.random(detections) < 0.2
        found_categories = np.where(wrong, rng.integers(1, classes + 1, detections), categories[source])
    else:
        found_centres = rng.uniform([0, 0], [HEIGHT, WIDTH], (detections, 2))
        found_radii = rng.uniform(4, 40, (detections, 2))
        found_categories = rng.integers(1, classes + 1, detections)
    detection_masks = _ellipses(found_centres, found_radii)
    truth = ImageTruth(
        image_id=image_id,
        height=HEIGHT,
        width=WIDTH,
        annotation_ids=1000 * (image_id % 1000) + np.arange(1, instances + 1),
        categories=categories,
        boxes=_boxes(truth_masks),
        areas=truth_masks.sum((1, 2)).astype(np.float32),
        crowd=rng.random(instances) < 0.15,
        rles=_rles(truth_masks),
    )
    found = ImageDetections(
        image_id=image_id,
        categories=found_categories.astype(np.int32),
        boxes=_boxes(detection_masks),
        class_scores=rng.integers(1, 21, detections).astype(np.float32) / np.float32(20),
        maskious=rng.integers(-1, 11, detections).astype(np.float32) / np.float32(10),
        rles=_rles(detection_masks),
    )
    return Scene(truth, found, truth_masks, detection_masks)


@pytest.fixture(scope="session")
def make_scene() -> Callable[..., Scene]:
    return _make_scene
