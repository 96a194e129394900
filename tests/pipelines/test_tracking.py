"""A real MLflow run on SQLite: written, continued, read back."""

import time

import pytest
from mlflow import MlflowClient

from msrcnn.errors import InputError
from pipelines.job_environment import SUBMITTED
from pipelines.outbox import Outbox
from pipelines.provenance import provenance
from pipelines.tracking import COMMIT_TAG, Point, Tracker, flatten, here, resolved
from tests.mlflow_server import free_port


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": 3}) == {"a.b": 1, "a.c.d": 2, "e": 3}


def test_a_run_is_written_continued_and_read_back(tmp_path):
    address = f"sqlite:///{tmp_path}/sub/mlflow.db"
    tracker = Tracker(address, "study", run_name="first")
    tracker.params({"model": {"levels": (4, 5)}, "text": "x" * 2000})
    tracker.metrics({"loss/total": 1.0, "bad": float("nan")})
    (tmp_path / "note.txt").write_text("kept")
    tracker.artifact(tmp_path / "note.txt", "notes")
    tracker.close()

    client = MlflowClient(address)
    ended = client.get_run(tracker.run_id).info.end_time
    again = Tracker(address, "study", run_id=tracker.run_id)
    again.metrics({"gain/AP": 0.5})
    again.close("FAILED")  # others' run
    again.end("FINISHED")
    assert client.get_run(tracker.run_id).info.end_time == ended
    again.reopen()
    again.close("FAILED")

    run = client.get_run(tracker.run_id)
    assert run.info.end_time > ended
    assert run.info.status == "FAILED"
    assert run.info.run_name == "first"
    assert run.data.params["model.levels"] == "(4, 5)"
    assert len(run.data.params["text"]) == 500
    assert run.data.metrics == {"loss/total": 1.0, "gain/AP": 0.5}
    assert [f.path for f in client.list_artifacts(tracker.run_id, "notes")] == ["notes/note.txt"]
    assert (tmp_path / "sub" / "mlartifacts").is_dir()
    assert Tracker(address, "study").client.get_experiment_by_name("study") is not None


def test_whether_an_mlflow_is_here(tmp_path):
    address = f"sqlite:///{tmp_path}/mlflow.db"
    assert not here(address)  # of another machine
    Tracker(address, "study")
    assert here(address)
    assert here("http://elsewhere:5000")


@pytest.mark.parametrize("address", ["sqlite:////proc/no/such/place.db", "nonsense://x", "sqlite://", "sqlite:///."])
def test_an_address_that_cannot_be_used(address):
    with pytest.raises(InputError, match=r"give (another )?--tracking"):
        Tracker(address, "study")


def test_a_file_that_is_no_database(tmp_path):
    (tmp_path / "thesis.txt").write_text("not a database at all")
    with pytest.raises(InputError, match="no SQLite database"):
        Tracker(f"sqlite:///{tmp_path}/thesis.txt", "study")
    assert (tmp_path / "thesis.txt").read_text() == "not a database at all"


def test_tags_provenance_and_points(tmp_path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study")
    tracker.tags({"phase": 1, **{f"many/{i}": i for i in range(250)}})
    tracker.tags({"phase": 2})
    for _ in range(2):
        tracker.points([Point("loss", 0.1, 1_700_000_000_000, 7)])
    run = tracker.client.get_run(tracker.run_id)
    known = provenance()
    assert {key: run.data.tags[key] for key in known} == known
    assert run.data.tags.get(COMMIT_TAG, "") == known.get("git_commit", "").removesuffix("-dirty")
    assert (run.data.tags["phase"], run.data.tags["many/249"]) == ("2", "249")
    history = tracker.client.get_metric_history(tracker.run_id, "loss")
    assert [(m.step, m.timestamp, m.value) for m in history] == [(7, 1_700_000_000_000, 0.1)]


@pytest.mark.parametrize("address", ["https://somebody:secret@mlflow.example.org", "http://secret@127.0.0.1:5000"])
def test_a_servers_password_is_not_taken_as_part_of_its_address(address):
    """The address is written into the run directory."""
    with pytest.raises(InputError, match="MLFLOW_TRACKING_PASSWORD") as error:
        Tracker(address, "study", run_id="0" * 32)
    assert "secret" not in str(error.value)


def test_a_databases_password_is_not_shown():
    tracker = Tracker("postgresql://somebody:secret@127.0.0.1/mlflow", "study", run_id="0" * 32)
    assert tracker.shown == "postgresql://somebody:***@127.0.0.1/mlflow"


def test_a_submitted_job_needs_an_address(monkeypatch, tmp_path):
    """A file in its own folder would go with it."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    assert resolved(None) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv(SUBMITTED, "1")
    with pytest.raises(InputError, match=r"no address; give --tracking.*--env MLFLOW_TRACKING_URI"):
        resolved(None)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert resolved(None) == "http://127.0.0.1:5000"


def test_a_server_that_does_not_answer_is_an_error_of_a_new_run_only():
    address = f"http://127.0.0.1:{free_port()}"
    began = time.monotonic()
    with pytest.raises(InputError, match=r"127.*Connection refused; give another --tracking"):
        Tracker(address, "study")
    continued = Tracker(address, "study", run_id="0" * 32)
    continued.close()  # says nothing
    assert time.monotonic() - began < 20
    lines: list[str] = []
    outbox = Outbox(continued, lines.append).start()
    outbox.do("status", continued.reopen)
    assert outbox.close(0.5) == ["status"]
    assert len(lines) == 1


def test_each_model_and_data_set_of_a_run_has_its_own_numbers(tmp_path):
    """The first evaluation's in the run itself, further ones' in runs under it; the same one again in its own."""
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study")
    asked = ["model.pt on val", "best.pt on val", "model.pt on it's test", "best.pt on val", "model.pt on val"]
    found = [tracker.of_evaluation(evaluation, "evaluate").run_id for evaluation in asked]
    assert found[0] == found[4] == tracker.run_id
    assert found[1] == found[3]
    assert len({*found}) == 3
    assert {*tracker.children("RUNNING")} == {*found[1:3]}
    for run_id, evaluation in zip(found, asked, strict=True):
        assert tracker.client.get_run(run_id).data.tags["evaluation"] == evaluation
