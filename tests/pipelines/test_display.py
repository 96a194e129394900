"""Progress: plain lines where there is no terminal, one live line where there is."""

import os
import pty
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from msrcnn.config import DataConfig, SolverConfig
from msrcnn.presets import PRESETS
from pipelines.display import Display
from pipelines.job import Job

RECORD = {
    "step": 40, "time": 0.0, "epoch": 0.5, "loss/class": 0.25, "loss/total": 1.5, "lr": 0.02, "images_per_second": 8.0,
    "data_wait": 0.031,
}  # fmt: skip
LINE = (
    "epoch  0.50  step 40/160  class 0.250 total 1.500  lr 0.0200  8.0 images/s  waiting for data 3%  left 4 min 00 s"
)


def make_job() -> Job:
    return Job(PRESETS["demo"].model, replace(SolverConfig(), batch=16), DataConfig(), (), 1280, 80, 160, 0, 1, False,
               60.0, "run", None)  # fmt: skip


@pytest.fixture
def job() -> Job:
    return make_job()


def test_a_record_is_one_plain_line(job):
    lines: list[str] = []
    with Display(job, lines.append) as display:
        display.log("begins")
        display.record(RECORD)
    assert lines == ["begins", LINE]


def test_losses_of_further_heads_are_shown_as_one_mean(job):
    heads = {"loss/maskiou": 0.5, "loss/maskiou.input-b": 0.25, "loss/maskiou.target-2": 0.75}
    record = {**{k: v for k, v in RECORD.items() if k != "loss/total"}, **heads, "loss/total": 1.75}
    assert "class 0.250 maskiou 0.500 maskiou heads 0.500 total 1.750  lr" in Display(job, print).line(record)


def test_without_a_terminal_lines_are_printed(job, capsys):
    with Display(job, None) as display:
        display.record(RECORD)
    assert capsys.readouterr().out == LINE + "\n"


CODE = """
from tests.pipelines.test_display import RECORD, make_job
from pipelines.display import Display
with Display(make_job(), None) as display:
    display.log("a line [that stays]")
    for step in (40, 80, 160):
        display.record({**RECORD, "step": step})
"""


def test_on_a_terminal_the_newest_record_stays_in_one_line():
    """In a pseudo-terminal of 200 columns: the line is drawn over itself, what is logged stays above."""
    main, terminal = pty.openpty()
    environment = {**os.environ, "COLUMNS": "200", "TERM": "xterm", "PYTHONPATH": os.getcwd()}
    done = subprocess.Popen([sys.executable, "-c", CODE], stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    written = b""
    while True:
        try:
            part = os.read(main, 65536)
        except OSError:  # the other side is closed
            break
        if not part:
            break
        written += part
    assert done.wait() == 0, written.decode()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())
    assert text.count("a line [that stays]") == 1
    last = text.rstrip().splitlines()[-1]
    assert "step 160/160" in last
    assert "left 0 s" in last
    assert "━" in last
