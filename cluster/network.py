"""Whether nodes reach each other on the ports that training workers choose. Runs on nodes; needs nothing of Ray."""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

CONNECT_SECONDS = 5.0
"""How long a connection may take; a firewall that drops packets is told by silence alone."""
AT_ONCE = 64
_listening: list[socket.socket] = []


def listen(address: str) -> int:
    """Accepts connections on a free port of an address of this machine until the process ends; returns the port.

    Raises:
        OSError: the address is none of this machine's.
    """
    server = socket.create_server((address, 0), family=_family(address), backlog=256)
    _listening.append(server)

    def accept() -> None:
        while True:
            try:
                server.accept()[0].close()
            except OSError:  # closed
                return

    threading.Thread(target=accept, daemon=True).start()
    return server.getsockname()[1]


def reach(peers: Mapping[str, tuple[str, int]]) -> dict[str, str]:
    """Connects to each peer's address and port; why it failed for those where it did.

    Args:
        peers: by any name.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = dict(zip(peers, pool.map(_problem, peers.values()), strict=True))
    return {name: problem for name, problem in found.items() if problem is not None}


def _problem(peer: tuple[str, int]) -> str | None:
    try:
        socket.create_connection(peer, timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return None


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET
