"""The page as a reader has it: its numbers are the stored ones, and nothing in it can do harm."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from msrcnn.metrics.coco_ap import METRICS
from pipelines.report.command import report
from pipelines.report.numbers import DASH, MINUS
from pipelines.report_options import ReportConfig
from pipelines.storage import locate
from tests.object_store import object_store
from tests.reports import HOSTILE, Node, read_page, write_data, write_evaluation

LIMIT = 5_000_000


def reported(out: Path, *runs: Path, **options) -> Node:
    lines: list[str] = []
    report(ReportConfig(runs, out, **options), lines.append)
    assert lines[-1].startswith("reported in")
    return read_page(out)


def table(page: Node, near: str) -> list[list[str]]:
    """The first table in the section with this id."""
    (section,) = page.all("section", id=near)
    return section.all("table")[0].rows()


def percent(value: float | None) -> str:
    return DASH if value is None or value != value else f"{100 * value:.1f}"


def signed(value: float) -> str:
    return "0.0" if not round(100 * value, 1) else f"{100 * value:+.1f}".replace("-", MINUS)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory) -> Node:
    out = tmp_path_factory.mktemp("page") / "deep" / "report.html"
    tree = reported(out, made.first, gallery=9)
    assert [p.name for p in out.parent.iterdir()] == ["report.html"]
    return tree


def test_the_12_numbers_of_each_ranking_are_the_stored_ones(made, page):
    ap = made.summaries[0]["ap"]
    head, *rows = table(page, "numbers")
    assert head == ["ranked by", *METRICS]
    for row, key in zip(rows, ("box", "mask_by_class", "mask_by_mask", "mask_by_oracle"), strict=False):
        assert row[1:] == [percent(ap[key][metric]) for metric in METRICS]
    paper = {row[0]: row[1:4] for row in rows[4:]}
    assert paper["paper, R18-FPN: masks, MS R-CNN"] == ["29.3", "46.9", "31.3"]
    assert paper["paper, R18-FPN: masks, Mask R-CNN"] == ["27.7", "46.9", "29.0"]
    assert paper["paper, R18-FPN: masks, oracle"][0] == "31.5"


def test_thresholds_are_the_stored_ones(made, page):
    (found,) = page.all("table", css="thresholds")
    head, *rows = found.rows()
    assert head == ["cut by", *(f"from {score} on" for score in (0.1, 0.3, 0.5, 0.7, 0.9)), "highest F1"]
    stored = made.summaries[0]["thresholds"]
    assert [row[0] for row in rows] == [f"{of['ranking']} score, IoU {of['iou']:g}" for of in stored]
    for row, of in zip(rows, stored, strict=True):
        kept = {k["score"]: k for k in of["grid"]}
        assert row[3] == f"{percent(kept[0.5]['precision'])} / {percent(kept[0.5]['recall'])}"
        assert row[6] == f"{percent(of['best']['f1'])} from {of['best']['score']:.3f} on"


def test_the_headline_is_the_stored_one(made, page):
    summary = made.summaries[0]
    values = {tile.all(css="name")[0].text: tile.all(css="value")[0].text for tile in page.all("li", css="tile")}
    assert values == {
        "Mask AP": percent(summary["ap"]["mask_by_mask"]["AP"]),
        "Gain by mask score": signed(summary["ap"]["gain"]),
        "Oracle gap closed": f"{100 * summary['ap']['oracle_gap_closed']:.0f}%".replace("-", MINUS),
        "Correlation": f"{summary['maskiou']['all_detections']['maskiou_pearson']:.2f}",
        "Box AP": percent(summary["ap"]["box"]["AP"]),
    }
    low, high = summary["ap"]["gain_interval"]
    assert f"95% interval {signed(low)} to {signed(high)}" in page.text
    assert "The paper's numbers are of COCO val2017, these of other data" in page.text


def test_the_category_table_has_every_category_with_its_instances(made, page):
    head, *rows = table(page, "categories")
    assert head == ["category", "instances", "AP by class score", "AP by mask score", "AP by oracle", "gain"]
    truths = [s.truth for s in made.scenes]
    for row, category in zip(rows, made.summaries[0]["ap"]["per_category"], strict=True):
        count = sum(int(((t.categories == category["number"]) & ~t.crowd).sum()) for t in truths)
        scores = [category[key] for key in ("by_class", "by_mask", "by_oracle")]
        assert row == [category["name"], str(count), *map(percent, scores), signed(scores[1] - scores[0])]
    (sortable,) = page.all("table", css="sortable")
    assert all(th.all("button") and th.attributes["aria-sort"] == "none" for th in sortable.all("th", scope="col"))


def test_figures_carry_their_numbers(made, page):
    summary = made.summaries[0]
    figures = {f.all("h3")[0].text: f for f in page.all("figure", css="figure")}
    bins = figures["Does the score follow the quality of the mask?"].all("table")[0].rows()[1:]
    for row, b in zip(bins, summary["bins"], strict=True):
        assert row[1] == f"{b['count']:,}"
        assert row[3] == (DASH if b["mask_score"] is None else f"{b['mask_score']:.3f}")
    lost = figures["What is AP50 lost to?"].all("table")[0].rows()[1:]
    assert [r[2] for r in lost] == [f"{100 * v:.1f}" for v in summary["tide"]["by_mask"].values()]
    assert "AP 100.0" not in figures["A mask is right from IoU 0.5 on"].text
    assert f"by mask score: AP {100 * summary['ap']['mask_by_mask']['AP50']:.1f}" in page.text
    assert f"by the oracle: AP {100 * summary['ap']['mask_by_oracle']['AP75']:.1f}" in page.text
    assert sum(count for *_, count in summary["density"]["counts"]) == summary["detections"]
    assert "loss 3.1 to 0.1033" in figures["Loss: total"].text
    assert "mask AP by mask score 11 to 33" in figures["Validation"].text
    for svg in page.all("svg"):
        assert svg.attributes["role"] == "img"
        assert svg.attributes["aria-label"]


def test_the_gallery_says_in_words_what_it_shows(page):
    pictures = page.all("li", css="picture")
    assert {p.attributes["data-kind"] for p in pictures} == {"rescued", "misled", "missed"}
    assert all(len([p for p in pictures if p.attributes["data-kind"] == kind]) <= 9 for kind in ("rescued", "misled"))
    for picture in pictures:
        words = picture.all("svg")[0].attributes["aria-label"]
        for value in picture.all("dd"):
            assert value.text in words
        assert picture.all("span", css="file")[0].text in words
        assert picture.all("image")[0].attributes["href"].startswith("data:image/jpeg;base64,")


def test_origin_names_data_model_program_and_command(made, page):
    (origin,) = page.all("section", id="origin")
    facts = {d.all("dt")[0].text: d.all("dd")[0].text for d in origin.all("dl")[0].all("div")}
    assert facts["fingerprint of the shards"] == made.summaries[0]["shards"]
    assert facts["images"] == "13"
    assert "msrcnn train --run r" in origin.text
    assert "solver.lr" in origin.text
    assert re.search(r"torch \d", origin.text)


def assert_harmless(path: Path) -> None:
    """Loads nothing, runs nothing but its own script, and is not large."""
    text = path.read_text()
    assert len(text) < LIMIT
    page = read_page(path)
    assert len(page.all("script")) == 1
    for node in page.all():
        for name, value in node.attributes.items():
            assert not name.startswith("on"), (node.tag, name)
            if name in ("src", "href", "srcset", "action", "poster", "data"):
                assert value.startswith(("#", "data:image/jpeg;base64,")), (node.tag, name, value[:80])
            assert name != "style"
    assert not page.all("link") + page.all("iframe") + page.all("base")
    (style,) = page.all("style")
    assert "url(" not in style.text
    assert "@import" not in style.text
    assert not re.search(r"\bfetch\(|XMLHttpRequest|import\(|WebSocket|innerHTML|eval\(", page.all("script")[0].text)
    assert "default-src 'none'" in page.all("meta", http_equiv="Content-Security-Policy")[0].attributes["content"]


def test_names_from_data_do_nothing(tmp_path, make_scene):
    scenes = [make_scene(i, np.random.default_rng(i), 5, 9, 3) for i in range(1, 5)]
    shards = write_data(tmp_path / "shards", scenes, HOSTILE)
    folder = tmp_path / "<b>&'\"run"
    write_evaluation(folder, shards, scenes)
    page = reported(tmp_path / "report.html", folder)
    assert_harmless(tmp_path / "report.html")
    assert [row[0] for row in table(page, "categories")[1:]] == [name for _, name in HOSTILE]
    assert {o.text for o in page.all("select", id="gallery-category")[0].all("option")} >= {HOSTILE[0][1]}
    assert page.all("title")[0].text == "scenes: <b>&'\"run"
    assert "49" not in page.all("select", id="gallery-category")[0].text


def test_categories_of_one_name_stay_apart(tmp_path, make_scene):
    scenes = [make_scene(i, np.random.default_rng(i), 5, 9, 3) for i in range(1, 7)]
    shards = write_data(tmp_path / "shards", scenes, ((18, "dog"), (44, "dog"), (62, "chair")))
    summary = write_evaluation(tmp_path / "run", shards, scenes)
    page = reported(tmp_path / "report.html", tmp_path / "run")
    rows = table(page, "categories")[1:]
    labels = ["dog (number 1)", "dog (number 2)", "chair"]
    assert [row[0] for row in rows] == labels
    for row, category in zip(rows, summary["ap"]["per_category"], strict=True):
        truths = [s.truth for s in scenes]
        assert row[1] == str(sum(int(((t.categories == category["number"]) & ~t.crowd).sum()) for t in truths))
        assert row[3] == percent(category["by_mask"])
    options = page.all("select", id="gallery-category")[0].all("option")[1:]
    assert sorted(o.text for o in options) == sorted(labels)
    of_value = {o.attributes["value"]: o.text for o in options}
    assert len(of_value) == 3
    for shown in page.all("li", css="picture"):
        assert of_value[shown.attributes["data-category"]] == shown.all("strong")[0].text


def test_the_page_loads_nothing(made, tmp_path):
    reported(tmp_path / "report.html", made.first, made.second, bootstrap=0)
    assert_harmless(tmp_path / "report.html")


def test_what_there_is_nothing_of(tmp_path, make_scene):
    """No instance, no detection, or neither: no number, and a page all the same."""
    for name, instances, detections in (("no-truth", 0, 4), ("no-detections", 4, 0), ("nothing", 0, 0)):
        scenes = [make_scene(i, np.random.default_rng(i), instances, detections, 3) for i in range(1, 4)]
        shards = write_data(tmp_path / f"shards-{name}", scenes)
        write_evaluation(tmp_path / name, shards, scenes)
        page = reported(tmp_path / f"{name}.html", tmp_path / name)
        assert page.all("section", id="categories")
        kinds = {p.attributes["data-kind"] for p in page.all("li", css="picture")}
        assert kinds == {"no-truth": {"misled"}, "no-detections": {"missed"}, "nothing": set()}[name]
        if name != "no-detections":
            assert page.all("li", css="tile")[0].all(css="value")[0].text == DASH
        assert "nan" not in page.text.replace("<b>", "").lower().split()


def test_further_heads_have_a_line_each(made, tmp_path):
    copy = tmp_path / "heads"
    copy.mkdir()
    summary = made.summaries[0] | {"heads": {"input=b": made.summaries[1]}}
    (copy / "summary.json").write_text(json.dumps(summary))
    rows = table(reported(tmp_path / "report.html", copy, gallery=0), "numbers")
    expected = [percent(made.summaries[1]["ap"]["mask_by_mask"][metric]) for metric in METRICS]
    assert ["masks, mask score of head input=b", *expected] in rows


def test_behind_urls(made):
    with object_store() as url:
        place = locate(url.format("first"))
        for name in ("summary.json", *(f"detections/{p.name}" for p in (made.first / "detections").iterdir())):
            (place / name).parent.make_folder()
            (place / name).write((made.first / name).read_bytes())
        report(ReportConfig((url.format("first"),), url.format("out/report.html"), gallery=3), lambda _: None)
        text = locate(url.format("out/report.html")).read().decode()
    assert "word@" not in text
    assert percent(made.summaries[0]["ap"]["mask_by_mask"]["AP"]) in text


def test_a_training_alone_has_its_curves_and_last_validation(made, tmp_path):
    page = reported(tmp_path / "report.html", made.training)
    values = {tile.all(css="name")[0].text: tile.all(css="value")[0].text for tile in page.all("li", css="tile")}
    assert values["Mask AP"] == "33.0"
    assert "Loss: MaskIoU" in page.text
    assert not page.all("section", id="gallery")
    assert json.loads((made.training / "run.json").read_text())["mlflow_run"] in page.text
