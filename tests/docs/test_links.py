"""What the documents point to is there: files, headings, tests."""

from __future__ import annotations

import re

import pytest

from tests.commands import ROOT
from tests.docs.documents import DOCUMENTS, FENCED

LINK = re.compile(r"\]\((?!\w+://)([^)#]*)(?:#([^)]+))?\)")


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_links_lead_somewhere(document: str) -> None:
    page = ROOT / document
    for file, anchor in LINK.findall(FENCED.sub("", page.read_text())):
        target = page.parent / file if file else page
        assert target.exists(), f"{document}: {file}"
        assert not anchor or anchor in anchors(target.read_text()), f"{document}: {file}#{anchor}"


def test_every_page_is_reached_from_the_readme() -> None:
    linked = {file for file, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert {document for document in DOCUMENTS if document != "README.md"} <= linked


def test_tests_that_are_named_exist() -> None:
    named = {name for d in DOCUMENTS for name in re.findall(r"`(test_\w+_\w+_\w+)`", (ROOT / d).read_text())}
    assert named
    everything = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert not [name for name in named if f"def {name}(" not in everything]
