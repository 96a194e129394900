"""Evaluations and trainings on disk for `msrcnn report`, made without Ray, and a page as a browser would read it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from msrcnn.config import to_dict
from msrcnn.presets import PRESETS
from pipelines.drawing import tide_of_sample
from pipelines.reporting import Evaluated, plain, report
from pipelines.run_directory import RunRecord, write_record
from pipelines.scoring import categories_of, join, score_part
from pipelines.scoring_options import ReportOptions
from pipelines.storage import locate
from tests.stored_scenes import write_detections, write_shards

CATEGORIES = ((18, "dog"), (44, "bottle"), (62, "chair"))
HOSTILE = (
    (1, "<script>document.title='owned'</script>"),
    (2, '"></svg><img src=x onerror=alert(1)>&amp;'),
    (3, "</script><!-- {{ 7 * 7 }} {% raw %}"),
)
"""Names of categories that would do harm if they were not escaped."""
VOID = {"meta", "br", "img", "input", "link", "image", "path", "use", "rect", "circle"}


def picture(seed: int, height: int, width: int) -> bytes:
    """Smooth noise as JPEG."""
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(stream, "JPEG")
    return stream.getvalue()


def write_data(folder: Path, scenes: Sequence[Any], categories: Sequence[tuple[int, str]] = CATEGORIES) -> Path:
    """FOLDER: the scenes' truth and pictures as shards."""
    images = {s.truth.image_id: picture(s.truth.image_id, s.truth.height, s.truth.width) for s in scenes}
    write_shards(folder, [s.truth for s in scenes], categories, files=2, row_group=3, images=images)
    return folder


def write_evaluation(
    folder: Path, shards: Path, scenes: Sequence[Any], model: str = "", bootstrap: int = 40, model_sha: str = "0" * 64
) -> dict[str, Any]:
    """FOLDER: what an evaluation of the scenes' detections leaves; returns its `summary.json`."""
    from pipelines.manifest import read_manifest

    manifest = read_manifest(shards)
    found = {s.truth.image_id: s.detections for s in scenes}
    groups, stored = write_detections(folder, manifest, found, model_sha)
    scores = join(*(score_part(group, stored.folder, categories_of(manifest)) for group in groups))
    evaluated = Evaluated(manifest, groups, stored)
    made_from = {"model": model} if model else {}
    wanted = ReportOptions(bootstrap=bootstrap, figures=False)
    report(evaluated, scores, wanted, locate(folder), made_from, lambda _: None)
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) | {"tide": plain(tide_of_sample(evaluated, 0))}
    path.write_text(json.dumps(summary))
    return summary


def write_training(folder: Path, records: int = 30, lr: float = 0.08, validated: bool = True) -> Path:
    """FOLDER: what a training leaves, without its models."""
    preset = PRESETS["demo"]
    solver = to_dict(preset.solver) | {"lr": lr}
    settings = {"model": to_dict(preset.model), "solver": solver, "data": to_dict(preset.data),
                "dataset": {"name": "scenes-train", "fingerprint": "f" * 64, "images": 600}}  # fmt: skip
    write_record(locate(folder), RunRecord(settings, "abc", "sqlite:///x.db", {"command": "msrcnn train --run r"}))
    lines: list[dict[str, Any]] = []
    for i in range(1, records + 1):
        terms = {"loss/class": 1 / i, "loss/mask": 2 / i, "loss/maskiou": 0.1 / i}
        terms["loss/total"] = sum(terms.values())
        lines.append({"step": 20 * i, "epoch": i / 10, "time": 1000.0 + 7 * i, **terms, "lr": lr,
                      "images_per_second": 9.0, "data_wait": 0.01, "workers": 2})  # fmt: skip
        if validated and i % 10 == 0:
            scores = {
                "mask_by_class/AP": 0.01 * i,
                "mask_by_mask/AP": 0.011 * i,
                "box/AP": 0.012 * i,
                "gain/AP": 0.001 * i,
            }
            lines.append({"step": 20 * i, "time": 1001.0 + 7 * i, **{f"validation/{k}": v for k, v in scores.items()}})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@dataclass
class Node:
    """An element: its attributes, and what is in it in order."""

    tag: str
    attributes: dict[str, str]
    children: list[Node | str] = field(default_factory=list)

    def all(self, tag: str = "", css: str = "", **attributes: str) -> list[Node]:
        """Every element below with this tag, class and attributes."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                given = {name.strip("_").replace("_", "-"): value for name, value in attributes.items()}
                right = given.items() <= child.attributes.items() and (not tag or child.tag == tag)
                if right and (not css or css in child.attributes.get("class", "").split()):
                    found.append(child)
                found += child.all(tag, css, **attributes)
        return found

    @property
    def text(self) -> str:
        """All text, white space collapsed."""
        return " ".join(" ".join(c.text if isinstance(c, Node) else c for c in self.children).split())

    def rows(self) -> list[list[str]]:
        """Of a table: the texts of its cells."""
        return [[cell.text for cell in row.children if isinstance(cell, Node)] for row in self.all("tr")]


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.root = Node("", {})
        self.open = [self.root]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        while self.open[-1].tag != tag:
            assert self.open[-1].tag in ("li", "option", "p"), f"<{self.open[-1].tag}> is not closed before </{tag}>"
            self.open.pop()
        self.open.pop()

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def read_page(path: Path) -> Node:
    """The page as a tree; fails where elements are not closed in order."""
    reader = _Reader()
    reader.feed(path.read_text())
    assert len(reader.open) == 1
    return reader.root
