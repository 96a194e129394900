"""docs/results.md and README's table are what the stored results of studies say."""

from __future__ import annotations

import json
from pathlib import Path

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
    value = studies.results()
    value["rankings"]["class score"]["AP"]["mean"] = 12.346
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "results.json").write_text(json.dumps(value))
    monkeypatch.setattr(results, "STORED", tmp_path / "stored")
    assert "## quick" not in results.page()
    results.take(tmp_path / "out")
    assert "## quick" in results.page()
    assert "12.35 ± " in results.page()
    assert "| 12.3 |" in results.readme()


def test_a_study_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finish `msrcnn study` first"):
        results.take(tmp_path)
