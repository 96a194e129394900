"""What a report is made from, and what is said where something is missing."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from msrcnn.errors import InputError
from pipelines.report.command import report
from pipelines.report.runs import open_runs
from pipelines.report_options import ReportConfig
from pipelines.verbs import parse
from tests.reports import read_page, write_data


@pytest.fixture
def copy(made, tmp_path):
    shutil.copytree(made.first, tmp_path / "copy")
    return tmp_path / "copy"


def change(folder, **values) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def refused(tmp_path, *runs, **options) -> str:
    with pytest.raises(InputError) as raised:
        report(ReportConfig(runs, tmp_path / "report.html", **options), lambda _: None)
    assert not (tmp_path / "report.html").exists()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_what_is_no_run(made, copy, tmp_path):
    assert "no such folder, or an empty one" in refused(tmp_path, tmp_path / "none")
    assert "no summary.json in it; give a folder that `msrcnn evaluate`" in refused(tmp_path, made.first / "detections")
    assert "is a file; give the folder of an evaluation" in refused(tmp_path, made.first / "summary.json")
    (copy / ".unfinished").touch()
    assert "is not finished; give the command that began it again" in refused(tmp_path, copy)


def test_numbers_that_are_broken_or_of_another_version(copy, tmp_path):
    summary = json.loads((copy / "summary.json").read_text())
    del summary["curves"]
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "no curves in it: another version made it; `msrcnn score" in refused(tmp_path, copy)
    (copy / "summary.json").write_text("{")
    assert "not the numbers of an evaluation" in refused(tmp_path, copy)


def test_shards_that_moved_are_given(made, copy, tmp_path):
    change(copy, shards_folder=str(tmp_path / "gone"))
    assert open_runs([copy], [made.shards], [], True)[0].detections is not None
    assert open_runs([copy], [], [], False)[0].manifest is None
    report(ReportConfig((copy,), tmp_path / "report.html", gallery=0), lambda _: None)
    assert "No pictures" in read_page(tmp_path / "report.html").text
    (tmp_path / "report.html").unlink()
    assert "gone: no manifest.json; give those of the evaluation" in refused(
        tmp_path, copy, shards=(tmp_path / "gone",)
    )


UNKNOWN = "nowhere://bucket/folder"


@pytest.mark.parametrize(
    ("changes", "lack"),
    [({"model": f"{UNKNOWN}/model.pt"}, "No training is shown: nowhere://bucket/folder/model.pt: no file"),
     ({"shards_folder": UNKNOWN}, "No pictures: nowhere://bucket/folder: no file system for it"),
     ({"shards_folder": "{}/gone"}, "/gone: no manifest.json; --shards says where the shards are now."),
     ({"shards_folder": "{}/other"}, "other shards than"),
     ({"rows": UNKNOWN}, "No pictures: nowhere://bucket/folder: no file system for it")],
)  # fmt: skip
def test_places_that_nobody_gave_cost_what_was_there_alone(copy, tmp_path, make_scene, changes, lack):
    write_data(tmp_path / "other", [make_scene(1, np.random.default_rng(0), 2, 2, 3)])
    change(copy, **{name: value.format(tmp_path) for name, value in changes.items()})
    if "rows" in changes:
        shutil.rmtree(copy / "detections")
    lines: list[str] = []
    report(ReportConfig((copy,), tmp_path / "report.html"), lines.append)
    assert any(lack in line for line in lines)
    page = read_page(tmp_path / "report.html")
    assert any(lack in note.text for note in page.all("p", css="lacks"))
    assert bool(page.all("li", css="picture")) == ("model" in changes)
    assert bool(page.all("section", id="training")) == ("model" not in changes)


@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_a_damaged_training_that_nobody_gave_costs_its_curves_alone(made, copy, tmp_path, name):
    shutil.copytree(made.training, tmp_path / "run")
    (tmp_path / "run" / name).write_text('{"settings": {\n{}')
    change(copy, model=str(tmp_path / "run" / "model.pt"))
    (run,) = open_runs([copy], [], [], False)
    assert run.training is None
    (note,) = run.notes
    assert f"No training is shown: {tmp_path / 'run' / name}: " in note
    assert note.endswith("; --training says where it is now.")
    assert "\n" not in note
    assert name in refused(tmp_path, copy, training=(tmp_path / "run",))


def test_other_shards_are_refused(made, tmp_path, make_scene):
    other = write_data(tmp_path / "other", [make_scene(1, np.random.default_rng(0), 2, 2, 3)])
    assert "; give those of the evaluation with --shards" in refused(tmp_path, made.first, shards=(other,))


def test_deleted_detections_cost_the_gallery_alone(copy, tmp_path):
    shutil.rmtree(copy / "detections")
    lines: list[str] = []
    report(ReportConfig((copy,), tmp_path / "report.html"), lines.append)
    assert any("they were deleted or moved, so there are no pictures" in line for line in lines)
    page = read_page(tmp_path / "report.html")
    assert "so there are no pictures" in page.text
    assert not page.all("li", css="picture")
    assert page.all("section", id="numbers")
    assert page.all("section", id="scores")


def test_a_part_that_is_missing_is_named(copy, tmp_path):
    sorted((copy / "detections").iterdir())[1].unlink()
    assert "parts are missing or damaged" in refused(tmp_path, copy)


def test_a_training_that_moved_is_given_or_left_out(made, copy, tmp_path):
    change(copy, model=str(tmp_path / "gone" / "model.pt"))
    (run,) = open_runs([copy], [], [], False)
    assert run.training is None
    assert "--training says where it is now" in run.notes[0]
    assert open_runs([copy], [], [made.training], False)[0].training is not None
    assert "no run.json in it" in refused(tmp_path, copy, training=(tmp_path,))


def test_a_last_record_that_is_cut_off_is_left_out(made, tmp_path):
    shutil.copytree(made.training, tmp_path / "run")
    path = tmp_path / "run" / "metrics.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"step": 1')
    training = open_runs([tmp_path / "run"], [], [], False)[0].training
    assert training is not None
    assert len(training.lines) == len(whole.splitlines())
    path.write_text("nonsense\n" + whole)
    assert "line 1 is no record of a training" in refused(tmp_path, tmp_path / "run")


def test_names_are_as_short_as_they_can_be(made, tmp_path):
    for name in ("a/evaluation", "b/evaluation"):
        shutil.copytree(made.first, tmp_path / name)
    runs = open_runs([tmp_path / "a" / "evaluation", tmp_path / "b" / "evaluation"], [], [], False)
    assert [run.name for run in runs] == ["a/evaluation", "b/evaluation"]
    runs = open_runs([made.first, made.second], [], [], False)
    assert [run.name for run in runs] == ["first", "second"]


def test_options():
    plain = parse("report", ["runs/first", "s3://b/second", "--out", "s3://b/r.html"])
    assert (plain.runs, plain.out, plain.shards) == (("runs/first", "s3://b/second"), "s3://b/r.html", ())
    assert parse("report", ["r"]).out == "report.html"
    with pytest.raises(InputError, match="RUNS = 'nothing' is not accepted"):
        ReportConfig(())
    with pytest.raises(
        InputError, match="--shards = '2 places' is not accepted; it must be one place, or one for each"
    ):
        ReportConfig(("a", "b", "c"), shards=("d", "e"))
    for number in (-1, 161):
        with pytest.raises(InputError, match=f"--gallery = {number} is not accepted; it must be 0 to 160"):
            ReportConfig(("a",), gallery=number)


def test_out_that_is_a_folder(made, tmp_path):
    with pytest.raises(InputError, match="is a folder; give --out a file"):
        report(ReportConfig((made.first,), tmp_path), lambda _: None)
