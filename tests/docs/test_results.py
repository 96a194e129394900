"""docs/results.md and README's table are what the stored results of studies say."""

from __future__ import annotations

import functools
import json
import math
import operator
from collections.abc import Iterator
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
    value = studies.results()
    value["rankings"]["class score"]["AP"]["mean"] = 12.346
    (tmp_path / "out" / "measured").mkdir(parents=True)
    monkeypatch.setattr(results, "STORED", tmp_path / "stored")
    assert "## nuclei" not in results.page()
    for name in ("nuclei", "quick"):
        (tmp_path / "out" / "results.json").write_text(json.dumps(value | {"study": name}))
        results.take(tmp_path / "out")
        assert f"## {name}" in results.page()
    assert "12.35 ± " in results.page()
    assert "| nuclei, 2 seeds | 12.3 |" in results.readme()
    assert "| quick, 2 seeds | 12.3 |" in results.page()
    assert "| quick, " not in results.readme()


@pytest.mark.parametrize("name", [file.stem for file in sorted(results.STORED.glob("*.json"))])
def test_stored_results_follow_from_what_each_seed_measured(name: str) -> None:
    found = json.loads((results.STORED / f"{name}.json").read_text())
    again = json.loads(json.dumps(results.computed(name), allow_nan=False))
    assert {*again} == {*found} - {"made", "command", "trunk", "minutes", "data"}
    differing = [path for path, value in leaves(again) if not close(value, at(found, path))]
    assert not differing, f"docs/results/{name}.json is not of docs/results/measured/{name}: {differing[:5]}"


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every number and text with where it is."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(part, (*path, key))
    else:
        yield path, value


def at(value: Any, path: tuple[Any, ...]) -> Any:
    return functools.reduce(operator.getitem, path, value)


def close(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)  # numpy's sums depend on the processor
    return bool(one == other)


def test_a_study_that_is_not_finished_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="finish `msrcnn study` first"):
        results.take(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps(studies.results()))
    with pytest.raises(InputError, match="measured: not there; give `msrcnn study` again"):
        results.take(tmp_path)
