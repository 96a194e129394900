"""What `msrcnn submit` finds wrong before a cluster is asked for anything."""

from __future__ import annotations

import re

import pytest

from msrcnn.errors import InputError
from pipelines.submit import check_places, job_name, run_of, submit, with_files
from pipelines.verbs import OF_A_CLUSTER, VERBS, parse, resolve

TRAIN = ("train", "--shards", "s3://b/shards", "--run", "s3://b/runs/first")


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch, tmp_path):
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def submitting(*arguments: str) -> str:
    """Why it cannot be submitted."""
    with pytest.raises(InputError) as raised:
        submit(parse("submit", arguments))
    return str(raised.value)


def test_options_before_the_verb_are_ours_and_those_behind_it_its_own():
    config = parse("submit", ["--address", "http://h:1", "--env", "A=1", "B", "--no-wait", *TRAIN, "--env", "x"])
    assert (config.address, config.env, config.wait) == ("http://h:1", ("A=1", "B"), False)
    assert config.command == (*TRAIN, "--env", "x")
    assert parse("submit", TRAIN).command == TRAIN


def test_a_command_that_is_right_lacks_only_a_cluster():
    assert "no cluster" in submitting(*TRAIN)
    assert "no cluster" in submitting("--env", "NCCL_DEBUG=INFO", *TRAIN, "--weights", "ResNet18_Weights.IMAGENET1K_V1")


@pytest.mark.parametrize(("arguments", "why"), [
    ((), "no command to submit; give one of shapes, shard"),
    (("jobs",), "'jobs' cannot be submitted"),
    ((*TRAIN, "--solver.batch", "0"), "batch = 0 is not accepted"),
    ((*TRAIN, "--address", "auto"), "--address: the job joins the cluster that it is submitted to"),
    (("train", "--shards", "shards", "--run", "s3://b/r"), "--shards shards: on the cluster"),
    (("train", "--shards", "/shards", "--run", "runs/r"), "--run runs/r: on the cluster"),
    ((*TRAIN, "--validation", "val"), "--validation val: on the cluster"),
    ((*TRAIN, "--weights", "mask_rcnn.pth"), "--weights mask_rcnn.pth: on the cluster"),
    ((*TRAIN, "--from-checkpoint", "runs/old"), "--from-checkpoint runs/old: on the cluster"),
    ((*TRAIN, "--tracking", "sqlite:///mlflow.db"), "--tracking sqlite:///mlflow.db: would be a file"),
    ((*TRAIN, "--tracking", "https://me:hunter2@mlflow"), "--tracking: is not submitted"),
    (("shapes",), "--out shapes: on the cluster"),
    (("data", "/shards", "--gallery", "3"), "--out gallery.png: on the cluster"),
    (("predict", "runs/first", "s3://b/a.jpg", "--out", "/o"), "MODEL runs/first: on the cluster"),
    (("predict", "/runs/first", "s3://b/a.jpg", "*.jpg", "--out", "/o"), "IMAGES *.jpg: on the cluster"),
    (("predict", "/runs/first", "s3://b/a.jpg"), "--out predictions: on the cluster"),
    (("--env", "AWS_SECRET_ACCESS_KEY=x", *TRAIN), "--env AWS_SECRET_ACCESS_KEY: is not forwarded"),
    (("--env", "NOT_SET_ANYWHERE", *TRAIN), "--env NOT_SET_ANYWHERE: is not set here"),
    (("--env", "2=3", *TRAIN), "--env = '2' is not accepted"),
    (("--packages", "locked", "--image", "i", *TRAIN), "--packages = 'locked' is not accepted"),
])  # fmt: skip
def test_mistakes_are_said_before_a_cluster_is_needed(arguments, why):
    assert why in submitting(*arguments)


def test_every_verbs_places_are_found():
    """An option of a verb that takes a path is one that is checked: none slips through by its type."""
    wrong = {
        "shard": [("--annotations", "a.json"), ("--images", "i"), ("--out", "o")],
        "evaluate": [("--model", "m"), ("--shards", "s"), ("--out", "o")],
        "score": [("--detections", "d"), ("--shards", "s"), ("--out", "o")],
        "rescore": [("--detections", "d"), ("--shards", "s"), ("--out", "o")],
        "export": [("--detections", "d"), ("--shards", "s"), ("--out", "o")],
    }
    for verb, options in wrong.items():
        for bad, _ in options:
            arguments = [part for name, value in options for part in (name, value if name == bad else f"/{value}")]
            with pytest.raises(InputError, match=f"^{bad} .*on the cluster"):
                check_places(parse(verb, arguments))
        check_places(parse(verb, [part for name, value in options for part in (name, f"/{value}")]))
    sweep = ["table4", "--shards", "/s", "--validation", "/v", "--out", "/o", "--many-heads"]
    check_places(parse("sweep", [*sweep, "--weights", "none"]))
    for extra in (["--trunk", "t"], ["--test-dev", "t"]):
        with pytest.raises(InputError, match=f"{extra[0]} t: on the cluster"):
            check_places(parse("sweep", [*sweep, *extra]))
    places = {"--runs": "/r", "--shards": "/s", "--training": "/t", "--out": "/o"}
    for bad in ("", *places):
        given = {**places, bad: "here"} if bad else places
        report = [given["--runs"], *(part for name in list(places)[1:] for part in (name, given[name]))]
        if not bad:
            check_places(parse("report", report))
            continue
        shown = "RUNS" if bad == "--runs" else bad  # has no option's name
        with pytest.raises(InputError, match=f"^{shown} here: on the cluster"):
            check_places(parse("report", report))


def test_spaces_of_this_machine_go_along(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "other.toml"):
        (tmp_path / name).write_text("")
    arguments, files = with_files("sweep", ["table4", "mine.toml", "absent.toml", "--out", "/o"])
    assert arguments == ("table4", "files/mine.toml", "absent.toml", "--out", "/o")
    assert [file.name for file in files] == ["mine.toml"]
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.toml").write_text("")
    with pytest.raises(InputError, match="two spaces with this file name"):
        with_files("sweep", ["mine.toml", "deep/mine.toml"])


def test_one_run_is_one_job_and_its_name_can_be_read():
    names = [job_name("train", run) for run in ("s3://b/runs/First Run", "s3://c/runs/First Run", "/nfs/x")]
    assert re.fullmatch(r"train-First-Run-[0-9a-f]{6}", names[0])
    assert len({*names}) == 3
    assert job_name("train", "/nfs/x") == names[2]
    assert job_name("data", "") != job_name("data", "")
    assert run_of(parse("train", TRAIN[1:])) == run_of(parse("train", [*TRAIN[1:-1], "s3://b/runs/first/"]))
    assert run_of(parse("data", ["/shards"])) == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_its_options_and_its_function(verb):
    assert resolve(VERBS[verb].options).__doc__
    if verb in (*OF_A_CLUSTER, "shapes"):  # the others import torch, and are seen to run elsewhere
        assert callable(resolve(VERBS[verb].run))
