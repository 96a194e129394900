"""A model behind Ray Serve answers as `predict` does, whoever else asks; what is wrong with a request is said."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from starlette.requests import Request

from msrcnn import load_model, predict
from msrcnn.detector import MaskScoringRCNN
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig, SelectionChanges
from msrcnn.structures import Batch
from pipelines.serving import ONGOING, Detector
from pipelines.serving_options import ServeConfig
from tests import serving
from tests.mlflow_server import free_port
from tests.predicting import CATEGORIES, write_model
from tests.serving import ask, huge_png, many, rows_of, same
from tests.tiny import SIDE, shape_image

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_thread")]
MOST = 200_000
QUEUE = 90


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("run") / "model.pt")


@pytest.fixture(scope="module")
def url(model, ray_session):  # noqa: ARG001  the cluster must be up
    from pipelines.serve import serving as served

    lines: list[str] = []
    with served(ServeConfig(model, max_mb=MOST / 1e6, queue=QUEUE, port=free_port()), lines.append) as address:
        assert lines == [f"starting 1 of {model}", f"serving at {address}; Ctrl-C ends it"]
        yield address


def test_a_hundred_at_once_get_what_predict_finds(model, url):
    files = serving.images()
    expected = predict(load_model(model), files)
    assert {len(found) for found in expected} != {0}
    for place, (status, answer) in many(lambda data: ask(f"{url}/detect", data, "image/png"), files):
        found = expected[place]
        assert (status, answer["height"], answer["width"]) == (200, found.height, found.width)
        assert same(found, rows_of(answer))
        assert all(row["rle"]["size"] == [found.height, found.width] for row in answer["detections"])


def test_least_score_and_polygons(model, url):
    data = shape_image(0)[0]
    (found,) = predict(load_model(model), data)
    least = float(np.median(found.mask_scores))
    fewer = found.above(least)
    assert 0 < len(fewer) < len(found)
    status, answer = ask(f"{url}/detect?min_score={least!r}", data)
    assert status == 200
    assert same(fewer, rows_of(answer))
    status, answer = ask(f"{url}/detect?polygons=1&min_score={least!r}", data)
    assert status == 200
    assert {*answer["detections"][0]} == {
        "category_id", "category", "box", "class_score", "maskiou", "worth", "mask_score", "polygons",
    }  # fmt: skip
    rings = [[ring.tolist() for ring in of] for of in fewer.polygons()]
    assert [row["polygons"] for row in answer["detections"]] == rings


def posted(replica: Detector, *asked: tuple[bytes, str]) -> list[tuple[int, Any]]:
    """Status and answer of requests with these bodies and queries, made at once of a replica in this process."""

    async def answer(data: bytes, query: str) -> tuple[int, Any]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": data, "more_body": False}

        scope = {"type": "http", "method": "POST", "path": "/detect", "headers": [], "query_string": query.encode(),
                 "server": ("here", 80)}  # fmt: skip
        answered = await replica(Request(scope, receive))
        return answered.status_code, json.loads(answered.body)

    async def answers() -> list[tuple[int, Any]]:
        return await asyncio.gather(*(answer(*one) for one in asked))

    return asyncio.run(answers())


def test_each_of_those_in_a_step_gets_the_scores_asked_for(model):
    """Masks are pasted from the least of them on."""
    data, replica = shape_image(0)[0], Detector(str(model), False, 1, 3, MOST, SIDE * SIDE, InferenceConfig())
    (found,) = predict(load_model(model), data)
    half, tenth = (float(np.quantile(found.mask_scores, share)) for share in (0.505, 0.905))

    asked = [half, tenth, half, tenth, None, half, None, tenth]
    told = posted(replica, *((data, "" if least is None else f"min_score={least!r}") for least in asked))
    for least, (_, one) in zip(asked, told, strict=True):
        expected = found if least is None else found.above(least)
        assert [row["category_id"] for row in one["detections"]] == expected.category_ids.tolist()
    assert 0 < len(found.above(tenth)) < len(found.above(half)) < len(found)


def test_a_model_that_is_to_detect_otherwise_is_served_so_and_says_so(model):
    asked = InferenceConfig(selection=SelectionChanges(method="hard", top_k=4), maskiou_power=2.0, precision="bfloat16")
    data, replica = shape_image(0)[0], Detector(str(model), False, 1, 3, MOST, SIDE * SIDE, asked)
    ((_, answer),) = posted(replica, (data, ""))
    (found,) = predict(load_model(model, inference=asked), data)
    assert same(found, rows_of(answer))
    (other,) = predict(load_model(model, inference=replace(asked, precision="float32")), data)
    assert not same(other, rows_of(answer))
    assert len(found) <= 4 < len(predict(load_model(model), data)[0])
    how = "selection.method=hard, selection.top_k=4, maskiou_power=2, precision=bfloat16"
    assert replica.served() == f"{model} with {how}"


@pytest.mark.parametrize("lying_fits", [True, False])
def test_what_does_not_fit_into_a_gpu_s_memory_together_goes_one_by_one(lying_fits, model, monkeypatch):
    """Who asked beside others gets what they would have got alone; what does not fit alone is a line, and a 503."""
    whole, sizes = MaskScoringRCNN.forward, []

    def small(self: MaskScoringRCNN, batch: Batch) -> Any:
        sizes.append(len(batch.image_ids))
        height, width = batch.sizes[0].tolist()
        if sizes[-1] > 1 or (height != width and not lying_fits):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return whole(self, batch)

    lying, *others = serving.images()
    files = [others[0], others[1], lying, others[2], others[3]]
    expected = predict(load_model(model), files)
    replica = Detector(str(model), False, 1, 4, MOST, SIDE * SIDE, InferenceConfig())
    monkeypatch.setattr(MaskScoringRCNN, "forward", small)
    for place, (status, answer) in enumerate(posted(replica, *((data, "") for data in files))):
        if files[place] is lying and not lying_fits:
            assert (status, [*answer]) == (503, ["error"])
            assert answer["error"].startswith("the image: the server's GPU has too little memory for it now; try again")
        else:
            assert status == 200
            assert same(expected[place], rows_of(answer))
    assert max(sizes) > 1  # they did come together


def test_what_it_says_of_itself(model, url):
    status, about = ask(url)
    assert status == 200
    assert about["model"].endswith(str(model))
    assert about["categories"] == [{"id": i, "name": name} for _, i, name in CATEGORIES]
    assert (about["device"], about["precision"], about["images_a_step"]) == ("cpu", "float32", 1)
    assert (about["max_bytes"], about["max_pixels"]) == (MOST, 50_000_000)
    assert ask(f"{url}/health") == (200, {"status": "ok"})


@pytest.mark.parametrize(
    ("query", "body", "kind", "status", "says"),
    [
        ("", b"no image", "image/png", 400, "the image: not a readable image (no known image format)"),
        ("", b"", "image/png", 400, "the image: not a readable image (the file is empty"),
        ("", shape_image(0)[0][:500], "image/png", 400, "the image: not a readable image (500 bytes"),
        ("", huge_png(), "image/png", 400, "100000 x 100000 pixels, at most 50000000 are taken"),
        ("", huge_png(7072), "image/png", 400, "7072 x 7072 pixels, at most 50000000 are taken; give a smaller image"),
        ("", b"/etc/passwd", "text/plain", 400, "not a readable image"),
        ("", b'{"image": ""}', "application/json", 400, "send the bytes of an image file as the body"),
        ("", b"--x", "multipart/form-data; boundary=x", 400, "content type multipart/form-data: send the bytes"),
        ("", bytes(MOST + 1), "image/png", 413, f"the image: {MOST + 1} bytes, at most {MOST} are taken"),
        ("?min_score=high", b"", "image/png", 400, "min_score = 'high' is not accepted; it must be a number"),
        ("?min_score=nan", b"", "image/png", 400, "min_score = 'nan' is not accepted; it must be a number"),
        ("?polygons=2", b"", "image/png", 400, "polygons = '2' is not accepted; it must be 0 or 1"),
        ("?least=1", b"", "image/png", 400, "no parameter 'least'; there are min_score and polygons"),
        ("?min_score=0&min_score=1", b"", "image/png", 400, "min_score is given twice"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_a_line(url, query, body, kind, status, says):
    got, answer = ask(f"{url}/detect{query}", body, kind)
    assert (got, [*answer]) == (status, ["error"])
    assert says in answer["error"]
    assert "\n" not in answer["error"]


def test_another_model_is_refused_and_this_one_served_on(url, tmp_path):
    from pipelines.serve import serving as served

    other = write_model(tmp_path / "other.pt")
    says = r"this cluster serves .*/model\.pt already, not .*/other\.pt; end that service first"
    with pytest.raises(InputError, match=says), served(ServeConfig(other), print):
        pass
    assert ask(f"{url}/health")[0] == 200


def test_other_places_and_methods(url):
    assert ask(f"{url}/detect")[0] == 405
    assert ask(f"{url}/health", b"x")[0] == 405
    status, answer = ask(f"{url}/etc/passwd")
    assert (status, answer["error"]) == (
        404, "/etc/passwd: nothing is here; there are GET /, GET /health and POST /detect",
    )  # fmt: skip


def begin(url: str, data: bytes, stated: int | None = None) -> http.client.HTTPConnection:
    """A request whose body is sent up to its 50th byte, and stated to be as long as it is, or so long."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    connection.putrequest("POST", "/detect")
    connection.putheader("Content-Length", str(len(data) if stated is None else stated))
    connection.endheaders(data[:50])
    return connection


def test_a_body_that_is_stated_to_be_too_large_is_not_waited_for(url):
    connection = begin(url, bytes(50), 50 * MOST)
    answer = connection.getresponse()
    assert answer.status == 413
    says = json.loads(answer.read())["error"]
    assert says == f"the image: {50 * MOST} bytes, at most {MOST} are taken; send a smaller file"
    connection.close()


def test_a_body_of_no_stated_size(url):
    """Sent in pieces; one that grows too large is refused, also where it is not read to its end."""
    data = shape_image(2)[0]
    for body, status in ((data, 200), (data + bytes(2 * MOST), 413), (data + bytes(50 * MOST), 413)):
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
        pieces = (body[i : i + 10_000] for i in range(0, len(body), 10_000))
        connection.request("POST", "/detect", pieces, encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        answer = connection.getresponse()
        assert answer.status == status, answer.read()
        connection.close()


def test_too_many_are_told_so_and_the_others_are_answered(model, url):
    """Requests of which half is sent fill the replica and the queue; who goes makes room."""
    data = shape_image(3)[0]
    (found,) = predict(load_model(model), data)
    held = [begin(url, data) for _ in range(ONGOING + 2 + QUEUE + 20)]
    time.sleep(1)
    assert ask(f"{url}/detect", data)[0] == 503
    for connection in held[:5]:
        connection.send(data[50:])
        answer = connection.getresponse()
        assert answer.status == 200
        assert same(found, rows_of(json.loads(answer.read())))
    for connection in held:
        connection.close()
    deadline = time.monotonic() + 60
    while (status := ask(f"{url}/detect", data)[0]) == 503:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status == 200
