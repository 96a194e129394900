"""Jobs on a real cluster, made by hand, with token authentication, seen from a machine that is not in it."""

from __future__ import annotations

import re
import signal

import pytest

from tests.by_hand import ByHand
from tests.submitting import Laptop, Submitting

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head alone; these jobs need no more."""
    with ByHand(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def laptop(cluster, tmp_path) -> Laptop:
    return Laptop(tmp_path, cluster)


def state_of(laptop: Laptop, job: str) -> str:
    listed = laptop.run("jobs")
    assert listed.returncode == 0, listed.stderr
    return next(line.split()[1] for line in listed.stdout.splitlines() if line.startswith(f"{job} "))


def test_a_job_is_followed_to_its_end_and_its_exit_code_is_ours(laptop, tmp_path):
    out = tmp_path / "shapes"
    done = laptop.run("submit", "shapes", "--out", str(out), "--train", "3", "--val", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    job = re.search(r"job (shapes-shapes-\w{6}) submitted", done.stdout)[1]
    assert f"{out}: 3 training and 2 validation images" in done.stdout
    assert f"job {job} succeeded" in done.stdout
    assert len(list((out / "train").iterdir())) == 3
    assert state_of(laptop, job) == "SUCCEEDED"
    printed = laptop.run("logs", job, "--no-follow")
    assert f"{out}: 3 training" in printed.stdout
    assert laptop.run("logs", job).returncode == 0
    again = laptop.run("submit", "shapes", "--out", str(out))  # fails there: the folder is full
    assert again.returncode == 2, again.stdout + again.stderr
    assert f"job {job}-2 submitted" in again.stdout
    assert f"msrcnn: {out}: " in again.stdout
    assert f"job {job}-2 failed with exit code 2" in again.stdout


@pytest.mark.slow
def test_images_are_detected_in_by_a_job(laptop, tmp_path):
    from tests.predicting import files_in, write_image, write_model

    model, out = write_model(tmp_path / "run" / "model.pt"), tmp_path / "out"
    write_image(tmp_path / "photos" / "a.png", 0)
    (tmp_path / "photos" / "b.png").write_bytes(b"no image")
    laptop.cluster.add("worker", 1)
    done = laptop.run("submit", "predict", str(model.parent), str(tmp_path / "photos"), "--out", str(out))
    laptop.cluster.kill("worker")
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"job predict-out-\w{6} failed with exit code 1", done.stdout)
    assert "1 could not be used:" in done.stdout
    assert files_in(out) == ["detections.json", "detections.parquet", "images.json", "overlays/a.png"]


@pytest.mark.slow
def test_the_same_command_follows_the_job_and_another_one_is_refused(laptop, tmp_path):
    """A job that takes long enough is submitted by one, found by a second, followed by both, stopped by a third."""
    shapes = ["shapes", "--out", str(tmp_path / "shapes"), "--train", "20000", "--size", "512"]
    done = laptop.run("submit", "--no-wait", *shapes)
    job = re.search(r"job (\S+) submitted", done.stdout)[1]
    assert f"msrcnn logs {job} follows it" in done.stdout
    second = laptop.run("submit", "--no-wait", *shapes)
    assert (second.returncode, f"job {job} is running already" in second.stdout) == (0, True)
    other = laptop.run("submit", *shapes, "--seed", "1")
    assert other.returncode == 2
    assert f"job {job} works on it with another command" in other.stderr
    following = Submitting(tmp_path / "following", laptop, shapes)
    following.start()
    following.wait_for(f"job {job} is running already")
    stopped = laptop.run("stop", job)
    assert f"job {job} was stopped" in stopped.stdout, stopped.stdout + stopped.stderr
    assert following.finish() == 1
    assert f"job {job} was stopped" in following.log()
    assert state_of(laptop, job) == "STOPPED"
    after = laptop.run("submit", *shapes[:3], "--train", "1", "--val", "1")  # the run is free; the id is not
    assert f"job {job}-2 submitted" in after.stdout
    assert laptop.run("stop", job).returncode == 0  # has ended already


@pytest.mark.slow
def test_interrupted_the_job_goes_on(laptop, tmp_path):
    following = Submitting(tmp_path / "f", laptop, ["shapes", "--out", str(tmp_path / "s"), "--train", "20000"])
    following.start()
    following.wait_for("Running entrypoint|submitted")
    job = re.search(r"job (\S+) submitted", following.log())[1]
    following.wait_for("Running entrypoint")
    following.driver.send_signal(signal.SIGINT)
    assert following.finish() == 130
    assert f"job {job} goes on" in following.log()
    assert state_of(laptop, job) == "RUNNING"
    laptop.run("stop", job)


def test_without_the_token_nothing_is_told(laptop, tmp_path):
    (tmp_path / "wrong").write_text("x" * 64)
    wrong = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "wrong")}
    for arguments, changed in (
        (["jobs"], wrong), (["submit", "data", "/shards"], wrong), (["logs", "x"], wrong), (["stop", "x"], wrong),
        (["jobs"], {"RAY_AUTH_MODE": "disabled"}),
    ):  # fmt: skip
        done = laptop.run(*arguments, **changed)
        assert done.returncode == 2, done.stdout + done.stderr
        assert re.search("asks for Ray's token.*RAY_AUTH_TOKEN_PATH", done.stderr), done.stderr


def test_a_job_that_is_not_there(laptop):
    for verb in ("logs", "stop"):
        done = laptop.run(verb, "absent-1")
        assert (done.returncode, "absent-1: no such job" in done.stderr) == (2, True), done.stderr


def test_an_address_that_is_kept_is_enough(laptop):
    assert laptop.run("context", laptop.cluster.address).returncode == 0
    listed = laptop.run("jobs", RAY_API_SERVER_ADDRESS="")
    assert listed.returncode == 0, listed.stderr
    assert "cluster.json)" in listed.stdout
