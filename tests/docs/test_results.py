"""docs/results.md and README's table are what the stored results of studies say."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from docs import results
from msrcnn.errors import InputError
from tests import studies


def test_the_page_and_the_readme_are_what_the_results_say() -> None:
    assert results.PAGE.read_text() == results.page(), "the page is old: `python -m docs.results` writes it anew"
    assert results.README.read_text() == results.readme(), "the table is old: `python -m docs.results` writes it anew"


def test_the_readme_has_a_place_for_the_table() -> None:
    assert len(results.BETWEEN.findall(results.README.read_text())) == 1


def test_another_number_changes_page_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "STORED", tmp_path / "stored")
    assert "## nuclei" not in results.page()
    ap = {}
    for name in ("nuclei", "quick"):
        value = finished(tmp_path / "out", name, monkeypatch)
        results.take(tmp_path / "out")
        assert f"## {name}" in results.page()
        ap[name] = value["rankings"]["class score"]["AP"]["mean"]
        assert f"\n| class score | {ap[name]:.2f} ± " in results.page()
    assert f"\n| **nuclei**, 2 seeds |  |  |  |  |  |\n| class score | {ap['nuclei']:.1f} |" in results.readme()
    assert f"\n| **quick**, 2 seeds |  |  |  |  |  |\n| class score | {ap['quick']:.1f} |" in results.page()
    assert "quick**" not in results.readme()
    assert not list((tmp_path / "stored").rglob(".*"))


def finished(out: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What a study with made up numbers leaves in its folder; its results."""
    monkeypatch.setitem(results.STUDIES, name, studies.PLAN)
    seeds = {f"{part}-{seed}": seed for part, of in (("choose", (0,)), ("confirm", (1, 2))) for seed in of}
    shutil.rmtree(out, ignore_errors=True)
    (out / "measured").mkdir(parents=True)
    for file, seed in seeds.items():
        (out / "measured" / f"{file}.json").write_text(json.dumps(studies.said(seed + len(name))))
    value = results.computed(name, out / "measured")
    value |= {key: studies.results()[key] for key in results.BESIDE}
    (out / "results.json").write_text(json.dumps(value))
    return value


@pytest.mark.parametrize("name", [file.stem for file in sorted(results.STORED.glob("*.json"))])
def test_stored_results_follow_from_what_each_seed_measured(name: str) -> None:
    found = json.loads((results.STORED / f"{name}.json").read_text())
    differing = results.differences(results.computed(name, results.STORED / "measured" / name), found)
    assert not differing, f"docs/results/{name}.json is not of docs/results/measured/{name}: {differing[:5]}"


def test_numbers_of_no_seed_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "STORED", tmp_path / "stored")
    value = finished(tmp_path / "out", "nuclei", monkeypatch)
    changed, more = copy.deepcopy(value), copy.deepcopy(value)
    changed["rankings"]["class score"]["AP"]["mean"] += 0.01
    more["rankings"]["(a)^8"] = more["rankings"]["(a)^1"]
    for other, where in ((changed, "rankings/class score/AP/mean"), (more, r"rankings/\(a\)\^8/")):
        (tmp_path / "out" / "results.json").write_text(json.dumps(other))
        with pytest.raises(InputError, match=rf"results.json: does not follow from measured .*{where}.*; give `msrcnn"):
            results.take(tmp_path / "out")
    assert not (tmp_path / "stored").exists()


def test_a_study_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finish `msrcnn study` first"):
        results.take(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(studies.results()))
    with pytest.raises(InputError, match="measured: not there; give `msrcnn study` again"):
        results.take(tmp_path)
