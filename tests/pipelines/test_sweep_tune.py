"""What Ray Tune is kept from, and what it is told."""

from __future__ import annotations

import json
from contextlib import nullcontext

import pytest
from ray.tune.execution.class_cache import _ActorClassCache

from msrcnn.errors import InputError
from pipelines import sweep_places
from pipelines.storage import locate
from pipelines.sweep_places import check_tracking, places
from pipelines.sweep_plan import make_plan
from pipelines.sweep_tune import KEYS, _begun, _search_algorithm, keep_keys
from pipelines.trial import SETTINGS, validations, write_result
from pipelines.verbs import parse


class Trainable:
    """Stands for a trial's function."""


def copied() -> set[str]:
    """The variables that Tune puts into the runtime environment of a trial, which Ray's agents log."""
    return set(_ActorClassCache().get(Trainable)._default_options["runtime_env"]["env_vars"])


def test_keys_of_the_object_store_are_not_copied_to_where_agents_log_them(monkeypatch):
    for name in KEYS:
        monkeypatch.setenv(name, "secret")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    keep_keys()
    assert not copied() & {*KEYS}
    assert "RAY_CHDIR_TO_TRIAL_DIR" in copied()  # what Tune itself needs still goes along


def plan_of(tmp_path, *arguments: str):
    """A sweep's configuration and plan."""
    where = ["--shards", "train", "--validation", "val", "--out", str(tmp_path / "out")]
    config = parse("sweep", [*arguments, *where])
    return config, make_plan(config)


@pytest.mark.parametrize(
    ("options", "concurrent"),
    [
        (["--threads", "1"], 8),  # 8 CPUs would hold ten of 0.45 + 0.1 + 0.2
        (["--threads", "4"], 2),
        (["--threads", "4", "--workers", "2"], 1),
        (["--threads", "16"], 1),  # one trial at least
        (["--threads", "4", "--concurrent", "5"], 5),  # who asks for more gets it
        ([], 2),  # two nodes of four
        (["--workers", "2"], 2),
    ],
)
def test_trials_on_cpus_have_a_processor_for_each_thread(tmp_path, monkeypatch, options, concurrent):
    monkeypatch.setattr(sweep_places.ray, "cluster_resources", lambda: {"CPU": 8.0})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": 4.0}}] * 2)
    monkeypatch.setattr(sweep_places, "check_resources", lambda _: None)
    config, plan = plan_of(tmp_path, "tau", *options)
    assert places(config, plan) == concurrent


@pytest.mark.parametrize(
    ("address", "hosts", "refused"),
    [
        ("sqlite:////home/me/mlflow.db", ["a", "b", "c"], True),
        ("sqlite:////home/me/mlflow.db", ["a", "a"], False),  # nodes of one machine
        ("http://mlflow:5000", ["a", "b"], False),
    ],
)
def test_trials_on_other_machines_need_a_server(monkeypatch, address, hosts, refused):
    """Each would make an empty file of that name, and fail for want of the sweep's run in it."""
    monkeypatch.setattr("ray.nodes", lambda: [{"NodeManagerHostname": host, "Alive": True} for host in hosts])
    with pytest.raises(InputError, match="which trials on 2 others cannot write") if refused else nullcontext():
        check_tracking(address)


def test_a_bayesian_search_is_told_of_earlier_trials_with_lists(tmp_path):
    """JSON has no tuples, and Optuna looks a choice up by its value."""
    pytest.importorskip("optuna")
    (tmp_path / "mine.toml").write_text(
        'title = "Mine"\ncolumns = ["AP"]\nsearch = "bayes"\nsamples = 4\n'
        '[vary]\n"solver.decay_epochs" = [[4, 5], [3]]\n"solver.epochs" = [6]\n'
    )
    _, plan = plan_of(tmp_path, str(tmp_path / "mine.toml"))
    out = locate(tmp_path / "out")
    assert plan.search is not None
    trial = plan.search.suggested({"solver.decay_epochs": (4, 5), "solver.epochs": 6})
    (out / SETTINGS).make_folder()
    (out / SETTINGS / f"{trial.name}.json").write(json.dumps(dict(trial.settings)).encode())
    write_result(out, trial.name, {"AP": 12.0, "epoch": 6})
    begun = _begun(plan.search, out)
    assert [*begun] == [trial.name]
    search = _search_algorithm(plan.search, begun, out)
    (known,) = search._ot_study.trials
    assert (known.value, known.params["solver.decay_epochs"]) == (12.0, (4, 5))


def test_validations_are_numbered_and_read_once(tmp_path):
    run = locate(tmp_path / "run")
    (run / "validation").make_folder()
    for epoch, ap in ((1, 0.1), (2, None), (3, 0.3)):
        value = {"step": 10 * epoch, "validation/mask_by_mask/AP": ap}
        (run / "validation" / f"checkpoint-{10 * epoch:08d}.json").write(json.dumps(value).encode())
    (one, first), (two, second) = validations(run, 3)  # the last is the trial's outcome
    assert (one, first, two) == (1, 10.0, 2)
    assert second != second  # nan: nothing is defined
    (run / "validation" / "checkpoint-00000010.json").write(b"not read again")
    assert [epoch for epoch, _ in validations(run, 5, told=1)] == [2, 3]
