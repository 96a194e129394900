"""What a sweep plans: trials, the rows behind which they stand, and mistakes said before anything starts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from msrcnn.errors import InputError
from msrcnn.presets import PRESETS
from pipelines.run_directory import RunRecord, write_record
from pipelines.storage import locate
from pipelines.sweep import check_trials
from pipelines.sweep_plan import ALONE, BY_CLASS, draw, make_plan
from pipelines.train_setup import prepare
from pipelines.trial import outcome, write_result
from pipelines.verbs import parse
from tests.stored_scenes import write_shards
from tune_spaces.definition import Range
from tune_spaces.space import find_space

WHERE = ["--shards", "train", "--validation", "val", "--out"]


def plan_of(tmp_path, *arguments):
    return make_plan(parse("sweep", [*arguments, *WHERE, str(tmp_path / "out")]))


def space_file(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(f'title = "Mine"\ncolumns = ["AP"]\n{text}')
    return str(path)


def test_rows_that_come_to_the_same_are_one_trial(tmp_path):
    """Tables 4, 5 and 6 share the default head and the baseline: 11 heads and a Mask R-CNN."""
    plan = plan_of(tmp_path, "table4", "table5", "table6")
    assert len(plan.trials) == 12
    heads = [trial.train.model.maskiou for trial in plan.trials.values()]
    assert sum(not head.enabled for head in heads) == 1
    assert {(h.input, h.target, h.tau) for h in heads if h.enabled} == {
        *((letter, 1, 0.0) for letter in "abcdef"), ("a", 2, 0.0), ("a", 3, 0.0),
        *(("a", 1, tau) for tau in (0.3, 0.5, 0.7)),
    }  # fmt: skip
    first = [planned.rows[0] for planned in plan.tables]
    assert first[0].trials == first[1].trials  # Mask R-CNN, in Table 4 and in Table 5
    assert {shown.how for planned in plan.tables for shown in planned.rows} == {ALONE}
    by_name = {shown.row.name: shown.trials for planned in plan.tables for shown in planned.rows}
    assert all(len(trials) == 1 for trials in by_name.values())


def test_many_heads_are_one_training(tmp_path):
    plan = plan_of(tmp_path, "table4", "table5", "table6", "--many-heads")
    (trial,) = plan.trials.values()
    model = trial.train.model
    assert len(model.heads) == 10
    assert model.maskiou == PRESETS["r18-fpn"].model.maskiou
    assert model.trained == "all"
    shown = {row.row.name: row for planned in plan.tables for row in planned.rows}
    baseline = plan.tables[0].rows[0]
    assert (baseline.row.ranked, baseline.how) == ("class", BY_CLASS)
    heads = [row.head for row in shown.values() if row.how != BY_CLASS]
    assert {*heads} == {"", *model.heads}
    assert all("no gradient" in planned.notes[0] for planned in plan.tables)


def test_a_finished_trunk_is_frozen(tmp_path):
    trunk = tmp_path / "trunk.pt"
    trunk.write_bytes(b"weights")
    plan = plan_of(tmp_path, "tau", "--many-heads", "--trunk", str(trunk), "--seeds", "3", "4")
    assert [trial.train.solver.seed for trial in plan.trials.values()] == [3, 4]
    for trial in plan.trials.values():
        assert trial.train.model.trained == "maskiou"
        assert trial.train.weights == str(trunk)
    assert {len(row.trials) for row in plan.tables[0].rows} == {2}


def test_the_command_line_goes_before_what_is_fixed_and_behind_what_varies(tmp_path):
    plan = plan_of(tmp_path, "table1", "--model.channels", "32", "--model.norm", "group_norm", "--model.frozen-stages",
                   "0", "--solver.epochs", "1", "--weights", "none")  # fmt: skip
    trials = list(plan.trials.values())
    assert {t.train.model.backbone for t in trials} == {"resnet18", "resnet50", "resnet101"}
    for trial in trials:
        assert (trial.train.model.channels, trial.train.solver.epochs, trial.train.weights) == (32, 1, None)
        levels = (4, 5) if trial.train.model.backbone == "resnet18" else (2, 3, 4, 5)
        assert trial.train.model.levels == levels  # what is not given stays each row's preset's
    (demo,) = {t.train.model.hidden for t in plan_of(tmp_path, "tau", "--preset", "demo").trials.values()}
    assert demo == PRESETS["demo"].model.hidden


def test_names_are_the_same_in_every_run_of_the_command(tmp_path):
    one, two = (plan_of(tmp_path, "table4", "--seeds", *seeds) for seeds in (["0"], ["0", "1"]))
    assert {*one.trials} < {*two.trials}
    assert len(two.trials) == 2 * len(one.trials)
    assert all(trial.train.run.endswith(name) for name, trial in one.trials.items())


def test_a_grid_tries_every_combination(tmp_path):
    file = space_file(tmp_path, '[vary]\nsolver.lr = [0.01, 0.02]\nmodel.selection.method = ["gaussian", "hard"]\n')
    plan = plan_of(tmp_path, file)
    assert {(t.train.solver.lr, t.train.model.selection.method) for t in plan.trials.values()} == {
        (lr, method) for lr in (0.01, 0.02) for method in ("gaussian", "hard")
    }


def test_settings_that_the_command_line_varies_are_a_grid(tmp_path):
    plan = plan_of(tmp_path, "--vary", "solver.lr=0.005,1e-2", "--vary", "model.maskiou.weight=1,2", "--preset", "demo")
    assert {(t.train.solver.lr, t.train.model.maskiou.weight) for t in plan.trials.values()} == {
        (lr, weight) for lr in (0.005, 0.01) for weight in (1.0, 2.0)
    }
    assert {t.train.model.hidden for t in plan.trials.values()} == {PRESETS["demo"].model.hidden}
    assert plan.tables[0].space.columns[0] == "AP"


def test_random_draws_follow_the_seed_and_stay_inside(tmp_path):
    file = space_file(tmp_path, 'search = "random"\nsamples = 20\n[vary]\n'
                      "solver.lr = {low = 0.005, high = 0.04, log = true}\nsolver.momentum = {low = 0.5, high = 0.95}\n"
                      'model.selection.method = ["gaussian", "linear", "hard"]\n')  # fmt: skip
    plans = [plan_of(tmp_path, file, "--samples", "8", "--seeds", seed) for seed in ("1", "1", "2")]
    names = [[*plan.trials] for plan in plans]
    assert names[0] == names[1] != names[2]
    space = find_space(file)
    drawn = [trial.settings for trial in plans[0].trials.values()]
    assert len(drawn) == 8
    for settings in drawn:
        assert settings.keys() == space.vary.keys()
        for name, of in space.vary.items():
            assert of.low <= settings[name] <= of.high if isinstance(of, Range) else settings[name] in of.values
    assert len({settings["solver.lr"] for settings in drawn}) == 8
    trained = [(t.train.solver.lr, t.train.solver.momentum, t.train.model.selection.method)
               for t in plans[0].trials.values()]  # fmt: skip
    assert trained == [tuple(settings.values()) for settings in drawn]


def test_a_bayesian_search_has_a_trial_only_once_tune_gives_settings(tmp_path):
    plan = plan_of(tmp_path, "hyperparameters", "--search", "bayes", "--samples", "5")
    assert plan.trials == {}
    assert plan.search is not None
    assert plan.search.space.samples == 5
    (example,) = plan.examples()
    assert example.settings["solver.lr"] == plan.search.space.vary["solver.lr"].low


def test_a_small_space_is_not_drawn_for_ever(tmp_path):
    file = space_file(tmp_path, 'search = "random"\nsamples = 9\n[vary]\nsolver.momentum = [0.8, 0.9]\n')
    assert len(plan_of(tmp_path, file).trials) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"the space = 'nothing' is not accepted; it must be .* or --vary SETTING=VALUE"),
        (["table4", "--vary", "solver.lr=1,2"], "--vary = .* absent with a space, which says what varies"),
        (["--vary", "solver.lr=1,2", "--solver.lr", "3"], "--solver.lr: lr varies it; leave it out"),
        (["table8"], "no such sweep and no such file"),
        (["table4", "table4"], "two spaces of this name"),
        (["table4", "--samples", "3"], "has rows, and each is one trial"),
        (["table4", "--asha"], "leave rows of a table without numbers"),
        (["table4", "hyperparameters"], "give it alone"),
        (["hyperparameters", "--seeds", "1", "2"], "draws new settings instead"),
        (["table1", "--many-heads"], "cannot share a trunk: rows"),
        (["hyperparameters", "--many-heads"], "cannot share a trunk"),
        (["table4", "--model.maskiou.input", "b"], "--model.maskiou.input: input_fusion varies it"),
        (["table3"], "give --test-dev"),
        (["table4", "--trunk", "run"], "absent without --many-heads"),
        (["table4", "--many-heads", "--trunk", "nowhere"], "neither a run directory nor a model file"),
        (["table4", "--seeds", "1", "1"], "different numbers"),
        (["hyperparameters", "--search", "grid"], "a list of values in a grid"),
        (["table4", "--many-heads", "--model.heads", "input=b"], "takes the heads from the spaces"),
        (["backbone", "--preset", "demo"], "--preset: backbone varies it"),
    ],
)  # fmt: skip
def test_mistakes(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        plan_of(tmp_path, *arguments)


def test_asha_validates_each_trial_between_its_epochs(tmp_path):
    for asha in ([], ["--asha"]):
        trials = plan_of(tmp_path, "hyperparameters", "--samples", "2", *asha).trials.values()
        assert {(t.evaluate.bootstrap, t.evaluate.figures) for t in trials} == {(0, False)}  # nothing reads them
        assert [t.train.validation for t in trials] == [t.evaluate.shards if asha else None for t in trials]
        assert len(trials) == 2


def test_a_whole_number_is_drawn_whole():
    found = {draw(Range(2, 5, whole=True), np.random.default_rng(i)) for i in range(40)}
    assert found == {2, 3, 4, 5}
    assert all(isinstance(value, int) for value in found)


def test_what_is_named_counts_even_if_it_is_the_presets(tmp_path):
    """600/1000 is the default preset's size; the rows of the other presets must get it too."""
    plan = plan_of(tmp_path, "table1", "--data.short-side", "600", "--data.long-side=1000", "--data.no-flip")
    assert {(t.train.data.short_side, t.train.data.long_side, t.train.data.flip) for t in plan.trials.values()} == {
        (600, 1000, False)
    }
    file = space_file(tmp_path, '[fixed]\npreset = "demo"\n[vary]\nsolver.lr = [0.1]\n')
    for options, levels in (([], (2, 3, 4, 5)), (["--preset", "r18-fpn"], (4, 5))):
        (trial,) = plan_of(tmp_path, file, *options).trials.values()
        assert trial.train.model.levels == levels


def test_trials_of_earlier_commands_keep_their_names(tmp_path):
    first = plan_of(tmp_path, "table4")
    shared = next(name for name, t in first.trials.items() if t.train.model.maskiou == PRESETS["r18-fpn"].model.maskiou)
    (tmp_path / "out" / "runs" / shared).mkdir(parents=True)
    second = plan_of(tmp_path, "table6")
    assert shared in second.trials
    assert len(second.trials) == 4


def test_names_stay_when_later_versions_add_fields(tmp_path):
    """What this version names, later ones must find again, or a sweep that is half done trains everything anew."""
    file = space_file(tmp_path, "[vary]\nmodel.maskiou.weight = [1.0, 2.0]\n")
    assert [*plan_of(tmp_path, file).trials] == ["weight-1-seed0-e46735b2", "weight-2-seed0-f68bbe00"]


def test_a_trial_that_was_begun_with_another_default_is_refused(tmp_path, make_scene):
    rng = np.random.default_rng(0)
    truths = [make_scene(i, rng, 1, 0, 1).truth for i in range(16)]
    manifest = write_shards(tmp_path / "shards", truths, [(1, "thing")], files=1, row_group=16)
    plan = plan_of(tmp_path, space_file(tmp_path, "[vary]\nsolver.lr = [0.01]\n"), "--preset", "demo",
                   "--weights", "none", "--model.norm", "group_norm", "--model.frozen-stages", "0")  # fmt: skip
    (trial,) = plan.trials.values()
    _, settings = prepare(trial.train, manifest)
    write_record(locate(trial.train.run), RunRecord(settings, "abc", "sqlite:///x.db"))
    check_trials(plan, manifest)
    settings["solver"]["momentum"] = 0.8
    write_record(locate(trial.train.run), RunRecord(settings, "abc", "sqlite:///x.db"))
    with pytest.raises(InputError, match=r"trial .*solver.momentum: 0.8 -> 0.9\); choose another --out"):
        check_trials(plan, manifest)


def test_one_head_is_no_sweep_of_heads(tmp_path):
    file = space_file(tmp_path, '[[rows]]\nname = "a"\nranked = "class"\n[[rows]]\nname = "b"\n')
    with pytest.raises(InputError, match="one MaskIoU head in all rows"):
        plan_of(tmp_path, file, "--many-heads")


def test_what_is_left_to_do(tmp_path):
    """A result without the archive that is asked for, or of a trial that was stopped, where nobody stops trials now."""
    (trial,) = plan_of(tmp_path, "tau", "--many-heads").trials.values()
    out = locate(tmp_path / "out")
    assert outcome(out, trial, asha=False) is None
    write_result(out, trial.name, {"AP": 1.0, "epoch": 2, "stopped": True})
    assert outcome(out, trial, asha=False) is None
    assert outcome(out, trial, asha=True) is not None
    write_result(out, trial.name, {"AP": 1.0, "epoch": 18})
    assert outcome(out, trial, asha=False) is not None
    assert outcome(out, replace(trial, test_dev="shards"), asha=False) is None
