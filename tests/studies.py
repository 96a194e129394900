"""A small study's plan, and what its seeds might have said, made up."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from msrcnn.data.shapes_config import ShapesConfig
from pipelines.reporting import plain
from pipelines.study_measures import BINS, CLASS, FROZEN, ORACLE, PAPER, ranking
from pipelines.study_plan import FOREGROUND, IDEAS, POWERS, Study
from pipelines.study_results import best_powers, results_of

HEADS = {FOREGROUND: "input=none", "detections": IDEAS["detections"], "worth to AP": IDEAS["worth to AP"],
         "(b)": "input=b", "#2": "target=2"}  # fmt: skip
PLAN = Study(
    "demo", 1, (), 1, (), 1, (), ShapesConfig(12, 8, 96, seed=7), HEADS, HEADS, confirming=(1, 2), counts=(100, 400)
)
DRAWS = 200
ORIGIN = {"time": "2026-11-29 08:15 UTC", "git_commit": "0123456789abcdef", "machine": "2 CPUs", "workers": "1",
          "version/torch": "2.15.0", "data": {"train": "aa", "val": "bb"},
          "weights": {"name": "trunk.pth", "sha256": "c" * 64, "missing": ["backbone.trunk.conv1.weight"]}}  # fmt: skip
LIMITS = ("none", "unmatched", "matched", "the smallest third", "all")


def said(seed: int, draws: int = DRAWS, plan: Study = PLAN) -> dict[str, Any]:
    """What a seed says about a study, with draws around each number."""
    rng = np.random.default_rng(seed)

    def number(low: float, high: float) -> dict[str, Any]:
        value = float(rng.uniform(low, high))
        return {"AP": value, "AP50": 1.4 * value, "AP75": value, "draws": (value + rng.normal(0, 1, draws)).tolist()}

    heads = (PAPER, FROZEN, *plan.confirmed)
    masks = {CLASS: number(20, 21), ORACLE: number(30, 31)}
    masks |= {ranking(head, power): number(22, 28) for head in heads for power in POWERS}
    agreement = {}
    for head in (CLASS, *heads):
        names = [f"{kind}, {which}" for kind in ("pearson", "spearman") for which in ("all", "matched")]
        agreement[head] = dict(zip(names, rng.uniform(0.2, 0.8, 4).tolist(), strict=True))
        agreement[head]["draws"] = (agreement[head]["pearson, all"] + rng.normal(0, 0.05, draws)).tolist()
    return {
        "draws": draws, "images": 8, "detections": 300,
        "masks": {name: value | {f"AP at {n}": value["AP"] + 0.5 for n in plan.counts[1:]}
                  for name, value in masks.items()},
        "others": {"nms": {CLASS: number(18, 19), "mask score": number(19, 20)}, "plain": {CLASS: number(20, 21)}},
        "box": {kind: number(24, 25) for kind in ("paper", "nms", "plain")},
        "agreement": agreement,
        "errors": {head: [{"low": low, "high": high, "count": int(rng.integers(1, 90)),
                           "bias": float(rng.normal(0, 0.2)), "error": float(rng.uniform(0, 0.5))}
                          for low, high in pairwise(BINS)] for head in heads},
        "limits": {head: dict(zip(LIMITS, rng.uniform(22, 31, len(LIMITS)).tolist(), strict=True)) for head in heads},
        "seconds": 140.0, "origin": ORIGIN,
    }  # fmt: skip


def results(plan: Study = PLAN, confirmed: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Of a study, as results.json has them."""
    chosen = [said(seed, DRAWS, plan) for seed in plan.choosing]
    confirmed = confirmed or [said(seed, DRAWS, plan) for seed in plan.confirming]
    found = results_of("quick", plan, chosen, confirmed, best_powers(plan, chosen)) | {
        "command": "msrcnn study quick --out OUT",
        "trunk": plan.described(), "data": {"train": 12, "fit": 10, "choose": 2, "val": 8},
    }  # fmt: skip
    return dict(json.loads(json.dumps(plain(found), allow_nan=False)))
