"""`msrcnn serve`: a model behind HTTP on a Ray cluster, for as long as the command runs."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata

from packaging.requirements import Requirement

from cluster.credentials import without_password
from cluster.reasons import reason
from cluster.room import fitting
from cluster.session import connect
from msrcnn.errors import InputError
from msrcnn.weights import load_model
from pipelines.node_facts import node_resources
from pipelines.options import worker_range
from pipelines.run_directory import find_model
from pipelines.serving_options import ServeConfig
from pipelines.storage import locate, on_disk

EXTRA = "serve"
"""Of Ray's; MLflow brings parts of it."""
PATIENCE_SECONDS = 45.0
"""Between lines about a start that takes long; Ray itself calls it so after 30."""
LOOK_SECONDS = 2.0
"""Between looks at how the application is."""
ANSWER_SECONDS = 20.0
"""How long an application that runs already may take to say which model it serves."""


def say(line: str) -> None:
    """Prints a line at once, also into a pipe or a file: somebody may wait for it."""
    print(line, flush=True)


def serve(config: ServeConfig, log: Callable[[str], None] = say) -> None:
    """Serves until it is interrupted; what a replica has begun is still answered.

    Raises:
        InputError: the model cannot be used, the cluster has no room or serves something else, the port is taken, or
            somebody else takes the application down.
        KeyboardInterrupt: Ctrl-C or SIGTERM.
    """
    check_installed()
    import ray

    weights, _ = find_model(config.model)
    with on_disk(weights) as path:
        # What is wrong is said here in one line, not by each replica.
        load_model(path, inference=config.inference)
    local = not ray.is_initialized() and (config.address or os.environ.get("RAY_ADDRESS") or "local") == "local"
    with connect(config.address), terminable():  # in this order: Ray has a handler of its own
        _check_room(config)
        with serving(config, log, ends_with_ray=local):
            _watch(log)


def check_installed() -> None:
    """Raises InputError where something is absent of what Ray's `EXTRA` brings."""
    for line in metadata.requires("ray") or []:
        needed = Requirement(line)
        if needed.marker and needed.marker.evaluate({"extra": EXTRA}) and not needed.marker.evaluate({"extra": ""}):
            try:
                metadata.version(needed.name)
            except metadata.PackageNotFoundError:
                wanted = f"ray[{EXTRA}]"
                raise InputError(f"{wanted} is not installed (no {needed.name}); install it: pip install "
                                 f"'{wanted}=={metadata.version('ray')}'") from None  # fmt: skip


@contextmanager
def serving(config: ServeConfig, log: Callable[[str], None], ends_with_ray: bool = False) -> Iterator[str]:
    """The application on the Ray that this process has joined, for the block's length; gives its URL.

    Args:
        config: what is served, and where.
        log: takes lines.
        ends_with_ray: Ray ends right after the block, and with it what is left of Ray Serve.

    Raises:
        InputError: the port is taken, something else is served there, or no replica comes up.
    """
    from ray import serve as ray_serve
    from ray.serve.exceptions import RayServeException

    from pipelines.serving import NAME, application

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # otherwise a line for every change of state
    built = application(config)
    there = bool(ray_serve.status().proxies)
    if there:
        taken_over = _served_there(config)
        log("Ray Serve runs on this cluster already: the application joins it, with its host and port")
        if taken_over:
            log("the service that runs there with this model is taken over, and ends with this command")
    else:
        _check_port(config)
        ray_serve.start(http_options={"host": config.host, "port": config.port})
    log(f"starting {config.replicas} of {config.inference.named(str(locate(config.model)))}")
    url, begun = f"http://{config.host}:{config.port}", True
    try:
        try:
            with _telling(log):
                ray_serve.run(built, name=NAME, route_prefix="/")
        except RayServeException as error:  # refused, as where another application is at /: nothing was deployed
            begun = False
            raise InputError(f"the service is refused: {reason(error)}") from error
        except (RuntimeError, TimeoutError) as error:
            raise InputError(f"the service does not come up: {reason(error)}; see the cluster's logs") from error
        log("serving; Ctrl-C ends it" if there else f"serving at {url}; Ctrl-C ends it")
        yield url
    finally:
        if begun:
            log("ending the service")
            ray_serve.delete(NAME)  # waits for replicas to finish what they do; a shutdown alone would cut them off
        if not there and not ends_with_ray:
            ray_serve.shutdown()


def _served_there(config: ServeConfig) -> bool:
    """Whether the application runs already, with the same model: a command before this one was killed.

    Raises:
        InputError: it serves another model or is not ours; it is somebody else's.
    """
    from ray import serve as ray_serve

    from pipelines.serving import NAME

    if ray_serve.status().applications.get(NAME) is None:
        return False
    wanted = config.inference.named(str(find_model(config.model)[0]))
    try:
        served = ray_serve.get_app_handle(NAME).served.remote().result(timeout_s=ANSWER_SECONDS)
    except Exception as error:  # not there any more, not up, another program's: of many kinds
        raise InputError(f"an application '{NAME}' is on this cluster already and does not say what it serves "
                         f"({type(error).__name__}); end it first, or serve on another cluster") from error  # fmt: skip
    if served != wanted:
        raise InputError(f"this cluster serves {served} already, not {wanted}; end that service first, or serve on "
                         "another cluster")  # fmt: skip
    return True


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM, by which jobs and pods are stopped, is taken as Ctrl-C is."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _telling(log: Callable[[str], None]) -> Iterator[None]:
    """Says now and then, in the block, what a start that takes long waits for."""
    from ray import serve as ray_serve

    from pipelines.serving import NAME

    over = threading.Event()

    def tell() -> None:
        while not over.wait(PATIENCE_SECONDS):
            starting = ray_serve.status().applications.get(NAME)
            for deployment in starting.deployments.values() if starting else ():
                log(f"not up yet: {_line(deployment.message) or deployment.status.value}")

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def _watch(log: Callable[[str], None]) -> None:
    """Says how the application is whenever that changes."""
    from ray import serve as ray_serve

    from pipelines.serving import NAME

    shown = "RUNNING"
    while True:
        time.sleep(LOOK_SECONDS)
        seen = ray_serve.status().applications.get(NAME)
        if seen is None:
            raise InputError("the service was taken down by somebody else; start it again")
        if (now := str(seen.status.value)) != shown:
            log(f"service: {now.lower()} {_line(seen.message)}".rstrip())
            shown = now


def _check_room(config: ServeConfig) -> None:
    """The fewest replicas fit onto the nodes with nobody else there, or an autoscaler may add some."""
    from pipelines.doctor_room import largest

    low, _ = worker_range(config.replicas, "--replicas")
    room = fitting(node_resources(), config.share)
    if room < low and not largest():
        each = " and ".join(f"{need:g} {name}" for name, need in config.share.items())
        raise InputError(f"--replicas {config.replicas}: the cluster has room for {room} of {each}; ask for fewer, "
                         "for less --cpus, or without --gpu")  # fmt: skip


def _check_port(config: ServeConfig) -> None:
    """On this machine; nothing is known of other nodes'."""
    with socket.socket(socket.AF_INET6 if ":" in config.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise InputError(f"--host {config.host} --port {config.port}: cannot be listened on ({error.strerror}); "
                             "choose another --port") from None  # fmt: skip


def _line(message: str) -> str:
    """A message of Ray's in a line."""
    return without_password(" ".join(message.split()))[:300]
