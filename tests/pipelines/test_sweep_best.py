"""The command that a search's report ends with trains what its best trial trained."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from pipelines.sweep_best import best_of
from pipelines.sweep_plan import make_plan
from pipelines.sweep_results import RowResult, TableResult
from pipelines.verbs import parse

WHERE = ["--shards", "my shards/train", "--validation", "val", "--out"]


def search(tmp_path, *arguments):
    """The options of a sweep, its space, and its trials as rows of which the third is the best."""
    config = parse("sweep", [*arguments, *WHERE, str(tmp_path / "out")])
    plan = make_plan(config)
    (planned,) = plan.tables
    aps = [1.0, 2.0, 9.0, *([3.0] * len(planned.rows))]
    rows = [RowResult(s.row.name, values={"AP": (ap,)}, settings=s.settings)
            for s, ap in zip(planned.rows, aps, strict=False)]  # fmt: skip
    return config, plan, planned, TableResult("t", (), "", ("AP",), tuple(rows)).best_first()


@pytest.mark.parametrize("arguments", [
    ["--vary", "solver.lr=0.005,0.01,0.02"],
    ["--vary", "solver.lr=0.005,0.0123", "--vary", "data.flip=true,false", "--preset", "small", "--weights", "none",
     "--gpu", "--images-at-once", "2"],
    ["--vary", "model.selection.method=gaussian,linear,hard", "--seeds", "7", "--solver.epochs", "3",
     "--model.heads", "input=b", "tau=0.3,weight=2", "--weights", "ResNet18_Weights.IMAGENET1K_V1"],
    ["--vary", "preset=r18-fpn,demo,r50-fpn", "--model.maskiou.power", "2"],
    ["--vary", "model.maskiou.tau=0,0.3,0.5", "--model.anchor-sizes.0", "16", "32", "--model.anchor-sizes.1", "64",
     "128"],
    ["hyperparameters", "--samples", "3"],
], ids=lambda a: a[1].partition("=")[0])  # fmt: skip
def test_the_command_trains_what_the_best_trial_trained(tmp_path, arguments):
    config, plan, planned, table = search(tmp_path, *arguments)
    best = best_of(config, planned.space, table)
    words = shlex.split(best.command)
    assert words[:2] == ["msrcnn", "train"]
    ours, theirs = parse("train", words[2:]), plan.trials[planned.rows[2].trials[0]].train
    for name in ("model", "solver", "data", "weights", "gpu", "images_at_once", "workers"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.shards == "my shards/train"
    assert f"AP 9.0, chosen on the images that it was measured on. Its model is in {theirs.run}" in best.text


def test_without_a_number_there_is_no_best(tmp_path):
    config, _, planned, table = search(tmp_path, "--vary", "solver.lr=0.005,0.01,0.02")
    none = replace(table, rows=tuple(replace(row, values={}) for row in table.rows))
    assert best_of(config, planned.space, none) is None
    assert best_of(config, planned.space, replace(table, rows=())) is None
