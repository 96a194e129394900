"""Where a cluster takes jobs: the address of its dashboard, given, in the environment, or kept in a file."""

from __future__ import annotations

import json
import os
import socket
import uuid
from pathlib import Path
from urllib.parse import urlsplit

from cluster.credentials import in_url
from msrcnn.errors import InputError

VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Of the environment, the first that is set; Ray's own commands look at the same."""
TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
DASHBOARD_PORT = 8265
PROBE_SECONDS = 5.0
"""How long an address may take to accept a connection."""


def context_file() -> Path:
    """Where the address is kept between commands."""
    base = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
    return Path(base) / "msrcnn" / "cluster.json"


def kept() -> str | None:
    """The address that is kept; None if there is none.

    Raises:
        InputError: the file is damaged.
    """
    path = context_file()
    try:
        address = json.loads(path.read_text())["address"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); delete it, or `msrcnn context ADDRESS`") from None
    return str(address)


def keep(address: str) -> Path:
    """Keeps an address; returns the file.

    Raises:
        InputError: it is none, or has a secret in it.
    """
    check(address)
    path = context_file()
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex[:12]}")
    aside.write_text(json.dumps({"address": normal(address)}) + "\n")
    aside.replace(path)
    return path


def forget() -> bool:
    """Keeps none any more; whether there was one."""
    try:
        context_file().unlink()
    except FileNotFoundError:
        return False
    return True


def normal(address: str) -> str:
    """With its scheme and port: `head` means http://head:8265."""
    address = address.strip().rstrip("/")
    if "://" in address:
        return address
    host, colon, port = address.rpartition(":")
    return f"http://{address}" if colon and host and port.isdecimal() else f"http://{address}:{DASHBOARD_PORT}"


def check(address: str) -> None:
    """Raises InputError unless it is the address of a dashboard without a secret in it."""
    if in_url(address):
        raise InputError("--address: has a user's name or password in it; Ray's token goes into RAY_AUTH_TOKEN_PATH "
                         "or ~/.ray/auth_token")  # fmt: skip
    parts = urlsplit(normal(address))
    try:
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # a port that is no number
        good = False
    if not good:
        raise InputError(
            f"--address '{address}': expected http://HOST:{DASHBOARD_PORT}, what Ray's dashboard listens on"
        )


def job_address(given: str | None) -> tuple[str, str]:
    """The address that is meant, and where it is from: given, the environment, or the one that is kept.

    Raises:
        InputError: there is none, it is none, or nothing listens there.
    """
    source, address = "--address", given
    if address is None:
        source, address = next(((v, os.environ[v]) for v in VARIABLES if os.environ.get(v)), ("", None))
    if address is None:
        source, address = str(context_file()), kept()
    if address is None:
        raise InputError("no cluster: give --address http://HOST:8265, set RAY_API_SERVER_ADDRESS, or keep one with "
                         "`msrcnn context ADDRESS`")  # fmt: skip
    if source == "RAY_ADDRESS" and "://" not in address:
        raise InputError(f"RAY_ADDRESS {address}: is for programs that join the cluster; jobs go to its dashboard, "
                         "give --address http://HOST:8265 or set RAY_API_SERVER_ADDRESS")  # fmt: skip
    check(address)
    address = normal(address)
    _probe(address, source)
    return address, source


def use_token() -> None:
    """Lets Ray send a token where this machine has one; its default mode asks for one only of what it starts itself."""
    if "RAY_AUTH_MODE" in os.environ:
        return
    if any(os.environ.get(name) for name in TOKENS) or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ["RAY_AUTH_MODE"] = "token"


def _probe(address: str, source: str) -> None:
    """Fails fast when nothing listens."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(f"{address} (from {source}): no cluster answers there ({error}); check that it runs and "
                         "that its port can be reached (kubectl port-forward, ssh -L)") from error  # fmt: skip
