"""A checkpoint on its way into the run directory while the storage fails for long."""

from pathlib import Path

import pytest
from ray._common.retry import retry
from ray.train import Checkpoint
from ray.train.v2._internal.constants import AWS_RETRYABLE_TOKENS

from msrcnn import MODEL
from msrcnn.config import DataConfig, SolverConfig
from msrcnn.presets import PRESETS
from pipelines import checkpoints
from pipelines.checkpoint_list import TRAINING, checkpoint_name
from pipelines.checkpoints import Checkpoints, NotStoredError
from pipelines.job import Job
from tests.mlflow_server import free_port


class Told:
    """A worker's post of rank 0 that keeps what it is given."""

    rank = 0

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.failures: list[Exception] = []

    def put(self, _: str, content: str) -> None:
        self.notes.append(content)

    def failed(self, error: Exception) -> None:
        self.failures.append(error)


def test_a_storage_that_stays_away_is_named_though_ray_knows_its_errors(tmp_path, monkeypatch):
    """Ray Train calls again what raises some of S3's errors; by then the local checkpoint is gone."""
    monkeypatch.setattr(checkpoints, "WAITS", (0.0,))
    url = f"s3://key:word@bucket/run?scheme=http&region=us-east-1&endpoint_override=127.0.0.1:{free_port()}"
    preset = PRESETS["demo"]
    job = Job(preset.model, SolverConfig(), DataConfig(), ((1, 1, "thing"),), 16, 1, 1, 1, 1, False, 60.0, url, None)
    told, local = Told(), tmp_path / "local"
    storing = Checkpoints(job, told, None, None)
    copy, met = storing._copy, []

    def one_attempt(*given):
        """The next ones fail as the first did; S3's client takes seconds for each."""
        if met:
            raise met[0]
        try:
            return copy(*given)
        except Exception as error:
            met.append(error)
            raise

    monkeypatch.setattr(storing, "_copy", one_attempt)
    local.mkdir()
    for name in (MODEL, TRAINING):
        (local / name).write_bytes(b"x")
    as_ray_does = retry("upload checkpoint", match=AWS_RETRYABLE_TOKENS, max_attempts=3)(storing._store)
    with pytest.raises(NotStoredError):
        as_ray_does(Checkpoint.from_directory(local), checkpoint_name(5))
    (failure,) = told.failures
    assert any(token in str(failure) for token in AWS_RETRYABLE_TOKENS)
    (note,) = told.notes
    assert str(failure)[:40] in note
    assert not Path(local).exists()
