"""The tables of a study as numbers: means over seeds, deviations, and 95% intervals over images and seeds.

A draw takes as many images as there are, with replacement; all rankings are compared on the same draws, so that
intervals of differences are those of pairs. What seeds scatter is added (`msrcnn.metrics.resampling`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from itertools import combinations
from operator import getitem
from typing import Any

import numpy as np
import numpy.typing as npt

from msrcnn.metrics.resampling import hierarchical
from pipelines.study_measures import CLASS, FROZEN, ORACLE, PAPER, ranking
from pipelines.study_plan import ABLATIONS, FOREGROUND, POWERS, Study

Floats = npt.NDArray[np.float64]
Measured = Mapping[str, Any]
"""What `pipelines.study_measures.measure` says of a seed."""
SEED = 1
"""Of the pairing of seeds' and images' draws."""
PUBLISHED = {
    CLASS: 27.7, PAPER: 29.3, FROZEN: 29.3, "(b)": 29.1, "(c)": 29.1, "(d)": 29.1, "(e)": 28.2, "(f)": 28.9,
    "#2": 24.5, "#3": 28.2, "tau 0.3": 29.2, "tau 0.5": 29.0, "tau 0.7": 28.8,
}  # fmt: skip
"""Mask AP of Tables 4 to 6 by our short names (ResNet-18 FPN, COCO)."""

TABLES = {"Input, Table 4": "(", "Target, Table 5": "#", "tau, Table 6": "tau"}
"""How the rows of each begin in `ABLATIONS`."""


def best_powers(plan: Study, chosen: Sequence[Measured]) -> dict[str, float]:
    """By head, the power of its MaskIoU with the highest mask AP on the images that choose; ties go to power 1.

    That is also every head's where nothing is chosen.
    """

    def ap(head: str, power: float) -> tuple[float, bool]:
        return sum(m["masks"][ranking(head, power)]["AP"] for m in chosen), power == 1.0

    return {head: max(POWERS, key=lambda power: ap(head, power)) for head in (PAPER, FROZEN, *plan.screened)}


def candidates(plan: Study) -> list[str]:
    """The heads beyond the paper's tables that are both screened and confirmed."""
    return [name for name in plan.screened if name in plan.confirmed and name not in (*ABLATIONS, FOREGROUND)]


def best_variant(plan: Study, chosen: Sequence[Measured], powers: Mapping[str, float]) -> str:
    """The candidate with the highest mask AP, each with its power."""
    return max(candidates(plan), key=lambda head: sum(m["masks"][ranking(head, powers[head])]["AP"] for m in chosen))


class Seeds:
    """Numbers of several seeds, each on all images and on the same draws of them."""

    def __init__(self, measured: Sequence[Measured]) -> None:
        """Takes what each seed says, with draws."""
        self.measured = measured

    def summary(self, pick: Callable[[Measured], tuple[float, Floats]]) -> dict[str, Any]:
        """Mean, deviation and interval of a number.

        Args:
            pick: gives of a seed the number on all images, and on each draw [R].
        """
        points, draws = zip(*(pick(m) for m in self.measured), strict=True)
        found = hierarchical(draws, points, SEED)
        deviation = float(np.std(points, ddof=1)) if len(points) > 1 else float("nan")
        return {"mean": found.value, "deviation": deviation, "low": found.low, "high": found.high,
                "seeds": list(points)}  # fmt: skip

    def difference(self, one: str, other: str) -> dict[str, Any]:
        """Mask AP of a ranking less that of another."""
        return self.summary(lambda m: _minus(_masks(m, one), _masks(m, other)))

    def closed(self, name: str) -> dict[str, Any]:
        """The oracle gap closed by a ranking: the mean gain over the mean gap, of seeds and draws alike.

        nan without a gap. A seed's part in the interval is what it adds to that ratio: c + (gain - c gap) / mean gap,
        whose mean over seeds is c. A ratio of each seed's own would weigh seeds with a small gap the most.
        """
        gains, gaps = (
            [_minus(_masks(m, one), _masks(m, CLASS)) for m in self.measured] for one in (name, ORACLE)
        )  # fmt: skip
        points = _parts_of_ratio(*(np.array([point for point, _ in of]) for of in (gains, gaps)))  # [S]
        drawn = _parts_of_ratio(*(np.stack([draws for _, draws in of]) for of in (gains, gaps)))  # [S, R]
        found = hierarchical(list(drawn), points.tolist(), SEED)
        each = [float(_ratio(gain, gap)) for (gain, _), (gap, _) in zip(gains, gaps, strict=True)]
        return {"mean": found.value, "low": found.low, "high": found.high, "seeds": each}


def results_of(
    name: str, plan: Study, chosen: Sequence[Measured], confirmed: Sequence[Measured], powers: Mapping[str, float]
) -> dict[str, Any]:
    """All numbers of the tables, as JSON takes them.

    Args:
        name: of the study.
        plan: it.
        chosen: of the seeds that chose.
        confirmed: of the other seeds.
        powers: those of `best_powers`.
    """
    seeds, variant = Seeds(confirmed), best_variant(plan, chosen, powers)
    best = ranking(variant, powers[variant])
    rivals = dict.fromkeys(ranking(n, p) for n in (PAPER, FROZEN, FOREGROUND) for p in (1.0, powers[n]))
    heads = (CLASS, PAPER, FROZEN, *plan.confirmed)
    beyond = [n for n, text in plan.confirmed.items() if n not in ABLATIONS and "goal=ap" not in text]
    of_maskiou = (PAPER, FROZEN, *beyond)  # what is learnt for AP is no MaskIoU
    return {
        "study": name,
        "seeds": {"choosing": list(plan.choosing), "confirming": list(plan.confirming)},
        "origins": [m["origin"] for m in (*chosen, *confirmed)],
        "minutes": sum(m["seconds"] for m in (*chosen, *confirmed)) / 60,
        "images": confirmed[0]["images"],
        "variant": {"head": variant, "options": plan.confirmed[variant], "power": powers[variant], "ranking": best},
        "candidates": candidates(plan),
        "screened": _rankings(Seeds(chosen), plan, plan.screened, powers) if chosen else {},
        "screened agreement": {head: _agreement(Seeds(chosen), head)
                               for head in (PAPER, FROZEN, *plan.screened) if chosen},
        "rankings": _rankings(seeds, plan, plan.confirmed, powers),
        "best over": {name: seeds.difference(best, name) for name in rivals},
        "pairs": {title: [{"heads": pair, **seeds.difference(*(ranking(head, 1.0) for head in pair))}
                          for pair in combinations([FROZEN, *(h for h in ABLATIONS if h.startswith(signs))], 2)
                          if {*pair} <= {FROZEN, *plan.confirmed}] for title, signs in TABLES.items()},
        "gap": seeds.difference(ORACLE, CLASS),
        "agreement": {head: _agreement(seeds, head) for head in heads},
        "box": _boxes(seeds),
        "others": {f"{kind}, {by}": seeds.summary(_picked("others", kind, by))
                   for kind, of in confirmed[0]["others"].items() for by in of},
        "limits": {head: _means([m["limits"][head] for m in confirmed]) for head in of_maskiou},
        "errors": {head: _errors([m["errors"][head] for m in confirmed]) for head in of_maskiou},
        "published": PUBLISHED,
    }  # fmt: skip


def _rankings(seeds: Seeds, plan: Study, heads: Iterable[str], powers: Mapping[str, float]) -> dict[str, Any]:
    """Each head at power 1 and at its own, class score and oracle."""
    names = dict.fromkeys(n for head in (PAPER, FROZEN, *heads)
                          for n in (ranking(head, 1.0), ranking(head, powers.get(head, 1.0))))  # fmt: skip
    paper = ranking(PAPER, 1.0)
    rows = {n: _row(seeds, plan, n) | {"over paper": seeds.difference(n, paper)} for n in names}
    return rows | {n: _row(seeds, plan, n) for n in (CLASS, ORACLE)}


def _row(seeds: Seeds, plan: Study, name: str) -> dict[str, Any]:
    further = ("AP50", "AP75", *(f"AP at {n}" for n in plan.counts[1:]))
    row = {"AP": seeds.summary(lambda m: _masks(m, name)), "gain": seeds.difference(name, CLASS)}
    row |= {key: {"mean": _mean(m["masks"][name][key] for m in seeds.measured)} for key in further}
    return row if name == CLASS else row | {"closed": seeds.closed(name)}


def _boxes(seeds: Seeds) -> dict[str, Any]:
    kinds = seeds.measured[0]["box"]
    box = {kind: seeds.summary(_picked("box", kind)) for kind in kinds}
    if "plain" in kinds:
        box["difference"] = seeds.summary(lambda m: _minus(_values(m["box"]["paper"]), _values(m["box"]["plain"])))
    return box


def _agreement(seeds: Seeds, head: str) -> dict[str, Any]:
    of = [m["agreement"][head] for m in seeds.measured]
    row: dict[str, Any] = {key: {"mean": _mean(a[key] for a in of)} for key in of[0] if key != "draws"}
    every = seeds.summary(lambda m: (m["agreement"][head]["pearson, all"], np.array(m["agreement"][head]["draws"])))
    every |= {end: float(np.clip(every[end], -1, 1)) for end in ("low", "high")}  # Student's t knows no such bounds
    return row | {"pearson, all": every}


def _errors(of_seeds: Sequence[Sequence[Mapping[str, float]]]) -> list[dict[str, float]]:
    """Bins over all seeds, each seed's weighted by its detections."""
    rows = []
    for bins in zip(*of_seeds, strict=True):
        full = [b for b in bins if b["count"]]
        count = sum(b["count"] for b in full)
        row = {"low": bins[0]["low"], "high": bins[0]["high"], "count": count}
        rows.append(row | {k: sum(b["count"] * b[k] for b in full) / count for k in ("bias", "error") if count})
    return rows


def _means(values: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {key: _mean(v[key] for v in values) for key in values[0]}


def _picked(*path: str) -> Callable[[Measured], tuple[float, Floats]]:
    return lambda measured: _values(reduce(getitem, path, measured))


def _masks(measured: Measured, name: str) -> tuple[float, Floats]:
    return _values(measured["masks"][name])


def _values(of: Mapping[str, Any]) -> tuple[float, Floats]:
    return of["AP"], np.array(of["draws"])


def _minus(one: tuple[float, Floats], other: tuple[float, Floats]) -> tuple[float, Floats]:
    return one[0] - other[0], one[1] - other[1]


def _ratio(gain: npt.ArrayLike, gap: npt.ArrayLike) -> Floats:
    """Gain over gap; nan where there is no gap."""
    gains, gaps = np.asarray(gain, np.float64), np.asarray(gap, np.float64)
    return np.divide(gains, gaps, out=np.full(gains.shape, np.nan), where=gaps != 0)


def _parts_of_ratio(gains: Floats, gaps: Floats) -> Floats:
    """What each seed [S, ...] adds to the mean gain over the mean gap, to which these average."""
    ratio = _ratio(gains.mean(0), gaps.mean(0))
    return ratio + _ratio(gains - ratio * gaps, np.broadcast_to(gaps.mean(0), gaps.shape))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
