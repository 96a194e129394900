"""Commands and snippets of README.md and docs/*.md, and which of them are run, which only parsed, and why."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

from tests.commands import ROOT

DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FENCED = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
OUTPUT = ("text", "json", "toml")
"""Languages of blocks that show something; spaces of sweeps are read by `test_commands`."""
INLINE = re.compile(r"`([^`\n]+)`")


@dataclass(frozen=True)
class Step:
    """A command line, or a Python snippet, of a document.

    Attributes:
        document: its path in the repository.
        line: where it begins.
        kind: shell or python.
        text: it, lines that end in a backslash joined.
    """

    document: str
    line: int
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}: {self.text.splitlines()[0]}"

    @property
    def words(self) -> list[str]:
        """A command line as the shell splits it."""
        return shlex.split(self.text, comments=True)

    @property
    def simple_commands(self) -> list[list[str]]:
        """The words of each command in a command line, which the shell's operators join."""
        words = shlex.shlex(self.text, posix=True, punctuation_chars=True)
        words.whitespace_split = True
        groups = groupby(words, lambda word: not set(word) <= set("();<>|&$"))
        return [list(group) for command, group in groups if command]


@cache
def steps_of(document: str) -> list[Step]:
    """What its fenced blocks ask the reader to do, in order; those in a language of OUTPUT ask nothing.

    Raises:
        ValueError: a block has another language than none, python or those.
    """
    text = (ROOT / document).read_text()
    steps = []
    for block in FENCED.finditer(text):
        line = text[: block.start("body")].count("\n") + 1
        indent, body = block["indent"], block["body"]
        body = "".join(part.removeprefix(indent) for part in body.splitlines(keepends=True))
        if block["language"] == "python":
            steps.append(Step(document, line, "python", body))
        elif not block["language"]:
            steps += [Step(document, line + at, "shell", command) for at, command in commands(body)]
        elif block["language"] not in OUTPUT:
            raise ValueError(f"{document}:{line}: a block of {block['language']!r}; give none for commands, or python, "
                             f"or {' or '.join(OUTPUT)}")  # fmt: skip
    return steps


def commands(body: str) -> list[tuple[int, str]]:
    """The commands of a block and the number of the line, from 0, that each begins in: as many lines as bash wants."""
    found, begun, at = [], "", 0
    for number, line in enumerate(body.splitlines()):
        at = at if begun else number
        begun += line.strip() if begun.endswith(" ") else line
        if begun.endswith("\\"):
            begun = begun.removesuffix("\\")
        elif begun.strip() and subprocess.run(["bash", "-n", "-c", begun], capture_output=True, check=False).returncode:
            begun += "\n"  # inside a loop, or a text in quotes
        else:
            found += [(at, begun)] if begun.strip() else []
            begun = ""
    assert not begun, f"bash wants more than {begun!r}"
    return found


def inline_commands(document: str) -> list[str]:
    """What stands in backquotes in the text and begins with `msrcnn VERB`."""
    text = FENCED.sub("", (ROOT / document).read_text())
    return [code for code in INLINE.findall(text) if re.match(r"msrcnn [a-z]", code)]


def inline_options(document: str) -> set[str]:
    """Names of options that stand in backquotes in the text, alone or in a command of ours."""
    text = FENCED.sub("", (ROOT / document).read_text())
    codes = [code for code in INLINE.findall(text) if re.match(r"(msrcnn .*)?--[a-z]", code)]
    return {name for code in codes for name in re.findall(r"(?<![\w-])(--[a-z][\w.-]*)", code)}


QUICK = ("docs/evaluation.md", "docs/report.md", "docs/questions.md", "docs/predict.md", "docs/data.md", "docs/api.md",
         "docs/cluster.md")  # fmt: skip
"""Run by `make test` one after the other in one folder, in which there is a detector with random weights."""
SLOW = {
    "README.md": ["gallery.png", "runs/first/model.pt", "runs/first-val/summary.json", "runs/scored/model.pt",
                  "report.html", "predictions/detections.json", "sweeps/inputs/table4.md"],
    "docs/training.md": ["runs/scratch/model.pt", "runs/small-ap/model.pt", "runs/tables/model.pt"],
    "docs/sweeps.md": ["sweeps/lr/lr.md", "powers.json", "sigma.html", "sweeps/heads"],
}  # fmt: skip
"""Run one after the other in one folder by `make test-slow`, trainings shortened by `SHORTER`, and some of what they
must make; parsed otherwise."""
REAL = ("docs/own_data.md",)
"""Run as written on real data by `make test-slow`."""
SERVED = ("docs/serving.md",)
"""Servers and those who ask them, run by `make test-slow`."""
SHORTER = {
    r"msrcnn (train|sweep) ": "--solver.epochs 1 --solver.batch 4 --data.short-side 64 --data.long-side 64 --threads 1",
    r"msrcnn (train|sweep) (?!.*r50-fpn)": "--model.channels 32 --model.hidden 64",
}
"""What is added to commands that would take days: regular expression, options. The second: memory, of 11 heads."""
IN_A_BUCKET = r"msrcnn shard .*s3://my-bucket"
"""What `make test-slow` runs against an object store on this machine, whatever the document."""
PARSED = {
    r"make (setup|demo|test)\b|source ": "the installation, the whole job, and this test itself",
    r"\.venv/bin/mlflow ui ": "serves until it is ended",
    r"(msrcnn|venv/bin/msrcnn) .*--address": "needs a cluster; tests/cluster submits and joins one",
    r"msrcnn (train|evaluate) .*--gpu": "needs a GPU",
    r"msrcnn sweep \S+\.toml": "the page shows the file; test_commands plans its trials",
    r"msrcnn study ": "hours; tests/pipelines/test_study.py runs one of the smallest size",
    r"msrcnn submit ": "needs a cluster; tests/cluster submits jobs to one",
    r"srun .*/bin/msrcnn ": "needs Slurm; tests/cluster/test_slurm.py has a stand-in for its commands",
    r"kubectl|docker|sbatch|export|\.venv/bin/uv|\(umask|for host|cluster/install\.sh|head=": "needs a cloud or hosts",
    r"(venv/bin/)?ray (up|down|exec|dashboard|start|status)\b": "likewise",
}
"""What is not run, and why. It is parsed as far as there is a parser, and the files that it names must be there."""


def parsed_only(step: Step) -> str:
    """Why a step is not run; empty if it is."""
    if step.kind == "python":
        return ""
    return next((why for pattern, why in PARSED.items() if re.match(pattern, step.text)), "")


def shortened(text: str) -> str:
    """A command with what is added to it."""
    return " ".join([text, *(options for pattern, options in SHORTER.items() if re.match(pattern, text))])


def named_files(step: Step) -> list[Path]:
    """Files of the repository that a command names."""
    names = re.findall(r"(?<![\w/])(?:cluster|benchmarks|docs)/[\w./-]+[\w]", step.text)
    return [ROOT / name for name in names]
