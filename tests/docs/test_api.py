"""docs/api.md is what the docstrings say now, and they say enough."""

from __future__ import annotations

import re

from docs.api import MODULES, PAGE, Module, markdown, page


def test_the_page_is_what_the_docstrings_say() -> None:
    assert PAGE.read_text() == page(), "the page is old: `python -m docs.api` writes it anew"


def test_every_module_and_name_that_is_asked_for_is_there() -> None:
    text = page()
    for module, names in MODULES.items():
        assert f"\n## {module}\n" in text
        for name in names:
            assert re.search(rf"^### (class )?{name}\b", text, re.MULTILINE), f"{module}.{name}"


def test_sections_of_a_docstring_become_lists() -> None:
    told = markdown(
        "First line.\n\nArgs:\n    one: of two\n        lines.\n    *more, two: likewise.\n\nReturns:\n    a thing\n"
        "    of two lines.\n\nRaises:\n    InputError: always."
    )
    assert told == (
        "First line.\n\n*Args*\n\n- `one`: of two\n  lines.\n- `*more, two`: likewise.\n\n*Returns*\n\na thing\n"
        "of two lines.\n\n*Raises*\n\n- `InputError`: always."
    )


def test_a_signature_has_names_types_defaults_and_result() -> None:
    preset = "\n".join(Module("msrcnn.presets").described(("find_preset",)))
    assert "find_preset(name: str) -> Preset" in preset
    sampling = "\n".join(Module("msrcnn.masks").described(("sample_on_rois",)))
    assert "    points: int=POINTS_PER_BIN,\n) -> Tensor" in sampling
    selection = "\n".join(Module("msrcnn.config").described(("SelectionConfig",)))
    assert "- `top_k: int = 100`: detections an image, at most" in selection
