"""Writes docs/results.md and README's table from the studies in docs/results/: `python -m docs.results [OUT ...]`.

Each OUT is the folder of a finished `msrcnn study`, of which results.json and what each seed measured, with every draw,
are taken in first.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from msrcnn.errors import InputError
from pipelines.reporting import plain
from pipelines.storage import locate
from pipelines.study import MEASURED, defined
from pipelines.study_measures import CLASS, FROZEN, ORACLE, PAPER
from pipelines.study_plan import CHOOSE, CONFIRM, STUDIES
from pipelines.study_results import best_powers, results_of
from pipelines.study_table import grid, interval, markdown, named, shown

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "docs" / "results.md", ROOT / "README.md"
STORED = ROOT / "docs" / "results"
QUICK = "quick"
ORDER = (*(name for name in STUDIES if name != QUICK), QUICK)
BESIDE = ("command", "trunk", "data")
"""What stands in results.json besides what the seeds measured."""
BETWEEN = re.compile(r"(<!-- results: python -m docs.results -->\n).*?(<!-- end of results -->)", re.DOTALL)
INTRODUCTION = """\
# Results

Is the mask score better than the class score, and what is better still? Written by `python -m docs.results` from the
`results.json` of finished studies in [docs/results/](results), which follow from what each seed measured in its folder
`measured`; [studies.md](studies.md) says how to repeat them.

Read with this in mind: data sets and networks are small enough for a laptop (ResNet-18, some hundred to a thousand
small images), so nothing here is COCO's number. Few seeds make wide intervals. A variant and its powers were chosen on
a part of the training images with a seed of its own, before validation was looked at; in `quick` nothing is chosen.
A study is there for one comparison: the chosen variant against the paper's head of the same schedule. All other rows
are there to explain; each interval stands for itself, so that of twenty without a difference about one excludes 0.
"""


SECTION = """\
## Does it help?

Mask AP by what masks are ranked by, mean over several training seeds with 95% intervals over images and seeds. The
oracle knows each mask's true IoU: what it gains over the class score is the gap that a head may close. The paper's head
learns beside its trunk; all others, the paper's once more among them, on that finished trunk for longer, and rank the
same masks. In bold what was chosen on held-out training images. [docs/results.md](docs/results.md) has all of it,
[docs/studies.md](docs/studies.md) says how to repeat it.
"""


def take(out: Path) -> None:
    """Copies the results of a study into docs/results/.

    Raises:
        InputError: there are none, or they are not what its seeds measured by the present plan.
    """
    file = out / "results.json"
    if not file.exists():
        raise InputError(f"{file}: not there; finish `msrcnn study` first")
    if not (out / MEASURED).is_dir():
        raise InputError(f"{out / MEASURED}: not there; give `msrcnn study` again, which measures anew what is missing")
    results = json.loads(file.read_text())
    name = results["study"]
    if differing := differences(computed(name, out / MEASURED), results):
        raise InputError(f"{file}: does not follow from {MEASURED} by the present plan of {name} ({differing[0]}); "
                         "give `msrcnn study` again")  # fmt: skip
    (STORED / MEASURED).mkdir(parents=True, exist_ok=True)
    seeds, aside = STORED / MEASURED / name, STORED / MEASURED / f".{name}"
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(out / MEASURED, aside)
    shutil.rmtree(seeds, ignore_errors=True)
    aside.rename(seeds)
    locate(STORED / f"{name}.json").write((json.dumps(results, indent=1) + "\n").encode())


def studies() -> Iterator[Mapping[str, Any]]:
    """The results that are stored, in their order."""
    assert set(ORDER) == set(STUDIES)
    for name in ORDER:
        file = STORED / f"{name}.json"
        if file.exists():
            yield json.loads(file.read_text())


def computed(name: str, folder: Path) -> dict[str, Any]:
    """The numbers of a study once more, from the folder of what each seed measured."""
    plan = STUDIES[name]
    chosen, confirmed = (
        [defined(json.loads((folder / f"{part}-{seed}.json").read_text())) for seed in seeds]
        for part, seeds in ((CHOOSE, plan.choosing), (CONFIRM, plan.confirming))
    )
    return dict(plain(results_of(name, plan, chosen, confirmed, best_powers(plan, chosen))))


def differences(one: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """Where stored results are not those of `computed`, by path; numpy's sums may depend on the processor."""

    def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict | list):
            for key, part in value.items() if isinstance(value, dict) else enumerate(value):
                yield from leaves(part, f"{path}/{key}")
        else:
            yield path, value

    def close(left: Any, right: Any) -> bool:
        if isinstance(left, float) and isinstance(right, float):
            return math.isclose(left, right, rel_tol=1e-6, abs_tol=1e-9)
        return bool(left == right)

    ours = dict(leaves(json.loads(json.dumps(one, allow_nan=False))))
    theirs = dict(leaves({name: value for name, value in stored.items() if name not in BESIDE}))
    return sorted(path for path in ours | theirs if not close(ours.get(path, ""), theirs.get(path, "")))


def page() -> str:
    """docs/results.md."""
    return "\n".join([INTRODUCTION, *_overview(studies()), *(markdown(results) for results in studies())])


def readme() -> str:
    """README.md with its table, in which `quick` has no place: it shows that all works, not who is right."""
    found = [results for results in studies() if results["study"] != QUICK]
    section = "\n".join([SECTION, *_overview(found)]) if found else ""
    return BETWEEN.sub(lambda found: found[1] + section + found[2], README.read_text())


def _overview(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The studies one below the other, a row for each ranking that matters most."""
    rows: list[list[str]] = []
    lines: list[str] = []
    for results in found:
        rankings, best = results["rankings"], results["variant"]["ranking"]
        rows.append([f"**{results['study']}**, {len(results['seeds']['confirming'])} seeds", "", "", ""])
        for name in (CLASS, f"{PAPER}^1", f"{FROZEN}^1", best, ORACLE):
            of = rankings[name]
            gain = "" if name == CLASS else interval(of["gain"])
            closed = "" if name in (CLASS, ORACLE) else interval(of["closed"], sign=False)
            label = f"**{named(name)}**" if name == best else named(name)
            rows.append([label, shown(of["AP"]["mean"], ".1f"), gain, closed])
        over = results["best over"]
        frozen, paper = (interval(over[f"{head}^1"]) for head in (FROZEN, PAPER))
        lines.append(f"- {results['study']}: {named(best)} is {frozen} AP over the paper's head of the same schedule, "
                     f"{paper} over the paper's head that trained with the trunk.")  # fmt: skip
    titles = ["masks ranked by", "mask AP", "gain over class score", "oracle gap closed"]
    if not rows:
        yield from ("No study is stored yet.", "")
        return
    yield from (*grid(titles, rows), *lines, "")


def main() -> None:
    """Takes in what is named, then writes both files."""
    for out in sys.argv[1:]:
        take(Path(out))
    PAGE.write_text(page())
    README.write_text(readme())


if __name__ == "__main__":
    main()
