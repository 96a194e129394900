"""Starts or joins Ray for the length of one command."""

from __future__ import annotations

import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from msrcnn.errors import InputError

PROBE_SECONDS = 5.0
"""How long an address may take to accept a connection; Ray itself would try for a minute or more."""
VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")
"""How Ray's refusal of another version names the cluster's, then ours."""


@contextmanager
def connect(address: str | None = None, cpus: int | None = None, dashboard: bool = False) -> Iterator[None]:
    """Joins or starts Ray; on leaving, shuts down what it started and leaves what it joined running.

    In this order: a Ray that this process has already initialised is used as it is; `address`, or else the
    environment variable RAY_ADDRESS (set inside a submitted Ray job), joins that cluster; otherwise a local
    Ray starts. One that somebody else left running here is never joined by accident. What Ray's processes print
    stays in their own logs.

    Args:
        address: a running cluster: `host:port`, `ray://host:port` or `auto`; `local` starts one of our own.
        cpus: how many CPUs a local Ray offers (default: all); a joined cluster has its own.
        dashboard: whether a local Ray answers questions about its state, which takes it some seconds more to start.

    Raises:
        InputError: no cluster answers at the address.

    Where this starts or joins Ray, Ray's calls start none by themselves any more, in this process.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray
    from ray._private import auto_init_hook

    if ray.is_initialized():
        _quieten_ray_data()
        yield
        return
    # What goes on in a thread after the block must fail, not start or join some Ray, as Ray's own calls would.
    auto_init_hook.enable_auto_connect = False
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # Newer Ray asks for a token by default; a Ray that only this process uses needs none.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            num_cpus=cpus,
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    else:
        _join(address)
    try:
        _quieten_ray_data()
        yield
    finally:
        ray.shutdown()


def _join(address: str) -> None:
    """Connects to the cluster at `address`."""
    import ray

    _probe(address)
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        versions = VERSIONS.findall(str(error))
        if len(versions) == 2:
            (theirs, their_python), (ours, our_python) = versions
            raise InputError(
                f"Ray address '{address}': the cluster runs Ray {theirs} on Python {their_python}, this process Ray "
                f"{ours} on Python {our_python}; use the cluster's versions here, all three digits of Python's included"
            ) from error
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"Ray address '{address}': cannot join ({reason}); give another --address, or unset RAY_ADDRESS "
            "to start Ray on this machine"
        ) from error


def _probe(address: str) -> None:
    """Fails fast when nothing listens at `host:port`; `auto` is left to Ray."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:  # connecting takes a port modulo that
        raise InputError(f"Ray address '{address}': expected host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PROBE_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"Ray address '{address}': no cluster answers there ({error}); check that it runs, give another "
            "--address, or unset RAY_ADDRESS to start Ray on this machine"
        ) from error


def _quieten_ray_data() -> None:
    """The stages print their own progress: no bars, no plan of every execution; warnings still show."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.issue_detectors_config.detectors = []  # advice on memory requests, for pipelines with fixed plans
    # It warns once that the bars are off.
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    for handler in logging.getLogger("ray.data").handlers:
        if handler.name == "console":
            handler.setLevel(logging.WARNING)
