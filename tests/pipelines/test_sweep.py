"""Sweeps as commands: interrupted, failing, stopped early; real trainings of a small model on real processes."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from mlflow import MlflowClient

from msrcnn.data.shapes import write_shapes
from msrcnn.data.shapes_config import ShapesConfig
from pipelines.options import ShardConfig
from tests.commands import Command

pytestmark = pytest.mark.ray
SMALL = [
    "--threads", "1", "--model.channels", "32", "--model.hidden", "64",
    "--data.short-side", "64", "--data.long-side", "64", "--solver.warmup-steps", "4",
]  # fmt: skip


@dataclass
class Sweeping(Command):
    """`msrcnn sweep` in a process."""

    folder: Path
    shards: Path
    spaces: list[str]
    options: list[str] = field(default_factory=list)
    preset: tuple[str, ...] = ("--preset", "demo")

    @property
    def cwd(self) -> Path:
        """Where mlflow.db comes to lie, by default; trials run in folders of their own."""
        return self.folder

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def arguments(self) -> list[str]:
        return ["sweep", *self.spaces, "--shards", str(self.shards / "train"), "--validation", str(self.shards / "val"),
                "--out", str(self.out), *self.preset, *SMALL, *self.options]  # fmt: skip

    def results(self) -> dict[str, dict]:
        """The outcome of each trial that has one, by name."""
        return {p.stem: json.loads(p.read_text()) for p in sorted((self.out / "results").glob("*.json"))}

    def rows(self, report: str) -> list[dict]:
        """Of the only table in a report."""
        (table,) = json.loads((self.out / f"{report}.json").read_text())["tables"]
        return table["rows"]

    def runs(self) -> tuple[dict, list]:
        """The sweep's own run in MLflow, and those of its trials."""
        client = MlflowClient(f"sqlite:///{self.folder}/mlflow.db")
        record = json.loads((self.out / ".sweep.json").read_text())
        parent = client.get_run(record["mlflow_run"])
        everything = client.search_runs([parent.info.experiment_id], max_results=100)
        children = [run for run in everything if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert len(everything) == 1 + len(children)
        return parent, children


def make_shards(folder: Path, train: int, val: int) -> Path:
    from pipelines.shard import shard

    write_shapes(ShapesConfig(train=train, val=val, size=64), folder)
    for split in ("train", "val"):
        shard(ShardConfig(folder / "annotations" / f"instances_{split}.json", folder / split, folder / "shards" / split,
                          row_group=8), log=lambda _: None)  # fmt: skip
    return folder / "shards"


@pytest.fixture(scope="module")
def shards(tmp_path_factory, ray_session):  # noqa: ARG001  the cluster must be up to shard
    return make_shards(tmp_path_factory.mktemp("shapes"), 24, 8)


def space(tmp_path: Path, text: str) -> str:
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "mine.toml").write_text(f'title = "Mine"\ncolumns = ["AP", "box AP"]\n{text}')
    return str(tmp_path / "mine.toml")


def failing_and_fine(tmp_path: Path) -> str:
    """A row whose weights are not there, and one that trains."""
    return f"""
[[rows]]
name = "begins with what is not there"
settings = {{weights = "{tmp_path}/absent.pt"}}
[[rows]]
name = "small steps"
settings = {{solver.lr = 0.01}}
"""


@pytest.mark.slow
def test_a_users_space_by_path_with_a_row_that_fails(shards, tmp_path):
    """The other row goes on, both are in the report, the exit code says that something is missing."""
    file = space(tmp_path, failing_and_fine(tmp_path) + "published = {AP = 12.5}\n")
    sweep = Sweeping(tmp_path / "sweep", shards, [file], ["--solver.epochs", "1"])
    sweep.start()
    assert sweep.finish() == 1
    failed, fine = sweep.rows("mine")
    assert "absent.pt" in failed["state"]
    assert fine["state"] == ""
    assert fine["published"] == {"AP": 12.5}
    (result,) = sweep.results().values()
    assert result["settings"] == {"solver.lr": 0.01}
    parent, children = sweep.runs()
    assert parent.info.status == "FINISHED"
    assert [run.info.status for run in children] == ["FINISHED"]  # the other one had not come to begin a run


@pytest.mark.slow
def test_a_killed_sweep_is_finished_by_the_same_command(shards, tmp_path):
    """Two by two trials, two at a time; nothing that was finished runs twice, nothing is left open."""
    file = space(tmp_path, '[vary]\nsolver.lr = [0.04, 0.08]\nmodel.selection.method = ["gaussian", "hard"]\n')
    sweep = Sweeping(tmp_path / "sweep", shards, [file], ["--solver.epochs", "2", "--concurrent", "2"])
    sweep.start()
    sweep.wait_for(r"trial .* done", seconds=400)
    sweep.kill_all()
    before = {path.name: path.stat().st_mtime_ns for path in (sweep.out / "results").iterdir()}
    assert 1 <= len(before) < 4
    logs = {name: (sweep.out / "logs" / f"{name}.txt").read_text() for name in (n[:-5] for n in before)}
    sweep.start()
    assert sweep.finish() == 0
    assert f"4 trials, 2 at a time; {len(before)} done already" in sweep.log()
    after = {path.name: path.stat().st_mtime_ns for path in (sweep.out / "results").iterdir()}
    assert len(after) == 4
    assert {name: after[name] for name in before} == before
    assert {name: (sweep.out / "logs" / f"{name}.txt").read_text() for name in logs} == logs
    assert len(sweep.rows("mine")) == 4
    assert all(row["state"] == "" and row["values"]["AP"][0] is not None for row in sweep.rows("mine"))
    parent, children = sweep.runs()
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 5
    assert {run.info.run_name for run in children} == {name[:-5] for name in after}
    sweep.start()
    assert sweep.finish() == 0
    assert "4 trials, all done already" in sweep.log()


@pytest.mark.slow
def test_a_trial_whose_process_is_lost_goes_on(shards, tmp_path):
    """As with a node that is taken away: by the same command, from its last checkpoint; one that fails is not tried.

    Two workers have no place at a time: the next trial begins with what the lost one's had reserved.
    """
    file = space(tmp_path, failing_and_fine(tmp_path) + '[[rows]]\nname = "others"\nsettings = {solver.lr = 0.02}\n')
    sweep = Sweeping(tmp_path / "sweep", shards, [file],
                     ["--solver.epochs", "3", "--concurrent", "1", "--cpus", "1.2"])  # fmt: skip
    sweep.start()
    deadline = time.monotonic() + 400
    while len([*sweep.out.glob("runs/*/step-*")]) < 2:  # the first is whole then
        sweep.check_alive()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert sweep.kill_process("ray::ImplicitFunc")
    sweep.wait_for("lost its process", seconds=600)  # said once the others have ended
    assert sweep.finish(900) == 1
    assert len(re.findall(r"trial \S+ failed: .*absent\.pt", sweep.log())) == 1
    assert [result["epoch"] for result in sweep.results().values()] == [3, 3]
    logs = [file.read_text() for file in sweep.out.glob("logs/*.txt") if "trained in" in file.read_text()]
    assert len(logs) == 2
    assert sum(bool(re.search(r"begins? at step [1-9]", log)) for log in logs) == 1  # not from the beginning


@pytest.mark.slow
def test_asha_stops_a_bad_trial_and_its_place_serves_the_next(tmp_path):
    """One trial at a time, so that the third cannot begin unless the second has given everything back."""
    shards = make_shards(tmp_path / "shapes", 160, 8)
    file = space(tmp_path, "[vary]\nsolver.lr = [0.08, 0.000001, 0.07]\n")
    sweep = Sweeping(tmp_path / "sweep", shards, [file], ["--solver.epochs", "6", "--concurrent", "1", "--asha"])
    sweep.start()
    assert sweep.finish(900) == 0
    results = sweep.results()
    assert len(results) == 3
    stopped = {name: result["epoch"] for name, result in results.items() if result.get("stopped")}
    (bad,) = (name for name in results if name.startswith("lr-1e-06"))
    assert 1 <= stopped[bad] < 6
    assert any(name not in stopped for name in results)
    by_lr = {row["settings"]["solver.lr"]: row for row in sweep.rows("mine")}
    assert by_lr[1e-6]["state"].startswith("stopped after ")
    parent, children = sweep.runs()
    assert parent.info.status == "FINISHED"
    for run in children:
        name = run.info.run_name
        assert run.info.status == ("KILLED" if name in stopped else "FINISHED")
        assert ("sweep.stopped" in run.data.tags) == (name in stopped)


@pytest.mark.slow
def test_every_backbone_of_tables_1_and_2(shards, tmp_path):
    """Tiny settings through all of them; the paper's rows stand beside."""
    sweep = Sweeping(tmp_path / "sweep", shards, ["backbone"], ["--solver.epochs", "1", "--weights", "none",
                     "--model.norm", "group_norm", "--model.frozen-stages", "0", "--model.roi.samples", "16",
                     "--model.rpn.train-proposals", "50", "--model.rpn.test-proposals", "20",
                     "--model.selection.top-k", "10"], preset=())  # fmt: skip
    sweep.start()
    assert sweep.finish(3000) == 0
    rows = sweep.rows("backbone")
    assert len(rows) == 10
    assert all(row["state"] == "" for row in rows)
    published = {row["name"]: row["published"]["AP"] for row in rows}
    assert published["MS R-CNN, R18-FPN"] == 29.3


@pytest.mark.slow
def test_a_bayesian_search_goes_on_where_it_was(shards, tmp_path):
    """What an earlier command found is not computed again, and the search knows it."""
    pytest.importorskip("optuna")
    vary = '[vary]\nsolver.lr = {low = 0.01, high = 0.1, log = true}\nmodel.selection.method = ["gaussian", "hard"]\n'
    file = space(tmp_path, f'search = "bayes"\nsamples = 2\n{vary}')
    sweep = Sweeping(tmp_path / "sweep", shards, [file], ["--solver.epochs", "1", "--concurrent", "1"])
    sweep.start()
    assert sweep.finish() == 0
    first = sweep.results()
    assert len(first) == 2
    sweep.options += ["--samples", "3"]
    sweep.start()
    assert sweep.finish() == 0
    assert "3 trials, 1 at a time; 2 done already" in sweep.log()
    results = sweep.results()
    assert len(results) == 3
    assert {name: results[name] for name in first} == first
    rows = sweep.rows("mine")
    assert len(rows) == 3
    assert all(0.01 <= row["settings"]["solver.lr"] <= 0.1 for row in rows)
    parent, children = sweep.runs()
    assert [run.info.status for run in (parent, *children)] == ["FINISHED"] * 4
