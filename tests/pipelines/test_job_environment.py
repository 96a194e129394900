"""What a submitted command says where the cluster's packages are not the locked ones."""

import subprocess
import sys
import venv

from cluster.package import packed
from pipelines.job_environment import SUBMITTED, packages_notice


def test_locked_packages_are_no_news_and_others_are(tmp_path):
    import numpy

    (tmp_path / "requirements.lock").write_text(f"numpy=={numpy.__version__}\n")
    assert packages_notice(["numpy"], tmp_path) == ""
    (tmp_path / "requirements.lock").write_text("numpy==0.1\n")
    assert packages_notice(["numpy"], tmp_path).startswith(f"note: numpy {numpy.__version__}, locked 0.1; ")


def test_a_python_without_the_packages_is_named(tmp_path):
    """As where Ray was started without its environment in PATH."""
    venv.create(tmp_path / "bare", with_pip=False)
    with packed(None) as folder:
        done = subprocess.run(
            [tmp_path / "bare" / "bin" / "python", "-m", "pipelines", "data", "/shards"], cwd=folder,
            env={SUBMITTED: "1"}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"msrcnn: {tmp_path}/bare/bin/python on ")
    assert "has no torch, torchvision, ray" in done.stderr
    assert "--packages locked" in done.stderr


def test_outside_of_a_job_nobody_looks():
    with packed(None) as folder:
        done = subprocess.run([sys.executable, "-m", "pipelines", "--help"], cwd=folder, env={}, text=True,
                              capture_output=True, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
