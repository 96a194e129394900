"""Our list of each command's options is tyro's, and a wrong name leads to the one that is meant."""

from __future__ import annotations

import contextlib
import io
import re

import pytest

from msrcnn.errors import InputError, closest
from pipelines.option_names import HELP, check_names, named_options
from pipelines.options import TrainConfig
from pipelines.verbs import VERBS, parse, resolve

NAME = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
SWITCH = re.compile(r"(--|\.)no-([\w-]+)$")


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
