"""Videos read and written: frames, times, sizes, rotation."""

from __future__ import annotations

import io
import subprocess
import sys
from fractions import Fraction
from itertools import pairwise

import av
import numpy as np
import pytest
from PIL import Image

from msrcnn.errors import InputError
from pipelines.storage import Location, StorageError, locate
from pipelines.video import Video, VideoWriter
from tests.predicting import pixels, write_video
from tests.tiny import SIDE

EVEN = [0, 100, 200, 300, 400, 500]
UNEVEN = [0, 40, 300, 340, 1000, 1500]


def times_of(path) -> list[float]:
    """When the frames are shown, by av itself, in seconds."""
    with av.open(str(path)) as container:
        return [float(frame.pts * frame.time_base) for frame in container.decode(video=0)]


def copied(path, to) -> None:
    with Video(locate(path)) as video, VideoWriter(to, video.rate, video.time_base) as writer:
        for frame in video.frames():
            writer.add(frame.image, frame)


@pytest.mark.parametrize("times", [EVEN, UNEVEN])
def test_frames_have_the_times_of_the_file_and_keep_them_when_written(tmp_path, times):
    path = write_video(tmp_path / "a.mp4", times)
    with Video(locate(path)) as video:
        frames = list(video.frames())
        assert video.expected == len(times)
        assert video.broken == ""
    assert [frame.number for frame in frames] == list(range(len(times)))
    assert [frame.time for frame in frames] == pytest.approx([t / 1000 for t in times], abs=1e-3)
    for frame in frames:
        assert np.abs(np.asarray(frame.image).astype(int) - pixels(frame.number % 3)).mean() < 8
    copied(path, tmp_path / "b.mp4")
    assert times_of(tmp_path / "b.mp4") == pytest.approx(times_of(path), abs=1e-3)
    with av.open(str(path)) as one, av.open(str(tmp_path / "b.mp4")) as other:
        assert other.duration == pytest.approx(one.duration, abs=2000)  # 1/1000000 s
        ours, theirs = other.streams.video[0], one.streams.video[0]
        assert (ours.codec_context.name, ours.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (ours.height, ours.width, ours.frames) == (theirs.height, theirs.width, len(times))
        assert float(ours.average_rate) == pytest.approx(float(theirs.average_rate), rel=0.01)


@pytest.mark.parametrize("kind", ["mkv", "mov", "ts"])
def test_times_count_from_the_beginning_in_any_container(tmp_path, kind):
    path = write_video(tmp_path / f"a.{kind}", EVEN)
    with Video(locate(path)) as video:
        times = [frame.time for frame in video.frames()]
    assert len(times) == len(EVEN)
    assert times == pytest.approx([t / 1000 for t in EVEN], abs=1e-3)
    copied(path, tmp_path / "b.mp4")
    assert np.diff(times_of(tmp_path / "b.mp4")) == pytest.approx(np.diff(times), abs=1e-3)


def test_frames_before_time_0_keep_their_distances(tmp_path):
    path = write_video(tmp_path / "a.ts", [time - 300 for time in UNEVEN], avoid_negative_ts="disabled")
    assert min(times_of(path)) < -0.2
    with Video(locate(path)) as video:
        times = [frame.time for frame in video.frames()]
    assert times == pytest.approx([t / 1000 for t in UNEVEN], abs=1e-3)
    copied(path, tmp_path / "b.mp4")
    assert np.diff(times_of(tmp_path / "b.mp4")) == pytest.approx(np.diff(times), abs=1e-3)


@pytest.mark.parametrize("degrees", [90, 180, -90])
def test_a_rotated_video_is_read_upright(tmp_path, degrees):
    path = write_video(tmp_path / "a.mp4", EVEN[:2], (SIDE, 2 * SIDE), degrees)
    with Video(locate(path)) as video:
        frame = next(video.frames())
    lying = Image.fromarray(np.ascontiguousarray(np.resize(pixels(0), (SIDE, 2 * SIDE, 3))))
    expected = lying.rotate(degrees, expand=True)  # both count against the clock
    assert frame.image.size == expected.size
    assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(expected)).mean() < 8


def test_odd_sizes_are_made_even(tmp_path):
    with (
        VideoWriter(tmp_path / "a.mp4", Fraction(10), Fraction(1, 1000)) as writer,
        Video(locate(write_video(tmp_path / "b.mp4", EVEN))) as video,
    ):
        for frame in video.frames():
            writer.add(frame.image.crop((0, 0, 51, 33)), frame)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.height, stream.width, stream.frames) == (34, 52, len(EVEN))
        assert all(a < b for a, b in pairwise(times_of(tmp_path / "a.mp4")))


def test_colours_are_kept(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "lime", "blue", "yellow")]
    with (
        Video(locate(write_video(tmp_path / "b.mp4", EVEN[:4]))) as video,
        VideoWriter(tmp_path / "a.mp4", video.rate, video.time_base) as writer,
    ):
        for image, frame in zip(frames, video.frames(), strict=True):
            writer.add(image, frame)
    with Video(locate(tmp_path / "a.mp4")) as video:
        for image, frame in zip(frames, video.frames(), strict=True):
            assert np.abs(np.asarray(frame.image).astype(int) - np.asarray(image)).max() <= 6


def test_what_is_no_video_is_said_in_a_line(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(InputError, match=r"a\.mp4: not a readable video \(.+\); replace or remove it"):
        Video(locate(tmp_path / "a.mp4"))
    with pytest.raises(InputError, match=r"absent\.mp4: not a readable video \(No such file"):
        Video(locate(tmp_path / "absent.mp4"))


class Away(Location):
    """A video in a storage that no longer answers after some bytes."""

    size_there = 0

    @property
    def local(self) -> None:
        return None

    def open(self) -> io.BytesIO:
        there = self.size_there

        class File(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                left = there - self.tell()
                if left <= 0:
                    raise OSError("AWS Error NETWORK_CONNECTION during GetObject operation")
                return super().read(left if size is None or size < 0 else min(size, left))

        return File(super().read())


@pytest.mark.parametrize("share", [0.0, 0.6])
def test_a_storage_that_fails_is_no_fault_of_the_video(tmp_path, monkeypatch, share):
    write_video(tmp_path / "a.mp4", [40 * i for i in range(300)])
    place = locate(tmp_path / "a.mp4")
    monkeypatch.setattr(Away, "size_there", int(share * place.size()))

    def read() -> None:
        with Video(Away(place.filesystem, place.path, place.url)) as video:
            for _ in video.frames():
                pass

    with pytest.raises(StorageError, match=r"a\.mp4: cannot be read \(AWS Error NETWORK_CONNECTION.*give the same"):
        read()


def test_without_h264_one_line_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {"libx264"})
    with pytest.raises(InputError, match=r"cannot write H\.264 .* or give --no-overlays"):
        VideoWriter(tmp_path / "a.mp4", Fraction(10), Fraction(1, 1000))
    assert not list(tmp_path.iterdir())


def test_without_the_package_one_line_says_what_to_install(tmp_path):
    (tmp_path / "a.mp4").touch()
    code = ("import sys; sys.modules['av'] = None\nfrom pipelines.video import video_library\n"
            "from msrcnn.errors import InputError\n"
            "try: video_library()\nexcept InputError as error: print(error)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install av" in done.stdout
    assert done.stdout.count("\n") == 1
