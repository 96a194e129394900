"""What a job brings along."""

import subprocess
import sys
from pathlib import Path

import pytest

from cluster.package import ROOT, differing, locked, locked_versions, packed
from msrcnn.errors import InputError


@pytest.fixture
def tree(tmp_path) -> Path:
    """A source tree in small."""
    for name in ("msrcnn/a.py", "msrcnn/__pycache__/a.pyc", "tune_spaces/t.toml", "pipelines/p.html",
                 "cluster/secret.env", "runs/x.py", ".venv/y.py"):  # fmt: skip
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (tmp_path / "tree" / "requirements.lock").write_text(
        "# made by hand\nnumpy==1.0\n    # via torch\npyarrow==2.0 ; sys_platform == 'linux'\n\npytest==0.1  # why\n"
    )
    return tmp_path / "tree"


def test_only_the_program_goes_along(tree, tmp_path):
    space = tmp_path / "mine.toml"
    space.write_text("x = 1")
    with packed("abc", [space], tree) as folder:
        files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert files == {"msrcnn/a.py", "tune_spaces/t.toml", "pipelines/p.html", "requirements.lock", ".commit",
                         "files/mine.toml"}  # fmt: skip
        assert (folder / ".commit").read_text() == "abc"
    assert not folder.exists()


def test_the_program_runs_from_what_goes_along_and_knows_its_commit():
    with packed("abc") as folder:
        code = "import pipelines.provenance as p; print(p.__file__, p.provenance()['git_commit'])"
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [str(folder / "pipelines" / "provenance.py"), "abc"]
        for arguments in (["--version"], ["sweep", "--help"]):
            command = [sys.executable, "-m", "pipelines", *arguments]
            subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)


def test_the_lock_is_read_with_its_markers(tree):
    assert locked(tree) == ["numpy==1.0", "pyarrow==2.0 ; sys_platform == 'linux'", "pytest==0.1"]
    assert [locked_versions(name, tree) for name in ("numpy", "pyarrow", "num")] == [["1.0"], ["2.0"], []]
    (tree / "requirements.lock").unlink()
    assert locked_versions("numpy", tree) == []
    with pytest.raises(InputError, match=r"requirements.lock: is not there.*from a checkout"):
        locked(tree)


def test_what_is_installed_is_compared_with_the_lock(tree):
    import numpy

    assert differing(["numpy", "unheard"], tree) == [f"numpy {numpy.__version__}, locked 1.0"]
    lines = f"numpy==0.1 ; python_version < '3'\nnumpy=={numpy.__version__} ; python_version > '3'\nunheard==1.0\n"
    (tree / "requirements.lock").write_text(lines)
    assert differing(["numpy", "unheard"], tree) == ["unheard is missing, locked 1.0"]


def test_this_projects_lock_names_what_the_program_stands_on():
    assert all(locked_versions(name, ROOT) for name in ("torch", "torchvision", "ray", "mlflow", "hotcoco"))
