"""Writes docs/results.md and README's table from the studies in docs/results/: `python -m docs.results [OUT ...]`.

Each OUT is the folder of a finished `msrcnn study`, of which results.json and what each seed measured, with every draw,
are taken in first.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msrcnn.errors import InputError
from pipelines.reporting import plain
from pipelines.study import MEASURED, defined
from pipelines.study_measures import CLASS, FROZEN, ORACLE, PAPER
from pipelines.study_plan import CHOOSE, CONFIRM, STUDIES
from pipelines.study_results import best_powers, results_of
from pipelines.study_table import grid, interval, markdown, named, shown

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
STORED = ROOT / "docs" / "results"
ORDER = ("shapes", "nuclei", "coco_sample", "quick")
BETWEEN = re.compile(r"(<!-- results: python -m docs.results -->\n).*?(<!-- end of results -->)", re.DOTALL)
INTRODUCTION = """\
# Results

Is the mask score better than the class score, and what is better still? Written by `python -m docs.results` from the
`results.json` of finished studies in [docs/results/](results), which follow from what each seed measured in its folder
`measured`; [studies.md](studies.md) says how to repeat them.

Read with this in mind: data sets and networks are small enough for a laptop (ResNet-18, some hundred to a thousand
small images), so nothing here is COCO's number. Few seeds make wide intervals. A variant and its powers were chosen on
a part of the training images with a seed of its own, before validation was looked at; all other rows are there to
explain, and were not chosen among on validation.
"""


SECTION = """\
## Does it help?

Several training seeds each, 95% intervals over seeds and images: [docs/results.md](docs/results.md) has all of
it, [docs/studies.md](docs/studies.md) says how to repeat it.
"""


def take(out: Path) -> None:
    """Copies the results of a study into docs/results/.

    Raises:
        InputError: there are none.
    """
    file = out / "results.json"
    if not file.exists():
        raise InputError(f"{file}: not there; finish `msrcnn study` first")
    if not (out / MEASURED).is_dir():
        raise InputError(f"{out / MEASURED}: not there; give `msrcnn study` again, which measures anew what is missing")
    results = json.loads(file.read_text())
    STORED.mkdir(exist_ok=True)
    (STORED / f"{results['study']}.json").write_text(json.dumps(results, indent=1) + "\n")
    seeds = STORED / MEASURED / results["study"]
    shutil.rmtree(seeds, ignore_errors=True)
    shutil.copytree(out / MEASURED, seeds)


def studies() -> Iterator[Mapping[str, Any]]:
    """The results that are stored, in their order."""
    assert set(ORDER) == set(STUDIES)
    for name in ORDER:
        file = STORED / f"{name}.json"
        if file.exists():
            yield json.loads(file.read_text())


def computed(name: str) -> dict[str, Any]:
    """The numbers of a study once more, from what each seed measured."""
    plan, folder = STUDIES[name], STORED / MEASURED / name
    chosen, confirmed = (
        [defined(json.loads((folder / f"{part}-{seed}.json").read_text())) for seed in seeds]
        for part, seeds in ((CHOOSE, plan.choosing), (CONFIRM, plan.confirming))
    )
    return dict(plain(results_of(name, plan, chosen, confirmed, best_powers(plan, chosen))))


def page() -> str:
    """docs/results.md."""
    return "\n".join([INTRODUCTION, *_overview(studies()), *(markdown(results) for results in studies())])


def readme() -> str:
    """README.md with its table, in which `quick` has no place: it shows that all works, not who is right."""
    found = [results for results in studies() if results["study"] != "quick"]
    section = "\n".join([SECTION, *_overview(found)]) if found else ""
    return BETWEEN.sub(lambda found: found[1] + section + found[2], README.read_text())


def _overview(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The studies side by side."""

    def row(results: Mapping[str, Any]) -> list[str]:
        rankings, best = results["rankings"], results["variant"]["ranking"]

        def cell(name: str) -> str:
            closed = interval(rankings[name]["closed"], sign=False)
            return f"{shown(rankings[name]['AP']['mean'], '.1f')}: {closed}"

        paper, frozen = (f"{head}^1" for head in (PAPER, FROZEN))
        seeds = len(results["seeds"]["confirming"])
        return [
            f"{results['study']}, {seeds} seeds", shown(rankings[CLASS]["AP"]["mean"], ".1f"),
            *map(cell, (paper, frozen, best)), shown(rankings[ORACLE]["AP"]["mean"], ".1f"),
            *(interval(results["best over"][name]) for name in (paper, frozen)), named(best),
        ]  # fmt: skip

    titles = [
        "mask AP by ... and share of the oracle gap closed", "class score", "the paper's mask score",
        "the paper's head with the best variant's schedule", "the best variant", "oracle",
        "the best over the paper's", "over that with its schedule", "which is best",
    ]  # fmt: skip
    rows = list(map(row, found))
    yield from grid(titles, rows) if rows else ("No study is stored yet.", "")


def main() -> None:
    """Takes in what is named, then writes both files."""
    for out in sys.argv[1:]:
        take(Path(out))
    PAGE.write_text(page())
    README.write_text(readme())


if __name__ == "__main__":
    main()
