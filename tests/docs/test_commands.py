"""Every command and snippet of the documents is run, or parsed with a reason why it cannot be run."""

from __future__ import annotations

import contextlib
import io
import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from cluster.credentials import check_command
from msrcnn.presets import find_preset
from pipelines.cli import main
from pipelines.sweep_plan import make_plan
from pipelines.verbs import VERBS, parse
from tests.commands import ROOT
from tests.docs.documents import (
    DOCUMENTS,
    FENCED,
    IN_A_BUCKET,
    QUICK,
    REAL,
    SERVED,
    SLOW,
    Step,
    inline_commands,
    inline_options,
    named_files,
    parsed_only,
    shortened,
    steps_of,
)
from tests.docs.prepared import environment_in, write_data, write_finished, write_photos, write_program, write_weights
from tests.object_store import object_store

FOREIGN = {"--gpus", "--requeue", "--time", "--node-ip-address", "--timeout", "--env-manager", "--model.maskiou",
           "--model", "--solver", "--data"}  # fmt: skip
"""Options of other programs, and beginnings of ours."""
MAKES = {"demo": ["shapes", "shard", "train", "shard", "evaluate", "report"]}
"""Which of our commands the targets of the Makefile give."""
STEPS = [step for document in DOCUMENTS for step in steps_of(document)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_step_is_run_or_there_is_a_reason(document: str) -> None:
    open_ = [s for s in steps_of(document) if not parsed_only(s) and document not in (*QUICK, *SLOW, *REAL, *SERVED)]
    assert not open_, f"neither run nor parsed, see tests/docs/documents.py: {'; '.join(map(str, open_))}"


def ours(words: list[str]) -> list[str] | None:
    """Verb and options where a command is one of ours, perhaps behind another program; None otherwise."""
    for place, word in enumerate(words):
        if re.fullmatch(r".*/bin/msrcnn|.*\.sbatch", word) or (place == 0 and word == "msrcnn"):
            return words[place + 1 :]
    return None


def check_options(verb: str, options: list[str]) -> None:
    """As far as can be checked without running: the parser takes them, and what is submitted too."""
    parsed = parse(verb, options)
    if verb == "submit":
        check_command(parsed.command)
        check_options(parsed.command[0], list(parsed.command[1:]))


def check_click(words: list[str]) -> None:
    """The options of a command of Ray's or MLflow's, as its own parser takes them."""
    from mlflow.cli import cli as mlflow
    from ray.scripts.scripts import cli as ray

    group = {"ray": ray, "mlflow": mlflow}[Path(words[0]).name]
    context = group.make_context(words[0], words[1:], resilient_parsing=True)
    command = group.get_command(context, words[1])
    assert command is not None, words
    command.make_context(words[1], list(words[2:]), resilient_parsing=False)


@pytest.mark.parametrize("step", [s for s in STEPS if s.kind == "shell"], ids=str)
def test_a_command_is_one_that_its_program_takes(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for path in named_files(step):
        assert path.exists(), path
    for words in step.simple_commands:
        if (command := ours(words)) is not None:
            check_options(command[0], command[1:])
        elif Path(words[0]).name in ("ray", "mlflow"):
            check_click(words)
        elif words[0] == "make":
            check_make(words[1:])


def check_make(targets: list[str]) -> None:
    """Make knows the targets, and those of our commands that it would run have options that we take."""
    plan = subprocess.run(["make", "-n", "-B", *targets], cwd=ROOT, capture_output=True, text=True, check=False)
    assert plan.returncode == 0, plan.stderr
    lines = plan.stdout.replace("\\\n", " ").splitlines()
    found = [command for line in lines if (command := ours(line.split()))]
    for command in found:
        check_options(command[0], command[1:])
    assert [command[0] for command in found] == MAKES.get(targets[0], [])


@cache
def options_of(verb: str) -> frozenset[str]:
    """What `msrcnn VERB --help` lists."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        parse(verb, ["--help"])
    return frozenset(re.findall(r"(?<![\w-])--[a-z][\w.-]*", said.getvalue()))


def test_the_space_that_a_page_shows_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as the page says, the page's command plans a trial for each learning rate."""
    (shown,) = (block["body"] for block in FENCED.finditer((ROOT / "docs/sweeps.md").read_text())
                if block["language"] == "toml")  # fmt: skip
    (step,) = (step for step in steps_of("docs/sweeps.md") if ".toml" in step.text)
    (tmp_path / step.words[2]).write_text(shown)
    monkeypatch.chdir(tmp_path)
    trials = make_plan(parse("sweep", step.words[2:])).trials.values()
    assert [trial.train.solver.lr for trial in trials] == [0.01, 0.02, 0.04, 0.08]
    assert {(trial.train.model.channels, trial.train.weights) for trial in trials} == {
        (find_preset("small").model.channels, "ResNet18_Weights.IMAGENET1K_V1")
    }


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d not in ("docs/log.md", "docs/api.md")])
def test_commands_and_options_in_the_text_exist(document: str) -> None:
    every = {"--verify", "--debug", "--help", "--version"}.union(*(options_of(verb) for verb in VERBS))
    for code in inline_commands(document):
        words = [word for word in code.split() if re.fullmatch(r"[a-z-]+", word)]
        assert words[1] in VERBS, code
        named = set(re.findall(r"(?<![\w-])(--[a-z][\w.-]*)", code))
        assert words[1] == "submit" or named <= options_of(words[1]) | {"--verify"}, code
    assert inline_options(document) <= every | FOREIGN, inline_options(document) - every


@contextlib.contextmanager
def working_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader's shell: in the folder, with nothing in the environment that the documents do not say."""
    with monkeypatch.context() as changed:
        changed.chdir(folder)
        changed.delenv("MLFLOW_TRACKING_URI", raising=False)
        changed.setenv("XDG_CONFIG_HOME", str(folder / "config"))
        yield


def run_here(step: Step, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A step in this process, whose Ray serves all of them."""
    if step.kind == "python":
        script = folder / ".snippet.py"
        script.write_text(step.text)
        runpy.run_path(str(script), run_name="__main__")
        return
    words = step.words
    assert words[0] == "msrcnn", step
    monkeypatch.setattr(sys, "argv", words)
    code = None
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    assert not code, f"{step}: exit code {code}"


def copy_evaluation(old: Path, new: Path) -> None:
    """An evaluation as of another model, if it is not there."""
    if not new.exists():
        shutil.copytree(old, new)
        summary = json.loads((old / "summary.json").read_text()) | {"model_sha256": new.name}
        (new / "summary.json").write_text(json.dumps(summary))


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_reader_goes_through_the_quick_documents(tmp_path: Path, monkeypatch, capsys) -> None:
    """In one folder, which has shards/val and a finished training before."""
    write_data(tmp_path)
    write_photos(tmp_path)
    write_finished(tmp_path)
    with working_in(tmp_path, monkeypatch):
        for step in (step for document in QUICK for step in steps_of(document)):
            for other in re.findall(r"runs/(?:second|[ab][0-9])-val", step.text):  # of other trainings
                copy_evaluation(Path("runs/first-val"), Path(other))
            if not parsed_only(step) and not re.match(IN_A_BUCKET, step.text):
                run_here(step, monkeypatch, tmp_path)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    for made in ("runs/first-val/summary.json", "scored/summary.json", "other/summary.json", "fusions.json",
                 "coco/segm.json", "shards/train/manifest.json", "gallery.png", "report.html", "both.html", "ab.json",
                 "predictions/overlays/street.jpg", "found/images.json", "holiday/overlays/holiday.mp4"):  # fmt: skip
        assert (tmp_path / made).exists(), made
    assert "mask score above" in said.out  # of a snippet


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of somebody with a data set and weights, who goes through the documents of SLOW in their order."""
    folder = tmp_path_factory.mktemp("reader")
    write_data(folder)
    write_photos(folder)
    write_weights(folder)
    write_program(folder)
    return folder


def run_in_a_shell(step: Step, folder: Path, **variables: str) -> None:
    """A step as a command of its own, with a Ray of its own."""
    began = time.monotonic()
    command = ["bash", "-c", shortened(step.text)] if step.kind == "shell" else [sys.executable, "-c", step.text]
    done = subprocess.run(command, cwd=folder, env=environment_in(folder, **variables), text=True,
                          capture_output=True, timeout=900, check=False)  # fmt: skip
    print(f"{time.monotonic() - began:.0f} s: {step}", flush=True)
    assert done.returncode == 0, f"{step}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.ray
def test_shards_go_to_a_bucket(reader: Path) -> None:
    import boto3

    steps = [step for step in STEPS if re.match(IN_A_BUCKET, step.text)]
    assert len(steps) >= 2
    with object_store() as url:
        endpoint = f"http://127.0.0.1:{url.rpartition(':')[2]}"
        keys = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "word",
                "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}  # fmt: skip
        client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="key",
                              aws_secret_access_key="word")  # fmt: skip
        client.create_bucket(Bucket="my-bucket")
        for step in steps:
            run_in_a_shell(step, reader, **keys)
        held = {item["Key"] for item in client.list_objects_v2(Bucket="my-bucket")["Contents"]}
    assert {"shards/train/manifest.json", "shards/val/manifest.json"} <= held


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("document", "makes"), SLOW.items())
def test_the_trainings_of_a_document_run(document: str, makes: list[str], reader: Path) -> None:
    for step in steps_of(document):
        if not parsed_only(step):
            run_in_a_shell(step, reader)
    for made in makes:
        assert (reader / made).exists(), made
