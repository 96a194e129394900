"""The image: what its Dockerfile says, and its installation without Docker. No Docker engine is needed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from cluster.package import ENDINGS
from msrcnn import __version__
from tests.commands import ROOT

FOLDER = ROOT / "cluster"
INSTALL = FOLDER / "install.sh"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
DEVELOPMENT = {"pytest", "moto", "ruff", "mypy", "pre-commit"}
PIN = re.compile(r"^([a-z0-9.-]+)==(\S+)(.*)$", re.MULTILINE)
HOST = re.compile(r"://|\b(?!example\.)[\w-]+\.(?:com|org|net|io|ai|dev|cn)\b")


def instructions() -> list[tuple[str, str]]:
    """Each instruction's name and the rest, continued lines joined."""
    lines = [line for line in DOCKERFILE.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in joined.splitlines() if line]


def of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


def in_context(path: Path) -> bool:
    """Whether the ignore file lets a file of the tree into the build: its last pattern that matches decides."""
    names = [str(path), *(str(parent) for parent in path.parents if parent != Path("."))]
    taken = True
    for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        anywhere = line.startswith("**/")
        depth = pattern.count("/") + 1
        candidates = path.parts if anywhere else [name for name in names if name.count("/") + 1 == depth]
        if any(fnmatch(name, pattern) for name in candidates):
            taken = line.startswith("!")
    return taken


def copied() -> dict[Path, str]:
    """Every file that COPY takes from the tree, and where it puts it, below the working folder."""
    files: dict[Path, str] = {}
    for line in of("COPY"):
        *sources, target = line.split()
        for source in sources:
            found = sorted(ROOT.glob(source))
            assert found, f"COPY {source}: there is no such file"
            for start in found:
                for path in [start] if start.is_file() else sorted(p for p in start.rglob("*") if p.is_file()):
                    inside = path.relative_to(start) if start.is_dir() else Path(path.name)
                    if in_context(path.relative_to(ROOT)):
                        files[path] = str(Path(target) / inside)
    return files


def pins(lock: Path) -> set[tuple[str, ...]]:
    return {match.groups() for match in PIN.finditer(lock.read_text())}


def test_it_copies_the_program_and_nothing_else() -> None:
    files = {str(path.relative_to(ROOT)): target for path, target in copied().items()}
    packages = ("msrcnn", "pipelines", "tune_spaces")
    program = [str(p.relative_to(ROOT)) for n in packages for p in (ROOT / n).rglob("*") if p.suffix in ENDINGS]
    assert len(program) > 80
    for name in [*program, "cluster/install.sh", "cluster/requirements.lock", "cluster/session.py", "pyproject.toml"]:
        assert files[name] == name  # the tree inside is as it is here
    assert not any("__pycache__" in name for name in files)
    for outside in ("tests/conftest.py", ".git/HEAD", "demo/run/model.pt", ".env", "docs/log.md", "cluster/slurm/x"):
        assert not in_context(Path(outside)), outside


def test_it_runs_as_nobody_with_rights() -> None:
    names = [name for name, _ in instructions()]
    (user,) = of("USER")
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)  # numbers: Kubernetes cannot see what a name means
    assert "RUN" not in names[names.index("USER") :]
    environment = " ".join(of("ENV"))
    assert "HOME=/home/msrcnn" in environment  # `ray up` reads it there
    assert "PATH=/opt/venv/bin:$PATH" in environment
    assert of("FROM") == ["python:3.11-slim"]
    assert of("ARG") == ["VARIANT=cuda"]


def test_scripts_are_bash_and_tell_nothing() -> None:
    scripts = [*of("RUN"), INSTALL.read_text()]
    assert len(scripts) >= 5
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert any("apt-get install" in script and "wget" in script for script in scripts)  # KubeRay's probes
    for text in (DOCKERFILE, INSTALL.read_text(), (FOLDER / "requirements.lock").read_text()):
        assert not HOST.search(text), HOST.search(text)
        assert not re.search(r"(?i)password|secret_|access_key|--index|extra-index|_token=", text)
    assert HOST.search("pip install --index https://packages.example.org/simple")


def test_the_lock_of_the_image_is_that_of_development_without_its_tools() -> None:
    image, development = pins(FOLDER / "requirements.lock"), pins(ROOT / "requirements.lock")
    names = {name for name, *_ in image}
    assert {"torch", "torchvision", "ray", "mlflow", "av", "boto3", "optuna", "google-api-python-client"} <= names
    assert not names & DEVELOPMENT
    assert {name for name, *_ in development} >= DEVELOPMENT
    shared = names & {name for name, *_ in development}
    assert len(shared) > 100
    assert {pin for pin in image if pin[0] in shared} == {pin for pin in development if pin[0] in shared}


STANDIN = """#!/bin/bash
echo "$*" >>{folder}/{name}
if [[ $* == *"--requirements -"* ]]; then cat >{folder}/asked; fi
"""


@pytest.mark.parametrize("variant", ["cuda", "cpu"])
def test_what_is_installed(variant: str, tmp_path: Path) -> None:
    """With a stand-in for uv, which tells what it was asked for."""
    (tmp_path / "bin").mkdir()
    for name in ("python", "uv"):
        (tmp_path / "bin" / name).write_text(STANDIN.format(folder=tmp_path, name=name))
        (tmp_path / "bin" / name).chmod(0o755)
    subprocess.run([INSTALL, "packages", variant, tmp_path], check=True)
    asked, lock = pins(tmp_path / "asked"), pins(FOLDER / "requirements.lock")
    (install, _) = (tmp_path / "uv").read_text().splitlines()
    assert ("--torch-backend cpu" in install) == (variant == "cpu")
    left_out = {name for name, *_ in lock - asked}
    assert asked <= lock
    assert {"torch", "torchvision", "ray"} <= {name for name, *_ in asked}
    if variant == "cuda":
        assert left_out == set()
    else:
        assert len(left_out) > 10
        assert all(re.match(r"nvidia-|cuda-|triton$", name) for name in left_out)


def test_it_says_how_it_is_called() -> None:
    for arguments in ([], ["packages", "rocm", "x"], ["project"]):
        done = subprocess.run([INSTALL, *arguments], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert "install.sh packages cuda|cpu VENV" in done.stderr


IMPORTS = """
import av, boto3, googleapiclient, mlflow, optuna, ray, torch, torchvision
import msrcnn, pipelines.cli
boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]])
assert torchvision.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist() == [0, 2]
assert torch.version.cuda
print(msrcnn.__file__)
"""


@pytest.mark.slow
def test_the_installation_works_in_a_clean_folder(tmp_path: Path) -> None:
    """What the Dockerfile runs, on the files that it copies: nothing else of this tree or environment helps."""
    for path, target in copied().items():
        (tmp_path / "tree" / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "tree" / target)
    venv = tmp_path / "venv"
    commands = [line.split(" && ")[0].removeprefix("UV_NO_CACHE=1 ") for line in of("RUN") if "install.sh" in line]
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")} | {"VARIANT": "cuda"}
    environment["PYTHON"] = sys.executable
    assert len(commands) == 2
    for command in commands:
        subprocess.run(["bash", "-c", command.replace("/opt/venv", str(venv))], cwd=tmp_path / "tree", env=environment,
                       check=True)  # fmt: skip
    shutil.rmtree(tmp_path / "tree")  # the project is installed, not linked

    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout

    assert run(f"{venv}/bin/msrcnn", "--version").strip() == __version__
    assert run(f"{venv}/bin/python", "-c", IMPORTS).startswith(str(venv))
    assert "--seeds" in run(f"{venv}/bin/msrcnn", "sweep", "--help")
    assert run(f"{venv}/bin/ray", "--version").startswith("ray, version")
    done = subprocess.run([f"{venv}/bin/python", "-c", "import pytest"], capture_output=True, check=False)
    assert done.returncode == 1
