"""What Ray Train's processes are told by the driver of a training."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from ray.train.v2._internal.constants import get_env_vars_to_propagate

from pipelines.worker_group import API_SERVER, asking_this_ray


@pytest.mark.parametrize("before", [None, "http://head:8265"])
def test_they_ask_the_ray_that_they_run_on(monkeypatch, before):
    """Whatever Ray the user's jobs go to, or was started last on this machine."""
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(gcs_address="10.0.0.1:6379"))
    monkeypatch.delenv(API_SERVER, raising=False)
    if before is not None:
        monkeypatch.setenv(API_SERVER, before)
    with asking_this_ray():
        assert get_env_vars_to_propagate()[API_SERVER] == "10.0.0.1:6379"
    assert os.environ.get(API_SERVER) == before
