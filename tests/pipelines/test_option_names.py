"""Our list of each command's options is tyro's, and a wrong name leads to the one that is meant."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from msrcnn.errors import InputError, closest
from msrcnn.presets import PRESETS
from pipelines.option_names import HELP, check_names, named_options
from pipelines.options import TrainConfig
from pipelines.verbs import VERBS, parse, resolve

NAME = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
SWITCH = re.compile(r"(--|\.)no-([\w-]+)$")


def help_of(verb: str) -> str:
    """What `msrcnn VERB --help` says, as one line without the boxes."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        parse(verb, ["--help"])
    return " ".join(re.sub("[╭╮╰╯│─]", " ", said.getvalue()).split())


@pytest.mark.parametrize("verb", VERBS)
def test_the_options_are_those_that_help_lists(verb: str) -> None:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        parse(verb, ["--help"])
    lines = [line for line in said.getvalue().splitlines() if re.match(r"[│ ] +-", line)]
    listed = {re.sub(r"\.\d$", "", name) for line in lines for name in NAME.findall(line)}
    ours = dict(named_options(resolve(VERBS[verb].options)))
    assert listed - {*HELP} <= set(ours), listed - set(ours)
    assert {SWITCH.sub(r"\1\2", name) for name in ours} <= {SWITCH.sub(r"\1\2", name) for name in listed}


@pytest.mark.parametrize(("verb", "switch", "says"), [
    ("evaluate", "--no-figures", "draw no figures"), ("score", "--no-figures", "draw no figures"),
    ("predict", "--no-overlays", "draw no overlays"), ("submit", "--no-wait", "do not follow the job"),
    ("logs", "--no-follow", "print what there is, and do not wait"),
])  # fmt: skip
def test_help_of_a_switch_says_what_it_does(verb: str, switch: str, says: str) -> None:
    assert re.search(rf"{switch} {says}[^-]*(--|$)", help_of(verb))
    assert not re.search(rf"{switch} [^-]*True", help_of(verb))


@pytest.mark.parametrize(("verb", "usage"), [
    ("predict", "MODEL IMAGES..."), ("serve", "MODEL"), ("report", "RUNS..."), ("data", "SHARDS"), ("logs", "JOB"),
    ("stop", "JOB"), ("context", "[ADDRESS]"), ("sweep", "[SPACES...]"), ("compare", "A B"),
])  # fmt: skip
def test_what_has_no_name_is_called_after_what_it_is(verb: str, usage: str) -> None:
    assert re.search(rf"usage: msrcnn {verb} \[-h\] (\[OPTIONS\] )?{re.escape(usage)} ", help_of(verb))


def test_help_lists_the_presets() -> None:
    (listed,) = re.findall(r"single fields\. (.*?)\. NAME\+ap", help_of("train"))
    assert {*re.findall(r"[a-z\d-]+(?=[,:])", listed)} == {*PRESETS}


@pytest.mark.parametrize(("wrong", "meant"), [
    ("--weight", "--weights"), ("--lr", "--solver.lr"), ("--solver.learning-rate", "--solver.lr"),
    ("--batch_size", "--solver.batch"), ("--epochs", "--solver.epochs"), ("--model.chanels", "--model.channels"),
    ("--Data.Short-Side", "--data.short-side"), ("--num-workers", "--workers"),
])  # fmt: skip
def test_what_was_meant(wrong: str, meant: str) -> None:
    with pytest.raises(InputError, match=f"no option of msrcnn train; did you mean {meant}[?] msrcnn train --help"):
        check_names("msrcnn train", TrainConfig, ["--shards", "s", "--run", "r", wrong, "1"])


def test_what_is_right_is_let_through() -> None:
    right = [
        "--shards=s",
        "--run",
        "r",
        "--solver.weight_decay",
        "0",
        "--data.no-flip",
        "--model.heads",
        "input=b",
        "tau=0.5",
    ]
    check_names("msrcnn train", TrainConfig, right)
    check_names("msrcnn train", TrainConfig, ["--help"])


def test_a_word_that_is_like_two_or_none_means_none() -> None:
    tables = [f"table{number}" for number in range(1, 8)]
    assert closest("tabel4", tables) == "table4"
    assert closest("TABLE4", tables) == "table4"
    assert closest("table9", tables) == ""
    assert closest("something else", tables) == ""
    assert closest("anything", []) == ""
