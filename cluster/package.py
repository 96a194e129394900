"""What the program is and stands on, and what of it a job brings along: our sources in a folder, locked packages."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from tempfile import TemporaryDirectory

from msrcnn.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("msrcnn", "pipelines", "tune_spaces", "cluster")
PACKAGES = ("torch", "torchvision", "ray", "mlflow", "pyarrow", "numpy", "pycocotools", "hotcoco")
"""What results, or whether processes understand each other, depend on."""
LOCK = "requirements.lock"
COMMIT = ".commit"
"""File in the package that names the commit: there is no git where it goes."""
ENDINGS = (".py", ".toml", ".html", ".css", ".js")


def sources(root: Path = ROOT) -> list[Path]:
    """The files of the program, in one order everywhere."""
    return sorted(path for name in SOURCES for path in (root / name).rglob("*") if path.suffix in ENDINGS)


@contextmanager
def packed(commit: str | None, files: Sequence[Path] = (), root: Path = ROOT) -> Iterator[Path]:
    """A folder with the program as it is here, for as long as the block lasts.

    Args:
        commit: what it was made from, if that is known.
        files: of the user's, which the command names; they lie in `files/`.
        root: where the sources are.
    """
    with TemporaryDirectory(prefix="msrcnn-job-") as temporary:
        folder = Path(temporary)
        for source in sources(root):
            _copy(source, folder / source.relative_to(root))
        if (root / LOCK).is_file():
            _copy(root / LOCK, folder / LOCK)
        if commit:
            (folder / COMMIT).write_text(commit)
        for file in files:
            _copy(file, folder / "files" / file.name)
        yield folder


def locked(root: Path = ROOT) -> list[str]:
    """The requirements of the lock file, a line each with its marker.

    Raises:
        InputError: there is no lock file beside the sources.
    """
    path = root / LOCK
    if not path.is_file():
        raise InputError(f"{path}: is not there, and --packages locked installs what it names; submit from a checkout "
                         "of the project")  # fmt: skip
    lines = (re.sub(r"\s+#.*", "", line).strip() for line in path.read_text().splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def locked_versions(package: str, root: Path = ROOT) -> list[str]:
    """The versions that the lock file names, one or, for several Pythons, more; none if there is no lock file."""
    try:
        lines = locked(root)
    except InputError:
        return []
    found = (re.match(rf"{re.escape(package)}==([^\s;]+)", line) for line in lines)
    return [match[1] for match in found if match]


def differing(packages: Sequence[str] = PACKAGES, root: Path = ROOT) -> list[str]:
    """How installed packages differ from the lock file, a text each: 'torch 2.14.0, locked 2.15.0'."""
    texts = []
    for name in packages:
        wanted = locked_versions(name, root)
        try:
            there = metadata.version(name)
        except metadata.PackageNotFoundError:
            there = "is missing"
        if wanted and there.partition("+")[0] not in wanted:
            texts.append(f"{name} {there}, locked {' or '.join(wanted)}")
    return texts


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
