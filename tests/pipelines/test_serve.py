"""`msrcnn serve` as a command: starts, answers, ends with its processes; what cannot be is said in a line."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import Response

from msrcnn import load_model, predict
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig, SelectionChanges
from pipelines import serving as application
from pipelines.serve import check_installed, serve
from pipelines.serve import serving as serving_of
from pipelines.serving_options import ServeConfig
from pipelines.storage import locate
from tests import serving
from tests.commands import Command, processes
from tests.mlflow_server import free_port
from tests.predicting import write_model
from tests.ray_nodes import ROOT
from tests.serving import ask, many, rows_of, same
from tests.tiny import shape_image


class Serve(Command):
    def __init__(self, folder: Path, model: Path, *options: str) -> None:
        self.folder, self.model, self.options = folder, model, options
        self.url = f"http://127.0.0.1:{free_port()}"

    def arguments(self) -> list[str]:
        return ["serve", str(self.model), "--port", self.url.rpartition(":")[2], *self.options]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model.pt")


def argued(model: Path, arguments: dict[str, object]):
    return application.app({"model": str(model)} | arguments)


def test_the_application_takes_the_options_by_name(model):
    """As text too: `serve run` has nothing else."""
    built = argued(model, {"replicas": "1:3", "queue": "7", "gpu": "true", "cpus": 2, "batch": 4})
    options = built._bound_deployment
    assert options.ray_actor_options == {"num_cpus": 2.0, "num_gpus": 1}
    assert (options.max_queued_requests, options.max_ongoing_requests) == (7, 16 + 2 * 4)
    scale = options._deployment_config.autoscaling_config
    assert (scale.min_replicas, scale.max_replicas, scale.target_ongoing_requests) == (1, 3, 2 * 4)
    assert argued(model, {"replicas": 2})._bound_deployment.num_replicas == 2
    asked = argued(model, {"selection": {"method": "hard", "top_k": "4"}, "maskiou_power": 2})
    said = InferenceConfig(selection=SelectionChanges(method="hard", top_k=4), maskiou_power=2.0)
    assert asked._bound_deployment.init_args[-1] == said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"replica": 2}, "replica: no such argument of the service; there are selection, maskiou_power, precision"),
        (
            {"selection": {"iou_treshold": 0.4}},
            "selection.iou_treshold: no such argument of the service; there are",
        ),
        ({"queue": "many"}, "queue of the service: .*valid integer.*; correct it"),
        ({"selection": {"sigma": 0}}, "selection.sigma = 0.0 is not accepted; it must be above 0"),
        ({"queue": 0}, "--queue = 0 is not accepted; it must be at least 1"),
        ({"max_megapixels": 500}, "--max-megapixels = 500.0 is not accepted; it must be above 0, at most 268"),
        ({"replicas": "2:1"}, "--replicas = '2:1' is not accepted; it must be a number from 1, or MIN:MAX"),
        ({"model": "nowhere"}, "nowhere: neither a run directory nor a model file"),
    ],
)
def test_arguments_that_are_not_accepted(model, arguments, says):
    with pytest.raises(InputError, match=says):
        argued(model, arguments)


def test_no_replica_starts_where_something_is_wrong(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"model\.pt: not a model checkpoint"):
        serve(ServeConfig(tmp_path))


def test_an_extra_of_ray_that_is_absent_is_named(monkeypatch):
    check_installed()
    monkeypatch.setattr("pipelines.serve.EXTRA", "llm")
    with pytest.raises(
        InputError, match=r"^ray\[llm\] is not installed \(no .*\); install it: pip install 'ray\[llm\]==2"
    ):
        check_installed()


def posted(data: bytes) -> Request:
    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": data, "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/detect", "query_string": b"", "headers": []}, receive)


def test_images_that_wait_together_go_through_the_network_together(model):
    """As on a GPU: those of one padded shape in one step; an image that is none costs the others nothing."""
    detector = application.Detector(str(model), False, 1, 4, 10**6, 10**6, InferenceConfig())
    steps: list[int] = []
    detector._model.model.register_forward_pre_hook(lambda _, inputs: steps.append(len(inputs[0].images)))
    files = [*serving.images() * 4, b"no image"]

    *answers, wrong = asyncio.run(answers_of(detector, [posted(data) for data in files]))
    assert wrong.status_code == 400
    assert sum(steps) == len(answers) == 20
    assert max(steps) in (2, 3, 4)
    expected = predict(load_model(model), files[:-1])
    for found, answer in zip(expected, answers, strict=True):
        rows = json.loads(answer.body)["detections"]
        assert [row["category"] for row in rows] == [*found.names]
        assert [row["mask_score"] for row in rows] == pytest.approx(found.mask_scores.tolist(), abs=1e-5)


def test_a_model_is_shown_without_the_password_of_its_url(model):
    url = "memory://name:secret@bucket/model.pt"
    locate(url).write(model.read_bytes())
    detector = application.Detector(url, False, 1, 1, 10**6, 10**6, InferenceConfig())
    (answer,) = asyncio.run(answers_of(detector, [Request({**posted(b"").scope, "method": "GET", "path": "/"})]))
    assert json.loads(answer.body)["model"] == "memory://bucket/model.pt"
    assert "secret" not in detector.served()


async def answers_of(detector: application.Detector, requests: list[Request]) -> list[Response]:
    return await asyncio.gather(*map(detector, requests))


@pytest.mark.slow
@pytest.mark.ray
def test_a_service_is_only_taken_over_by_its_own_model(model, tmp_path, ray_session):  # noqa: ARG001
    """What serves something else goes on after the command that is refused."""
    other, lines = write_model(tmp_path / "other.pt"), []
    with serving_of(ServeConfig(model, port=free_port()), print) as url:
        with (
            pytest.raises(InputError, match=r"this cluster serves .*/model\.pt already, not .*/other\.pt; end that"),
            serving_of(ServeConfig(other), print),
        ):
            pass
        assert health(url) == 200
        with serving_of(ServeConfig(model), lines.append):
            assert "the service that runs there with this model is taken over, and ends with this command" in lines
            assert health(url) == 200
        assert health(url) != 200


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("msrcnn", "an application 'msrcnn' is on this cluster already and does not say what it serves"),
        ("other", 'the service is refused: .*Prefix / is being used by application "other"'),
    ],
)
def test_somebody_elses_application_stays(model, ray_session, name, says):  # noqa: ARG001
    from ray import serve as ray_serve

    @ray_serve.deployment
    class Stranger:
        def __call__(self, _: Request) -> str:
            return "still here"

    port = free_port()
    ray_serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        ray_serve.run(Stranger.bind(), name=name, route_prefix="/")
        with pytest.raises(InputError, match=says), serving_of(ServeConfig(model), print):
            pass
        assert ask(f"http://127.0.0.1:{port}") == (200, "still here")
    finally:
        ray_serve.shutdown()


@pytest.mark.ray
def test_room_and_port_are_looked_at_first(model, ray_session):  # noqa: ARG001  the cluster must be up
    with pytest.raises(InputError, match="--replicas 9: the cluster has room for 2 of 1 CPU; ask for fewer"):
        serve(ServeConfig(model, replicas="9"))
    with pytest.raises(InputError, match="room for 0 of 1 CPU and 1 GPU"):
        serve(ServeConfig(model, gpu=True))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match=r"cannot be listened on .*; choose another --port"):
            serve(ServeConfig(model, port=taken.getsockname()[1]))


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 130)])
def test_a_service_until_it_is_ended(model, tmp_path, number, code):
    """A model with two replicas; what it has begun is answered, and no process stays."""
    command = Serve(tmp_path, model, "--replicas", "2")
    command.start()
    command.wait_for("serving at ")
    data = shape_image(0)[0]
    (found,) = predict(load_model(model), data)
    for _, (status, answer) in many(lambda image: ask(f"{command.url}/detect", image), [data], 20):
        assert (status, same(found, rows_of(answer))) == (200, True)
    begun = http.client.HTTPConnection(command.url.removeprefix("http://"), timeout=60)
    begun.putrequest("POST", "/detect")
    begun.putheader("Content-Length", str(len(data)))
    begun.endheaders(data[:100])
    time.sleep(1)
    assert command.driver is not None
    send = os.killpg if number == signal.SIGINT else os.kill  # a terminal interrupts all that it has started
    send(command.driver.pid, number)
    command.wait_for("ending the service")
    time.sleep(1)
    begun.send(data[100:])
    answered = begun.getresponse()
    assert (answered.status, same(found, rows_of(json.loads(answered.read())))) == (200, True)
    assert command.finish() == code
    assert command.log().splitlines() == [
        f"starting 2 of {model}", f"serving at {command.url}; Ctrl-C ends it", "ending the service",
        "msrcnn: interrupted",
    ]  # fmt: skip
    assert processes("ray::", command.mark) == []


@pytest.mark.slow
@pytest.mark.ray
def test_a_configuration_as_a_ray_service_has_it(model, tmp_path):
    """Run by Ray's own command, outside of any program of ours."""
    url = f"http://127.0.0.1:{free_port()}"
    config = {
        "http_options": {"host": "127.0.0.1", "port": int(url.rpartition(":")[2])},
        "applications": [{
            "name": "msrcnn", "route_prefix": "/", "import_path": "pipelines.serving:app",
            "args": {"model": str(model), "queue": 5},
        }],
    }  # fmt: skip
    (tmp_path / "service.yaml").write_text(json.dumps(config))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "disabled"}
    command = ["-c", "from ray.serve.scripts import cli; cli()", "run", "service.yaml"]
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=log, stderr=log, start_new_session=True, cwd=tmp_path
        )
    try:
        deadline = time.monotonic() + 120
        while health(url) != 200:
            assert driver.poll() is None, (tmp_path / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()[-2000:]
            time.sleep(0.2)
        status, answer = ask(f"{url}/detect", shape_image(0)[0])
        assert status == 200
        assert same(predict(load_model(model), shape_image(0)[0])[0], rows_of(answer))
    finally:
        driver.send_signal(signal.SIGINT)
        driver.wait(60)


def health(url: str) -> int:
    """The status; 0 as long as nobody listens."""
    try:
        return ask(f"{url}/health", timeout=5)[0]
    except OSError:
        return 0
