"""Files and folders behind local paths, file:// URLs, fsspec and a file system in a file system: one behaviour."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import fs

from msrcnn.errors import InputError
from pipelines.storage import Location, exclusively, explained, file_for, locate, sha256_of


def folder_of(tmp_path: Path, kind: str) -> Location:
    (tmp_path / "root").mkdir()
    return {
        "path": lambda: locate(tmp_path / "root" / "set"),
        "file": lambda: locate(f"file://{tmp_path}/root/set"),
        "memory": lambda: locate(f"memory:/{tmp_path}/set/"),
        "subtree": lambda: Location(fs.SubTreeFileSystem(f"{tmp_path}/root", fs.LocalFileSystem()), "set", "sub://set"),
    }[kind]()


KINDS = ["path", "file", "memory", "subtree"]


@pytest.mark.parametrize("kind", KINDS)
def test_files_come_back_are_listed_and_removed(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, kind)
    assert (folder.is_folder(), folder.list(), (folder / "a").size()) == (False, {}, None)
    folder.make_folder()
    folder.make_folder()
    (folder / "sub").make_folder()
    for content in (b"content", b"other"):  # replaced the second time
        (folder / "a").write(content)
        assert (folder / "a").read() == content
        assert (folder / "a").size() == len(content)
    (folder / "sub" / "b.txt").write(b"")
    assert folder.is_folder()
    assert folder.list() == {"a": 5, "sub": None}
    assert ((folder / "sub/b.txt").name, (folder / "sub").name) == ("b.txt", "sub")
    with (folder / "a").open() as file:
        file.seek(2)
        assert file.read() == b"her"
    (folder / "a").remove()
    (folder / "a").remove()
    assert folder.list() == {"sub": None}
    assert pickle.loads(pickle.dumps(folder)).path == folder.path  # as it goes to a task


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_whose_writing_fails_is_not_there(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, kind)
    folder.make_folder()

    def fail() -> None:
        with (folder / "a").writing() as sink:
            sink.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert folder.list() == {}


@pytest.mark.parametrize("kind", ["path", "file", "subtree"])
def test_where_renaming_is_atomic_the_former_file_stays_until_the_new_one_is_whole(tmp_path: Path, kind: str) -> None:
    file = folder_of(tmp_path, kind) / "a"
    file.filesystem.create_dir(file.path.rpartition("/")[0])
    file.write(b"old")
    with file.writing() as sink:
        sink.write(b"new")
        assert file.read() == b"old"
    assert file.read() == b"new"

    def fail() -> None:
        with file.writing() as sink:
            sink.write(b"worse")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert file.read() == b"new"


def test_sink_counts_and_hashes_what_it_passes_on(tmp_path: Path) -> None:
    pieces = [b"bytes", pa.py_buffer(b"a buffer"), memoryview(b"a view"), bytes(10**6)]
    with (locate(tmp_path) / "a").writing() as sink:
        for piece in pieces:
            sink.write(piece)
    content = (tmp_path / "a").read_bytes()
    assert content == b"".join(bytes(piece) for piece in pieces)
    assert (sink.bytes, sink.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_urls_are_joined_before_their_options_and_told_without_passwords() -> None:
    place = Location(fs.LocalFileSystem(), "bucket/set", "s3://key:secret@bucket/set?endpoint_override=localhost:9000")
    below = place / "shard-00000.parquet"
    assert below.url == "s3://key:secret@bucket/set/shard-00000.parquet?endpoint_override=localhost:9000"
    assert below.path == "bucket/set/shard-00000.parquet"
    assert str(below) == "s3://bucket/set/shard-00000.parquet?endpoint_override=localhost:9000"


@pytest.mark.parametrize("root", ["file://{}", "memory://m{}", "{}"])
def test_any_name_leads_back_from_a_url(tmp_path: Path, root: str) -> None:
    for name in ("#1/a.jpg", "q?x/a#b", "50%25/a b.jpg", "é ü/c", "lr=0.1,+ap/[1]"):
        place = locate(root.format(tmp_path)) / name
        place.parent.make_folder()
        place.write(name.encode())
        assert place.path.endswith(f"{tmp_path}/{name}")
        assert locate(place.url).read() == (locate(place.parent.url) / place.name).read() == name.encode()
        assert locate(place.parent.url).path == place.parent.path


def test_paths_are_absolute_and_may_hold_any_character(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a b", "50%", "q?x#y", "é"):
        (locate(name) / "c").filesystem.create_dir(str(tmp_path / name))
        (locate(name) / "c").write(b"1")
        assert (tmp_path / name / "c").read_bytes() == b"1"
        assert str(locate(Path(name)) / "c") == str(tmp_path / name / "c")


def test_urls_that_lead_nowhere_are_one_line() -> None:
    for url in ("nosuch://a/b", "abfs://container/x"):
        with pytest.raises(InputError, match=f"^{url}: no file system for it") as caught:
            locate(url)
        assert "\n" not in str(caught.value)


def test_errors_in_few_words(tmp_path: Path) -> None:
    with pytest.raises(OSError) as caught:
        locate(tmp_path / "absent").read()
    assert explained(caught.value) == "No such file or directory"
    assert explained(OSError("first line\nsecond line")) == "first line"  # as fsspec's and S3's have no number
    assert explained(ConnectionError()) == "ConnectionError"


def test_one_process_at_a_time(tmp_path):
    with exclusively(locate(tmp_path), "training in", "--run"):
        code = "import sys; from pipelines.storage import exclusively, locate\n"
        code += "with exclusively(locate(sys.argv[1]), 'training in', '--run'): pass"
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert "another process is training in it; wait or choose another --run" in other.stderr
    with exclusively(locate(tmp_path), "training in", "--run"):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_what_programs_write_is_there_only_if_all_ends_well(tmp_path: Path, kind: str) -> None:
    folder = folder_of(tmp_path, kind)
    folder.make_folder()
    (folder / "file").write(b"old")

    def fail() -> None:
        with file_for(folder / "file") as path:
            path.write_text("half")
            assert (folder / "file").read() == b"old"
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail()
    assert (folder / "file").read() == b"old"
    with file_for(folder / "file") as path:
        path.write_text("new")
    assert (folder / "file").read() == b"new"
    assert list(folder.list()) == ["file"]


@pytest.mark.parametrize("kind", KINDS)
def test_sha256_of_a_file(tmp_path: Path, kind: str) -> None:
    """Of the messages "abc" and a million times "a" in FIPS 180-2, appendix B."""
    folder = folder_of(tmp_path, kind)
    folder.make_folder()
    (folder / "file").write(b"abc")
    assert sha256_of(folder / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (folder / "file").write(b"a" * 10**6)
    assert sha256_of(folder / "file") == "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = locate(tmp_path) / "file"
    file.write_json({"a": [1, None, float("inf")]})
    with pytest.raises(TypeError):
        file.write_json({"a": {1, 2}})
    assert json.loads(file.read()) == {"a": [1, None, float("inf")]}
    assert list(locate(tmp_path).list()) == ["file"]
