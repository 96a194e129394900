"""`msrcnn study`: its options and folder, and a tiny study from shapes to tables, interrupted on the way."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from msrcnn.config import DataConfig, SolverConfig
from msrcnn.errors import InputError
from msrcnn.presets import PRESETS, Preset
from pipelines.reporting import plain
from pipelines.study import Part, check_folder, measured, stages_of, study
from pipelines.study_data import StudyShards
from pipelines.study_options import StudyConfig
from pipelines.study_plan import ABLATIONS, CHOOSE, CONFIRM, FOREGROUND, STUDIES
from pipelines.verbs import parse
from tests.studies import DRAWS, PLAN, said
from tests.training_runs import SIZE, SMALL

TINY = replace(PLAN, preset="tiny", counts=(20, 50))


@pytest.mark.parametrize(("arguments", "says"), [
    (["nuclei", "--out", "o"], "--data = None is not accepted; it must be a folder: nuclei does not make its own data"),
    (["shapes", "--out", "o", "--data", "d"], "--data = .d. is not accepted; it must be absent: shapes makes its own"),
    (["quick", "--out", "o", "--draws", "99"], "--draws = 99 is not accepted; it must be at least 100"),
    (["quick", "--out", "o", "--workers", "0"], "--workers = '0' is not accepted"),
    (["quik", "--out", "o"], "quik"),
])  # fmt: skip
def test_options_that_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        parse("study", arguments)


def test_options():
    bare = parse("study", ["quick", "--out", "studies/quick"])
    assert (bare.name, bare.out, bare.draws, bare.gpu) == ("quick", Path("studies/quick"), 1000, False)
    given = parse("study", ["coco_sample", "--out", "o", "--data", "coco", "--weights", "w.pt", "--gpu"])
    assert (given.data, given.weights, given.gpu) == (Path("coco"), "w.pt", True)


@pytest.mark.parametrize("name", STUDIES)
def test_plans_are_of_configurations_that_there_are(name):
    """Every head is one, no two are the same; no seed both chooses and confirms; a variant can be chosen."""
    plan = STUDIES[name]
    for part in (CHOOSE, CONFIRM):
        assert len(plan.model(part, "heads").heads) == len(plan.heads(part))
        assert (plan.model(part, "heads").trained, plan.model(part, "plain").maskiou.enabled) == ("maskiou", False)
        assert FOREGROUND in plan.heads(part)
    assert not {*plan.choosing} & {*plan.confirming}
    assert {*plan.screened} & {*plan.confirmed} - {*ABLATIONS, FOREGROUND}
    assert all(plan.confirmed[name] == text for name, text in plan.screened.items() if name in plan.confirmed)
    for part, heads in ((CHOOSE, plan.head_epochs), (CONFIRM, plan.final_epochs)):
        for kind, epochs in (("paper", plan.epochs), ("heads", heads)):
            solver = plan.solver(part, kind, 5)
            assert (solver.epochs, solver.seed) == (epochs, 5)
            assert all(epoch < epochs for epoch in solver.decay_epochs)
    names = [stage.name for stage in stages_of(plan)]
    assert len(names) == len({*names}) == 2 * len(plan.choosing) + (4 if plan.baselines else 2) * len(plan.confirming)
    assert all(names.index(n) > names.index(n.replace("heads", "paper")) for n in names if n.endswith("heads"))


def test_a_folder_belongs_to_one_study(tmp_path):
    config, plan = StudyConfig("nuclei", tmp_path / "o", data=tmp_path, weights="w.pt"), STUDIES["nuclei"]
    check_folder(config, plan)
    check_folder(config, plan)
    check_folder(replace(config, draws=200, tracking="http://t", address="ray://h"), plan)  # which train no other heads
    other_plan = replace(plan, confirming=(1, 2))
    for other, of in ((replace(config, weights=None), plan), (replace(config, data=tmp_path / "d"), plan),
                      (replace(config, name="coco_sample"), STUDIES["coco_sample"]), (config, other_plan),
                      (replace(config, workers="2"), plan), (replace(config, gpu=True), plan)):  # fmt: skip
        with pytest.raises(InputError, match="holds another study, or this one with other settings") as error:
            check_folder(other, of)
        assert "\n" not in str(error.value)


def test_a_folder_with_something_else_is_refused(tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(InputError, match="neither empty nor the folder of a study; choose another --out"):
        check_folder(StudyConfig("quick", tmp_path), PLAN)
    assert [path.name for path in tmp_path.iterdir()] == ["photo.jpg"]


def test_what_a_seed_said_is_taken_as_it_is_but_for_other_data_or_weights(tmp_path, monkeypatch):
    config, part, shards = StudyConfig("quick", tmp_path, draws=DRAWS), Part(CONFIRM, 1), StudyShards(*[tmp_path] * 4)
    now = {"data": {"train": "aa", "val": "bb"}, "weights": None, "time": "today"}
    monkeypatch.setattr("pipelines.study.origin_of", lambda *_: now)
    value = said(1) | {"origin": {**now, "time": "yesterday"}}
    value["agreement"]["paper"]["pearson, all"] = math.nan  # as where nothing was detected
    (tmp_path / "measured").mkdir()
    (tmp_path / "measured" / "confirm-1.json").write_text(json.dumps(plain(value)))
    found = measured(config, PLAN, part, shards, None, pytest.fail)
    assert math.isnan(found["agreement"]["paper"]["pearson, all"])
    assert found["masks"] == value["masks"]
    assert found["origin"]["time"] == "yesterday"
    for name, other in (("weights", {"name": "w.pth"}), ("data", {"train": "aa", "val": "cc"})):
        held = now[name]
        now[name] = other
        for draws in (DRAWS, DRAWS + 100):
            with pytest.raises(
                InputError, match=f"confirm-1.json: made with other {name} than are given; choose anoth"
            ):
                measured(replace(config, draws=draws), PLAN, part, shards, None, pytest.fail)
        now[name] = held


class Stop(Exception):
    """In the place of a kill."""


def study_until(config: StudyConfig, begins: str, says: str) -> list[str]:
    """What a study says up to and with the line of the stage [NUMBER/ that has these words."""
    lines: list[str] = []

    def log(line: str) -> None:
        lines.append(line)
        if begins in line and says in line:
            raise Stop

    with pytest.raises(Stop):
        study(config, log)
    return lines


@pytest.fixture
def tiny(monkeypatch):
    """quick, with a model and images of the smallest size."""
    solver = SolverConfig(epochs=1, batch=4, lr=0.04, warmup_steps=2, clip_norm=10.0)
    monkeypatch.setitem(PRESETS, "tiny", Preset(SMALL, solver, DataConfig(SIZE, SIZE)))
    monkeypatch.setitem(STUDIES, "quick", TINY)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "tiny")
def test_a_study_from_shapes_to_tables(tmp_path: Path) -> None:
    out = tmp_path / "out"
    config = StudyConfig("quick", out, draws=100)
    first = study_until(config, "[2/10]", "")  # when the first stage is done
    assert any("[1/10] choose-0-paper: evaluated" in line for line in first)
    second = study_until(config, "[4/10]", "detected in")  # in an evaluation
    assert not any("[1/10]" in line or "shards in" in line for line in second)
    detected = (out / "evaluations/confirm-1-heads/detections").stat().st_mtime_ns
    lines: list[str] = []
    study(config, lines.append)
    assert not any(f"[{number}/10]" in line for number in (1, 2, 3) for line in lines)
    assert any("[4/10]" in line and "already trained" in line for line in lines)
    assert (out / "evaluations/confirm-1-heads/detections").stat().st_mtime_ns == detected
    results = json.loads((out / "results.json").read_text(), parse_constant=pytest.fail)
    assert results["data"] == {"train": 12, "fit": 10, "choose": 2, "val": 8}
    assert results["rankings"]["class score"]["AP"]["seeds"] != [None, None]
    check_against_evaluations(out, results)
    text = (out / "results.md").read_text()
    assert "nan" not in text
    assert text in lines
    check_again(config, results)


def check_against_evaluations(out: Path, results: dict) -> None:
    """`msrcnn evaluate` has computed mask AP of all detections, here 50 an image, in another way."""
    heads = dict(zip(TINY.confirmed, TINY.model(CONFIRM, "heads").heads, strict=True))  # as evaluations name them
    for number, seed in enumerate(TINY.confirming):
        paper, of_heads, plain = (
            json.loads((out / "evaluations" / f"confirm-{seed}-{kind}" / "summary.json").read_text())
            for kind in ("paper", "heads", "plain")
        )
        seed_says = json.loads((out / "measured" / f"confirm-{seed}.json").read_text())
        masks = seed_says["masks"]
        assert masks["class score"]["AP at 50"] == pytest.approx(100 * paper["ap"]["mask_by_class"]["AP"])
        assert masks["paper^1"]["AP at 50"] == pytest.approx(100 * paper["ap"]["mask_by_mask"]["AP"])
        assert masks["oracle"]["AP at 50"] == pytest.approx(100 * paper["ap"]["mask_by_oracle"]["AP"])
        assert masks["(a)^1"]["AP at 50"] == pytest.approx(100 * of_heads["ap"]["mask_by_mask"]["AP"])
        for name, head in heads.items():
            ap = of_heads["heads"][head]["ap"]["mask_by_mask"]["AP"]
            assert masks[f"{name}^1"]["AP at 50"] == pytest.approx(100 * ap)
        assert seed_says["detections"] == paper["detections"]
        assert plain["ap"]["mask_by_class"] == plain["ap"]["mask_by_mask"]
        assert results["rankings"]["paper^1"]["AP"]["seeds"][number] == masks["paper^1"]["AP"]
        assert len(masks["class score"]["draws"]) == 100


def check_again(config: StudyConfig, results: dict) -> None:
    """Nothing is trained again; other draws are made anew, and change no mean."""
    lines: list[str] = []
    study(replace(config, draws=120), lines.append)
    assert not any("/10]" in line for line in lines)
    again = json.loads((config.out / "results.json").read_text())
    assert again["rankings"]["class score"]["AP"]["seeds"] == results["rankings"]["class score"]["AP"]["seeds"]
    seed_says = json.loads((config.out / "measured" / "confirm-1.json").read_text())
    assert len(seed_says["masks"]["class score"]["draws"]) == 120
    assert [origin["workers"] for origin in again["origins"]] == ["1"] * 3
    assert again["origins"] == results["origins"]  # those of the trainings, which are the same
