"""Which commit and which versions, from real git repositories."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pipelines.provenance import command, git_commit, made, provenance

NAMES = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}


def git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", root, *arguments], env={**os.environ, **NAMES}, check=True, capture_output=True)
    return done.stdout.decode().strip()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with one commit."""
    (tmp_path / "msrcnn").mkdir()
    (tmp_path / "msrcnn" / "boxes.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("read\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_a_clean_tree_is_its_commit_whatever_lies_beside_the_sources(tree):
    (tree / "runs").mkdir()
    (tree / "runs" / "note.txt").write_text("of a run")
    assert git_commit(tree) == git(tree, "rev-parse", "HEAD")


@pytest.mark.parametrize("name", ["boxes.py", "new.py"])
def test_changed_and_new_sources_are_dirty(tree, name):
    (tree / "msrcnn" / name).write_text("x = 2\n")
    assert git_commit(tree) == git(tree, "rev-parse", "HEAD") + "-dirty"


def test_no_commit_outside_a_checkout_of_its_own(tree, tmp_path_factory):
    assert git_commit(tmp_path_factory.mktemp("plain")) is None
    assert git_commit(tree / "msrcnn") is None  # in somebody else's repository
    empty = tmp_path_factory.mktemp("empty")
    git(empty, "init", "-q")
    assert git_commit(empty) is None


def test_without_git(tree, monkeypatch):
    monkeypatch.setenv("PATH", str(tree))
    assert git_commit(tree) is None
    assert "git_commit" not in provenance()


def test_versions_are_those_installed_and_nothing_heavy_is_imported():
    values = provenance()
    assert values["version/torch"] == metadata.version("torch")
    assert values["version/python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"version/msrcnn", "version/ray", "version/mlflow", "version/hotcoco"} <= values.keys()
    code = "import sys, pipelines.provenance as p; p.provenance(); print({'torch', 'ray', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_command_is_ours_and_has_no_password(monkeypatch):
    arguments = ["score", "--detections", "s3://key:secret@bucket/a b", "--out", "o"]
    monkeypatch.setattr(sys, "argv", ["/x/bin/msrcnn", *arguments])
    assert command() == "msrcnn score --detections 's3://bucket/a b' --out o"
    assert made()["command"] == command()
    monkeypatch.setattr(sys, "argv", ["/x/pipelines/__main__.py", "score"])
    assert command() == "msrcnn score"
    monkeypatch.setattr(sys, "argv", ["/x/ray/default_worker.py", "--node-ip-address=1.2.3.4"])
    assert command() == ""
    assert "command" not in made()
    assert made()["version/python"]
