"""Growing files of JSON lines survive their writer and drop what was rolled back."""

import pytest

from pipelines.lines import JsonLines
from pipelines.storage import locate


@pytest.fixture(params=["local", "object store"])
def place(tmp_path, request):
    """A file that can be appended to, and one that cannot."""
    url = tmp_path / "x.jsonl" if request.param == "local" else f"local://{tmp_path}/x.jsonl"
    return locate(url)


def test_what_is_appended_is_found_again(place):
    lines = JsonLines(place)
    assert lines.values() == []
    for step in range(3):
        lines.append({"step": step})
    lines.flush()
    assert JsonLines(place).values() == [{"step": 0}, {"step": 1}, {"step": 2}]


def test_a_line_that_a_killed_writer_left_unfinished_is_dropped(place):
    place.write(b'{"step": 1}\n{"step": 2, "lo')
    lines = JsonLines(place)
    lines.append({"step": 3})
    lines.flush()
    assert place.read() == b'{"step": 1}\n{"step": 3}\n'


def test_lines_are_rolled_back(place):
    lines = JsonLines(place)
    for step in range(5):
        lines.append({"step": step})
    lines.keep(lambda line: line["step"] <= 2)
    lines.append({"step": 9})
    lines.flush()
    assert [line["step"] for line in JsonLines(place).values()] == [0, 1, 2, 9]


def test_a_local_line_is_in_the_file_at_once(tmp_path):
    JsonLines(locate(tmp_path / "x")).append({"step": 1})
    assert (tmp_path / "x").read_text() == '{"step": 1}\n'
