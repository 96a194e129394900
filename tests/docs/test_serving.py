"""docs/serving.md: its servers are started as written, and asked as written."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pipelines.mlflow_model import log_model
from pipelines.tracking import Tracker
from tests.docs.documents import Step, steps_of
from tests.docs.prepared import environment_in, write_photos, write_program
from tests.predicting import write_model

SERVER = r"msrcnn serve |.*\bserve run |mlflow models serve "
STARTS = 120.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of somebody with a finished training, its model in MLflow's registry, and photographs."""
    model = write_model(tmp_path / "runs" / "first" / "model.pt")
    write_photos(tmp_path)
    log_model(Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study"), model, "detector", "msrcnn")
    write_program(tmp_path)
    return tmp_path


def environment(folder: Path) -> dict[str, str]:
    """An activated environment, and MLflow's address as the page exports it."""
    return environment_in(folder, MLFLOW_TRACKING_URI="sqlite:///mlflow.db")


@contextlib.contextmanager
def served(step: Step, folder: Path) -> Iterator[None]:
    """A server, until it answers and then for as long as the block lasts."""
    port = re.search(r"--port (\d+)", step.text)
    health = f"http://127.0.0.1:{port[1] if port else 8000}/{'ping' if 'mlflow' in step.text else 'health'}"
    log = folder / "server.log"
    with log.open("w") as said:
        server = subprocess.Popen(["bash", "-c", step.text], cwd=folder, env=environment(folder),
                                  stdout=said, stderr=said, start_new_session=True)  # fmt: skip
    try:
        ends = time.monotonic() + STARTS
        while not answers(health):
            assert server.poll() is None, f"{step} ended:\n{log.read_text()[-3000:]}"
            assert time.monotonic() < ends, f"{step} does not answer at {health}:\n{log.read_text()[-3000:]}"
            time.sleep(0.5)
        yield
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).status_code == 200
    except requests.RequestException:
        return False


def asked(step: Step, folder: Path) -> str:
    """What a step prints that asks the server, or needs none."""
    command = ["bash", "-c", step.text] if step.kind == "shell" else [sys.executable, "-c", step.text]
    done = subprocess.run(command, cwd=folder, env=environment(folder), text=True, capture_output=True, timeout=300,
                          check=False)  # fmt: skip
    assert done.returncode == 0, f"{step}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.ray
def test_the_servers_of_the_page_answer_its_clients(folder: Path) -> None:
    steps = [step for step in steps_of("docs/serving.md") if not step.text.startswith("export ")]
    servers = [step for step in steps if re.match(SERVER, step.text)]
    assert len(servers) == 3
    said = {}
    for server in servers:
        later = steps[steps.index(server) + 1 :]
        clients = later[: next((i for i, step in enumerate(later) if step in servers), len(later))]
        with served(server, folder):
            for step in clients:
                said[step.text.split()[0] if step.kind == "shell" else str(step)] = asked(step, folder)
            if "serve run" in server.text:  # nobody on the page asks this one
                assert requests.get("http://127.0.0.1:8000/", timeout=30).status_code == 200
    assert [json.loads(line)["detections"] for line in said["for"].splitlines()]
    assert any("street.jpg" in text and "pixels" in text for text in said.values())
    assert json.loads((folder / "answered.json").read_text())
