"""What Ray Tune is kept from."""

from __future__ import annotations

from ray.tune.execution.class_cache import _ActorClassCache

from pipelines.sweep_tune import KEYS, keep_keys


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
