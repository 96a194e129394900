"""A real MLflow run on SQLite: written, continued, read back."""

import pytest
from mlflow import MlflowClient

from msrcnn.errors import InputError
from pipelines.tracking import Tracker, flatten


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_a_run_is_written_continued_and_read_back(tmp_path):
    address = f"sqlite:///{tmp_path}/sub/mlflow.db"
    tracker = Tracker(address, "study", run_name="first")
    tracker.params({"model": {"levels": (4, 5)}, "text": "x" * 2000})
    tracker.metrics({"loss/total": 2.0, "bad": float("nan")}, step=20)
    tracker.metrics({"loss/total": 1.0}, step=40)
    (tmp_path / "note.txt").write_text("kept")
    tracker.artifact(tmp_path / "note.txt", "notes")
    tracker.close()

    again = Tracker(address, "study", run_id=tracker.run_id)
    again.metrics({"gain/AP": 0.5})
    again.close("FAILED")

    client = MlflowClient(address)
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert run.info.run_name == "first"
    assert run.data.params["model.levels"] == "(4, 5)"
    assert len(run.data.params["text"]) == 500
    assert run.data.metrics == {"loss/total": 1.0, "gain/AP": 0.5}
    history = client.get_metric_history(tracker.run_id, "loss/total")
    assert [(m.step, m.value) for m in history] == [(20, 2.0), (40, 1.0)]
    assert [f.path for f in client.list_artifacts(tracker.run_id, "notes")] == ["notes/note.txt"]
    assert (tmp_path / "sub" / "mlartifacts").is_dir()
    assert Tracker(address, "study").client.get_experiment_by_name("study") is not None


@pytest.mark.parametrize("address", ["sqlite:////proc/no/such/place.db", "nonsense://x", "sqlite://", "sqlite:///."])
def test_an_address_that_cannot_be_used(address):
    with pytest.raises(InputError, match=r"give (another )?--tracking"):
        Tracker(address, "study")


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "thesis.txt").write_text("not a database at all")
    with pytest.raises(InputError, match="no SQLite database"):
        Tracker(f"sqlite:///{tmp_path}/thesis.txt", "study")
    assert (tmp_path / "thesis.txt").read_text() == "not a database at all"
