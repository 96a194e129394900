"""Files, folders, patterns and URLs as a list of images and videos with names of their own."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from msrcnn.errors import InputError
from pipelines.predict_inputs import Source, find_sources
from pipelines.storage import locate
from tests.object_store import object_store


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("b.jpg", "a.JPG", "sub/c.png", "sub/deep/d.webp", ".hidden.jpg", ".thumbs/e.jpg", "notes.txt",
                 "clip.mp4", "a b%20[1].png"):  # fmt: skip
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path / "photos"


def found(*given: str | Path, out: str = "predictions") -> list[str]:
    return [source.name for source in find_sources(given, locate(out))]


def test_a_folder_gives_its_images_sorted_without_hidden_files_and_videos(photos):
    names = ["a b%20[1].png", "a.JPG", "b.jpg", "sub/c.png", "sub/deep/d.webp"]
    assert found("photos") == found("photos/") == found(photos) == names
    first = find_sources([photos], locate("predictions"))[0]
    assert first == Source(str(photos), "a b%20[1].png", "a b%20[1].png")
    assert first.place.read() == b"x"


def test_files_are_taken_as_they_are_in_the_order_given_each_once(photos):
    odd = photos / "a b%20[1].png"
    given = ("photos/b.jpg", "photos/notes.txt", "./photos/b.jpg", odd, "photos/clip.mp4", "photos")
    assert found(*given) == [
        "b.jpg", "notes.txt", "a b%20[1].png", "clip.mp4", "a.JPG", "sub/c.png", "sub/deep/d.webp"
    ]  # fmt: skip
    assert [source.is_video for source in find_sources(given, locate("predictions"))].index(True) == 3


def test_patterns_are_those_of_a_shell(photos):  # noqa: ARG001
    assert found("photos/*.jpg") == ["b.jpg"]
    assert found("photos/?.[jJ][pP][gG]") == ["a.JPG", "b.jpg"]
    assert found("photos/**/*.png") == ["a b%20[1].png", "c.png"]
    assert found("photos/*.mp4") == ["clip.mp4"]
    assert found("photos/s*") == ["c.png", "deep/d.webp"]


def test_equal_names_are_told_apart_by_the_folders_above(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("one/x/a.jpg", "two/x/a.jpg", "two/b.jpg", "c.tif", "c.tif.png", "x/a.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert found("one/x", "two/x", "two/b.jpg") == ["one/x/a.jpg", "two/x/a.jpg", "b.jpg"]
    assert found("one", "two") == ["one/x/a.jpg", "b.jpg", "two/x/a.jpg"]
    for given in (("one", "two", "x", "."), ("c.tif", "c.tif.png")):
        overlays = [source.overlay for source in find_sources(given, locate("predictions"))]
        assert len(set(overlays)) == len(overlays)
    assert find_sources(["c.tif"], locate("p"))[0].overlay == "c.tif.png"
    assert find_sources(["c.tif.png"], locate("p"))[0].overlay == "c.tif.png"


def test_what_was_drawn_before_is_no_input(photos):
    (photos / "predictions" / "overlays").mkdir(parents=True)
    (photos / "predictions" / "overlays" / "b.jpg").touch()
    assert "predictions/overlays/b.jpg" not in found("photos", out="photos/predictions")
    with pytest.raises(InputError, match="no image in this folder"):
        found("photos/predictions", out="photos/predictions")


def test_what_was_drawn_before_is_no_input_behind_urls(photos):
    memory = "memory://drawn/photos"
    for name in ("a.jpg", "predictions/overlays/a.jpg", "predictions2/a.jpg"):
        locate(f"{memory}/{name}").write(b"x")
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).touch()
    kept = ["a.jpg", "predictions2/a.jpg"]
    assert found(memory, out=f"{memory}/predictions") == kept
    assert found(memory, out=f"{memory}/predictions/") == kept
    assert found(f"{memory}/**", out=f"{memory}/predictions") == ["photos/a.jpg", "predictions2/a.jpg"]
    assert len(found(memory, out="/drawn/photos/predictions")) == 3  # the same path, but on the disk
    for given, out in ((f"file://{photos}", photos), (photos, f"file://{photos}"), (f"file://{photos}/sub/..", photos)):
        names = found(given, out=f"{out}/predictions")
        assert "predictions2/a.jpg" in names
        assert not [name for name in names if name.startswith("predictions/")]


@pytest.mark.parametrize("root", ["file://{}", "memory://marked{}"])
def test_folders_with_characters_of_urls_are_read_themselves(tmp_path, root):
    place = locate(root.format(tmp_path))
    names = ["#1/a.jpg", "50%25/a.jpg", "a.jpg", "q?x/a.jpg", "é ü/a.jpg"]
    for name in names:
        (place / name).parent.make_folder()
        (place / name).write(name.encode())
    for given in (root.format(tmp_path), root.format(f"{tmp_path}/**")):
        sources = find_sources([given], locate("predictions"))
        sent = [Source(one.folder, one.file, one.name) for one in sources]  # as to a cluster's process
        assert [one.place.read().decode() for one in sent] == names
        assert [one.name for one in sources if one.name != "a.jpg"][:2] == ["#1/a.jpg", "50%25/a.jpg"]


def test_errors_show_no_password(tmp_path):
    for given in ("memory://user:word@absent/a.jpg", "memory://user:word@absent/*.gif", "s3://user:word@*/a.jpg",
                  "nowhere://user:word@absent/a.jpg"):  # fmt: skip
        with pytest.raises(InputError) as raised:
            find_sources([given], locate(tmp_path / "out"))
        assert "word" not in str(raised.value)
        assert "a" in str(raised.value)


@pytest.mark.parametrize(("given", "why"), [
    ("absent.jpg", "absent.jpg: no such file or folder"),
    ("photos/*.gif", "matches no file; correct the pattern"),
    ("empty", "empty: no image in this folder; looked for .avif, .bmp"),
    ("clips", "no image in this folder; videos in it are taken by name or pattern"),
    ("nowhere://bucket/a.jpg", "no file system for it"),
    ("s3://*/a.jpg", "name the bucket"),
])  # fmt: skip
def test_what_gives_nothing_is_named(photos, given, why):
    (photos.parent / "empty").mkdir()
    (photos.parent / "clips").mkdir()
    (photos.parent / "clips" / "a.mp4").touch()
    with pytest.raises(InputError) as raised:
        found("photos", given)
    assert why in str(raised.value)


def test_names_that_are_no_text_and_links_in_a_circle(photos):
    names = found("photos")
    (photos / "sub" / "loop").symlink_to(photos)
    assert found("photos") == names
    (photos.parent / "far").mkdir()
    (photos.parent / "far" / "z.jpg").touch()
    (photos / "sub" / "far").symlink_to(photos.parent / "far")
    assert found("photos") == [*names, "sub/far/z.jpg"]
    (photos.parent / "linked").symlink_to(photos)
    assert found("linked/b.jpg", "linked/sub/c.png") == ["b.jpg", "c.png"]
    Path(os.fsdecode(bytes(photos) + b"/caf\xe9.jpg")).touch()
    for given in ("photos", "photos/*.jpg"):
        with pytest.raises(InputError, match=f"^{re.escape(given)}: a file name there is not UTF-8"):
            found(given)


def test_folders_and_patterns_behind_a_url(tmp_path):
    with object_store() as url:
        for name in ("set/b.jpg", "set/a #1.jpg", "set/sub/a.png", "set/x.txt", "other/c.jpg",
                     "odd/#1/a b.jpg", "odd/q?x/a.jpg"):  # fmt: skip
            folder, _, file = name.partition("/")
            (locate(url.format(folder)) / file).write(name.encode())
        sources = find_sources([url.format("set/")], locate(tmp_path / "out"))
        assert [source.name for source in sources] == ["a #1.jpg", "b.jpg", "sub/a.png"]
        assert [source.place.read().decode() for source in sources] == ["set/a #1.jpg", "set/b.jpg", "set/sub/a.png"]
        assert "word" not in str(sources[0].place)

        def names(*given: str) -> list[str]:
            return [s.name for s in find_sources([url.format(g) for g in given], locate(tmp_path / "out"))]

        odd = find_sources([url.format("odd")], locate(tmp_path / "out"))
        assert [locate(source.folder).path for source in odd] == ["bucket/odd/#1", "bucket/odd/q?x"]
        assert [source.place.read().decode() for source in odd] == ["odd/#1/a b.jpg", "odd/q?x/a.jpg"]
        assert names("set/*.jpg", "set", "set/b.jpg") == ["a #1.jpg", "b.jpg", "sub/a.png"]
        assert names("*/[bc].jpg") == ["c.jpg", "b.jpg"]
        assert names("**/*.png", "set/**") == ["a.png", "a #1.jpg", "b.jpg", "x.txt"]
        with pytest.raises(InputError, match="no such file or folder"):
            names("absent/")

        def states(given: str) -> list[str]:
            return [s.state for s in find_sources([url.format(given)], locate(tmp_path / "out"))]

        before = states("set/b.jpg")
        assert before == states("set/*.jpg")[1:] == states("set/")[1:2]
        (locate(url.format("set")) / "b.jpg").write(b"longer than before")
        assert states("set/b.jpg") == states("set/")[1:2] != before
