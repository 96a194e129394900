"""pyproject.toml asks for every package that the program imports, and not only by way of others."""

from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from cluster.package import ROOT, SOURCES, sources


def imported(file: Path) -> Iterator[str]:
    """The modules that a file imports, by the first part of their names."""
    for node in ast.walk(ast.parse(file.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module or ""]
        yield from (name.partition(".")[0] for name in names)


def test_what_is_imported_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for of in project["optional-dependencies"].values() for line in of)]
    declared = {canonicalize_name(Requirement(line).name) for line in lines}
    modules = {name for file in sources() if file.suffix == ".py" for name in imported(file)}
    others = modules - {*sys.stdlib_module_names, *SOURCES}
    assert {"torch", "ray", "starlette"} <= others
    packages = packages_distributions()
    assert {name for name in others if not declared & {canonicalize_name(p) for p in packages.get(name, ())}} == set()
