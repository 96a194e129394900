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
from pipelines.study_plan import CHOOSE, CONFIRM, FOREGROUND, STUDIES
from pipelines.study_results import best_powers, results_of
from pipelines.study_table import PAPER_CLOSES, closes, has_gap, interval, markdown, named, shown
from pipelines.text_tables import markdown_table

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
`measured`; [studies.md](studies.md) says what is compared, how to repeat it, and what the numbers cannot say.

Read with this in mind: data sets and networks are small enough for a laptop (ResNet-18, some hundred to a thousand
small images), and trained for some hundred steps by a recipe of that size, so nothing here is COCO's number. Few seeds
make wide intervals. A variant and its powers were chosen on a part of the training images with a seed of its own,
before the validation images of that data set were looked at; in `quick` nothing is chosen. Each study makes one
comparison: the chosen variant with the paper's head of the same schedule. All other rows only explain; no interval is
corrected for the number of rows, so of twenty rows without a difference about one has an interval that excludes 0.

{words}"""


METHOD = "method.md#beyond-the-paper"
WORDS = """\
The **oracle** knows each mask's true IoU (the paper's Table 7): what it gains over the class score is the gap that a
predicted MaskIoU may close. The **paper's head** trains together with its trunk. All other heads, the paper's once more
among them, train for longer on that finished trunk, and rank the same masks. **Mean foreground probability** learns
nothing: it is the mean of p over a mask's pixels with p > 0.5, used in place of a predicted MaskIoU. **Worth to AP** is
not a MaskIoU: from predicted MaskIoU, class score, mask, size and overlap with better detections, a small network
predicts the share of COCO's thresholds at which a detection counts, and masks are ranked by class score x worth^power
([the method]({method})).
So it also pushes duplicates down, which an oracle of MaskIoU cannot do, and its AP50 may exceed the oracle's: its gain
is compared with the oracle's gap, but is not wholly a part of it. The rows in bold were fixed before the validation
images were looked at.
"""
SECTION = """\
## Does it help?

Mask AP under each ranking, the mean over several training seeds, with 95% intervals over images and seeds. The data
sets are small, the network is a ResNet-18 and the recipe a laptop's, so nothing here is COCO's number.
[docs/results.md](docs/results.md) has everything, [docs/studies.md](docs/studies.md) says how to repeat it.

{words}"""


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
    locate(STORED / f"{name}.json").write_json(results)


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
    introduction = INTRODUCTION.format(words=WORDS.format(method=METHOD))
    return "\n".join([introduction, *_overview(studies()), *(markdown(results) for results in studies())])


def readme() -> str:
    """README.md with its table of the studies that say who is right: not `quick`; in words where there is no gap."""
    found = [results for results in studies() if results["study"] != QUICK]
    telling = [results for results in found if has_gap(results["rankings"])]
    silent = [line for results in found if results not in telling for line in (*_said(results), "")]
    introduction = SECTION.format(words=WORDS.format(method=f"docs/{METHOD}"))
    section = "\n".join([introduction, *_overview(telling), *silent]) if found else ""
    return BETWEEN.sub(lambda found: found[1] + section + found[2], README.read_text())


def _overview(found: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """The studies one below the other, a row for each ranking that matters most."""
    rows: list[list[str]] = []
    lines: list[str] = []
    for results in found:
        rankings, best = results["rankings"], results["variant"]["ranking"]
        rows.append([f"**{results['study']}**, {len(results['seeds']['confirming'])} seeds", *[""] * 5])
        for name in (CLASS, f"{FOREGROUND}^1", f"{PAPER}^1", f"{FROZEN}^1", best, ORACLE):
            of = rankings[name]
            gain = "" if name == CLASS else interval(of["gain"])
            closed = "" if name in (CLASS, ORACLE) else closes(rankings, name)
            label = f"**{named(name)}**" if name == best else named(name)
            rows.append([label, *(shown(of[key]["mean"], ".1f") for key in ("AP", "AP50", "AP75")), gain, closed])
        lines += _said(results)
    titles = ["masks ranked by", "mask AP", "AP50", "AP75", "gain over class score", "oracle gap closed"]
    if not rows:
        yield from ("No study is stored yet.", "")
        return
    yield from (*markdown_table(titles, rows), *lines, "")


def _said(results: Mapping[str, Any]) -> Iterator[str]:
    """What a study says of the paper's head, and of the best."""
    study, rankings, best, over = (results[key] for key in ("study", "rankings", "variant", "best over"))
    best = best["ranking"]
    if not has_gap(rankings):
        yield (
            f"- {study}: by class score mask AP is {shown(rankings[CLASS]['AP']['mean'])}, and what the oracle gains, "
            f"{interval(rankings[ORACLE]['gain'])}, may be nothing: such a detector says nothing about rankings."
        )
        return
    paper, frozen = (rankings[f"{head}^1"]["closed"] for head in (PAPER, FROZEN))
    missed = all(closed["high"] is not None and closed["high"] < PAPER_CLOSES for closed in (paper, frozen))
    yield (
        f"- {study}: the paper's head closes {interval(paper, sign=False)} of the gap, "
        f"{interval(frozen, sign=False)} with the schedule of the others"
        f"{', below' if missed else '; compare'} the {PAPER_CLOSES} that the paper's ResNet-18 reaches on COCO."
    )
    by = {head: interval(over[f"{head}^1"]) for head in (FROZEN, PAPER, FOREGROUND)}
    yield (
        f"- {study}: {named(best)} is {by[FROZEN]} AP over the paper's head of the same schedule, {by[PAPER]} over "
        f"the paper's head that trained with the trunk, and {by[FOREGROUND]} over mean foreground probability."
    )


def main() -> None:
    """Takes in what is named, then writes both files."""
    for out in sys.argv[1:]:
        take(Path(out))
    PAGE.write_text(page())
    README.write_text(readme())


if __name__ == "__main__":
    main()
