"""Connections between nodes, here of one machine with itself."""

from __future__ import annotations

from cluster.network import listen, reach
from tests.mlflow_server import free_port


def test_who_listens_is_reached_again_and_again() -> None:
    peers = {"a": ("127.0.0.1", listen("127.0.0.1")), "b": ("127.0.0.1", listen("127.0.0.1"))}
    assert reach(peers) == {}
    assert reach(peers) == {}
    assert reach({}) == {}


def test_who_does_not_is_named_with_the_reason() -> None:
    peers = {"there": ("127.0.0.1", listen("127.0.0.1")), "gone": ("127.0.0.1", free_port())}
    assert reach(peers) == {"gone": "Connection refused"}
