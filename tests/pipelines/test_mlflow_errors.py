"""Which failures of real calls may pass, and how they are said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipelines.mlflow_errors import may_pass, reason
from pipelines.tracking import Tracker


@pytest.fixture
def answering() -> Iterator[ThreadingHTTPServer]:
    """An HTTP server that gives every request the status in its attribute `status`, as a proxy would: without JSON."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(self.server.status)  # type: ignore[attr-defined]
            self.send_header("Retry-After", "3600")
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "passes"),
    [(400, False), (401, False), (404, False), (413, False), (501, False),
     (408, True), (429, True), (500, True), (502, True), (503, True), (504, True)],
)  # fmt: skip
def test_what_a_server_answers(answering, status, passes):
    answering.status = status
    tracker = Tracker(f"http://127.0.0.1:{answering.server_port}", "study", run_id="0" * 32)
    with pytest.raises(Exception) as raised:  # in a second, not after the hour that the server asks for
        tracker.tags({"a": 1})
    assert may_pass(raised.value) is passes
    assert str(status) in reason(raised.value)
    assert "\n" not in reason(raised.value)


def test_what_happens_on_this_machine(tmp_path: Path):
    tracker = Tracker(f"sqlite:///{tmp_path}/mlflow.db", "study")
    with pytest.raises(FileNotFoundError) as absent:
        tracker.artifact(tmp_path / "absent.pt")
    assert not may_pass(absent.value)
    assert reason(absent.value).endswith("absent.pt: No such file or directory")
    with pytest.raises(OSError) as full, Path("/dev/full").open("w") as device:
        device.write("x" * 100000)
    assert may_pass(full.value)
    assert not may_pass(TypeError("a mistake of ours"))
