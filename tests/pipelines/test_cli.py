"""The command line as a person meets it: in a process of its own."""

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipelines.cli import main
from pipelines.manifest import Manifest, Part, write_manifest
from pipelines.options import VerifyConfig
from pipelines.schema import SHARD_ROW, ShardMeta
from pipelines.verbs import VERBS, parse


def msrcnn(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)


HELP = """
import contextlib, io, json, os, sys
from pipelines.cli import main

for verb in sys.argv[1:]:
    if os.fork():
        os.wait()
        continue
    sys.argv[1:], said, code = [*filter(None, [verb]), "--help"], io.StringIO(), None
    with contextlib.redirect_stdout(said):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    heavy = {"torch", "ray", "mlflow", "numpy", "pyarrow"} & set(sys.modules)
    print(json.dumps([verb, code or 0, said.getvalue(), sorted(heavy)]), flush=True)
    os._exit(0)
"""
"""Asks each verb for help in a process of its own; these begin with what they all import."""


@pytest.fixture(scope="module")
def helped() -> dict[str, list]:
    """Of each verb: exit code, help, and which of the heavy packages are imported then."""
    command = [sys.executable, "-c", HELP, "", *VERBS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return {verb: found for verb, *found in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("verb", ["", *VERBS])
def test_help_imports_neither_torch_nor_ray(helped, verb):
    code, said, heavy = helped[verb]
    assert (code, heavy) == (0, [])
    assert (verb or "evaluate") in said


def test_help_is_quick():
    began = time.monotonic()
    done = msrcnn("train", "--help")  # the most options
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - began < 5  # 0.1-0.4 s on an idle machine


def test_presets_change_defaults_and_options_change_presets():
    plain = parse("train", ["--shards", "s", "--run", "r"])
    assert (plain.preset, plain.model.levels, plain.data.short_side) == ("r18-fpn", (4, 5), 600)
    demo = parse("train", ["--shards", "s", "--run", "r", "--preset", "demo", "--solver.epochs", "1"])
    assert (demo.preset, demo.model.channels, demo.solver.epochs) == ("demo", 64, 1)
    assert demo.solver.lr == parse("train", ["--shards=s", "--run=r", "--preset=demo"]).solver.lr


def test_rows_of_the_papers_tables_by_letter_and_number():
    arguments = ["--model.maskiou.input", "d", "--model.maskiou.target", "3", "--model.selection.method", "hard"]
    model = parse("train", ["--shards", "s", "--run", "r", *arguments]).model
    assert (model.maskiou.input, model.maskiou.target, model.selection.method) == ("d", 3, "hard")


def test_the_maskiou_head_beyond_the_paper():
    given = "--model.maskiou.rois detections --model.maskiou.tau -1 --model.maskiou.input none --model.maskiou.evidence"
    head = parse("train", ["--shards", "s", "--run", "r", *given.split(), "--model.maskiou.loss", "bce"]).model.maskiou
    assert (head.rois, head.tau, head.input, head.evidence, head.loss) == ("detections", -1, "none", True, "bce")


def test_further_heads_are_named_one_after_the_other():
    paths = ["--shards", "s", "--run", "r"]
    options = parse("train", [*paths, "--model.heads", "input=b", "target=2,tau=0.5", "--model.hidden", "128"])
    assert options.model.heads == ("input=b", "target=2,tau=0.5")
    assert options.model.hidden == 128
    assert parse("train", paths).model.heads == ()


def test_sharding_has_flags_without_values():
    arguments = ["--annotations", "s3://bucket/a.json", "--images", "i", "--out", "o"]
    plain = parse("shard", arguments)
    assert (plain.annotations, plain.strict) == ("s3://bucket/a.json", False)  # a Path would lose a slash
    assert parse("shard", [*arguments, "--strict"]).strict
    assert parse("shard", ["--verify", "--out", "o"]) == VerifyConfig("o")
    assert parse("train", ["--shards", "s3://bucket/s", "--run", "r"]).shards == "s3://bucket/s"


def test_evaluations_have_flags_without_values():
    arguments = ["--model", "m", "--shards", "s", "--out", "s3://bucket/o"]
    plain = parse("evaluate", arguments)
    assert (plain.out, plain.strict, plain.gpu, plain.figures) == ("s3://bucket/o", False, False, True)
    changed = parse("evaluate", [*arguments, "--strict", "--gpu", "--no-figures"])
    assert (changed.strict, changed.gpu, changed.figures) == (True, True, False)
    several = ["--detections", "d", "--shards", "s", "--out", "o", "--maskiou-powers", "0", "1.5", "--top-k", "10", "0"]
    assert (parse("rescore", several).maskiou_powers, parse("rescore", several).top_k) == ((0.0, 1.5), (10, 0))


def test_switches_of_a_training_and_of_its_preset():
    needed = ["--shards", "s", "--run", "r"]
    plain = parse("train", needed)
    assert (plain.gpu, plain.compile, plain.data.flip, plain.model.maskiou.enabled) == (False, False, True, True)
    changed = parse("train", [*needed, "--gpu", "--compile", "--data.no-flip", "--model.maskiou.no-enabled"])
    assert (changed.gpu, changed.compile, changed.data.flip) == (True, True, False)
    assert not changed.model.maskiou.enabled
    assert parse("train", [*needed, "--preset", "r101-dcn-fpn"]).model.deformable
    assert parse("train", [*needed, "--workers", "2:8"]).worker_range == (2, 8)


def test_verify_prints_counts_or_a_line_for_each_broken_shard(tmp_path, monkeypatch, capfd):
    """Two shards; the second one is damaged afterwards."""
    parts = []
    for name in ("shard-00000.parquet", "shard-00001.parquet"):
        pq.write_table(SHARD_ROW.with_metadata(ShardMeta("x", ()).to_metadata()).empty_table(), tmp_path / name)
        content = (tmp_path / name).read_bytes()
        parts.append(Part(name, 0, 0, len(content), hashlib.sha256(content).hexdigest()))
    write_manifest(Manifest(tmp_path, "x", (), tuple(parts), {}, {}))
    monkeypatch.setattr(sys, "argv", ["msrcnn", "shard", "--verify", "--out", str(tmp_path)])
    main()
    whole = capfd.readouterr()
    assert "is whole: 2 shards, 0 images" in whole.out
    assert whole.err == ""
    (tmp_path / "shard-00001.parquet").write_bytes(content[:50])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    broken = capfd.readouterr()
    assert broken.out == f"broken: shard-00001.parquet: 50 bytes, the manifest says {len(content)}\n"
    assert broken.err.count("\n") == 1
    assert "1 of 2 shards are broken" in broken.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], "'trian' is not a command; did you mean train? there are shapes, shard, data, train"),
        (["train", "--preset", "r19", "--shards", "s", "--run", "r"], "--preset r19: no such preset"),
        (["train", "--shards", "nowhere", "--run", "r"], "no manifest.json; make shards with `msrcnn shard`"),
        (
            ["train", "--shards", "s", "--run", "r", "--workers", "17"],
            "--workers = '17' is not accepted; it must be at most",
        ),
        (["train", "--shards", "s", "--run", "r", "--solver.lr", "-1"], "solver.lr = -1.0 is not accepted"),
        (["evaluate", "--model", "m", "--shards", "nowhere", "--out", "o"], "no manifest.json"),
        (["evaluate", "--model", "m", "--shards", "s", "--out", "o", "--batch", "-1"], "--batch = -1 is not accepted"),
        (["score", "--detections", "d", "--shards", "nowhere", "--out", "o"], "no manifest.json"),
        (["score", "--detections", "d", "--shards", "s", "--out", "o", "--seed", "-1"], "--seed = -1 is not accepted"),
        (["rescore", "--detections", "d", "--shards", "nowhere", "--out", "o"], "no manifest.json"),
        (["rescore", "--detections", "d", "--shards", "s", "--out", "o", "--top-k", "-1"], "--top-k = (-1,) is not"),
        (["export", "--detections", "d", "--shards", "nowhere", "--out", "o"], "no manifest.json"),
        (["export", "--detections", "d", "--shards", "s", "--out", "o", "--test-dev", "a/b"], "--test-dev = 'a/b' is"),
        (["report", "nowhere"], "nowhere: no such folder, or an empty one; give one that `msrcnn evaluate` made"),
        (["report", "a", "--gallery", "-1"], "--gallery = -1 is not accepted"),
        (["shapes", "--classes", "9", "--out", "o"], "shapes.classes = 9 is not accepted"),
        (["shard", "--annotations", "a.json", "--images", "i", "--out", "o"], "i: no such folder"),
        (["shard", "--annotations", "a", "--images", "nosuch://i", "--out", "o"], "nosuch://i: no file system for it"),
        (["shard", "--verify", "--out", "o"], "o: no manifest.json"),
        (["train", "--shards", "nosuch://s", "--run", "r"], "nosuch://s: no file system for it"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capfd, arguments, says):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["msrcnn", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    said = capfd.readouterr().err
    assert says in said
    assert len(said.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing half-written


def test_a_process_of_its_own_says_no_more(tmp_path):
    """Neither does what it imports."""
    done = msrcnn("evaluate", "--model", "m", "--shards", "nowhere", "--out", "o", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no manifest.json" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback():
    assert "Traceback" in msrcnn("--debug", "trian").stderr


def test_a_reader_who_has_enough_sees_no_traceback():
    """As `| head` leaves a pipe: nobody reads it any more."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "train", "--help"]
    with os.fdopen(write, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_broken_connection_is_told():
    """Only standard output may break without a word."""
    code = """
import socket
from pipelines import cli

def talk(options):
    one, other = socket.socketpair()
    other.close()
    one.send(b"x")

cli.run_of = lambda verb: talk
cli.main()
"""
    command = [sys.executable, "-c", code, "train", "--shards", "s", "--run", "r"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "BrokenPipeError" in done.stderr


def test_shapes_writes_a_data_set_and_refuses_to_overwrite_it(tmp_path):
    arguments = ["shapes", "--out", "images", "--train", "3", "--val", "2", "--size", "64"]
    done = msrcnn(*arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "images" / "train").glob("*.jpg"))) == 3
    again = msrcnn(*arguments, cwd=tmp_path)
    assert again.returncode == 2
    assert "delete it" in again.stderr
