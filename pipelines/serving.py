"""A model behind HTTP, as a Ray Serve application: `msrcnn serve`, `serve run pipelines.serving:app`, a RayService.

    GET  /         what is served
    GET  /health   whether a replica answers
    POST /detect   the bytes of an image file -> its detections

A replica decodes an image while the network is at the ones before it. Images that wait together go through the network
together where that is faster (`msrcnn.prediction.suited_batch`); nobody waits for others to come.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from msrcnn import Prediction, __version__, load_model
from msrcnn.data.decoding import decode_unstated
from msrcnn.errors import InputError
from msrcnn.inference_config import InferenceConfig, SelectionChanges
from msrcnn.prediction import predictions, suited_batch
from pipelines.gpu_memory import too_little_to_serve
from pipelines.options import worker_range
from pipelines.run_directory import find_model
from pipelines.serving_http import Refused, Wanted, answered, body_of, described, refusal
from pipelines.serving_options import ServiceOptions
from pipelines.storage import locate, on_disk
from pipelines.turns import Turns

NAME = "msrcnn"
"""Of the application."""
WHERE = "the image"
"""What it is called in errors."""
NO_MEMORY = f"{WHERE}: the server's GPU has too little memory for it now; try again later, or ask who runs the server"
"""Not the image's fault: every one is resized to about the same size."""
ONGOING = 16
"""Requests that a replica takes beside those whose images it decodes and detects in: bytes, and the small ones."""


class Detector:
    """A replica.

    Args:
        model: a model file, by its URL.
        gpu: whether it computes on one.
        threads: that it computes with.
        batch: the most images a step of the network; 0: as many as suit the device.
        most: bytes of the largest image file.
        most_pixels: of the largest image.
        inference: how the model detects, where that is to be otherwise than its file says.
    """

    def __init__(
        self, model: str, gpu: bool, threads: int, batch: int, most: int, most_pixels: int,
        inference: InferenceConfig,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        place = locate(model)
        with on_disk(place) as path:
            self._model = load_model(path, "cuda" if gpu else "cpu", inference)
        size = batch or suited_batch(self._model.device)
        self._place, self._most, self._most_pixels = str(place), most, most_pixels
        self._inference = inference
        self._detect: Turns[tuple[Image.Image, float | None], Prediction | InputError] = Turns(self._predictions, size)
        self._decoded = asyncio.Semaphore(2 * size)  # a batch in the network, another one ready: pixels are large

    async def __call__(self, request: Request) -> Response:
        """Answers a request; errors of the asker's as JSON with one line, `error`."""
        place, method = request.url.path.rstrip("/"), request.method
        try:
            if place not in ("", "/health", "/detect"):
                raise Refused(404, f"{place}: nothing is here; there are GET /, GET /health and POST /detect")
            if place == "/detect":
                if method != "POST":
                    raise Refused(405, f"{method} /detect: POST the bytes of an image file")
                return await self._detections(request)
            if method not in ("GET", "HEAD"):
                raise Refused(405, f"{method} {place or '/'}: GET it, or POST an image to /detect")
            return answered(self._about() if place == "" else {"status": "ok"})
        except InputError as error:
            return refusal(error)

    def served(self) -> str:
        """The model and how it detects, as `msrcnn serve` compares it; without the password that its URL may hold."""
        return self._inference.named(self._place)

    async def _detections(self, request: Request) -> Response:
        wanted = Wanted.of_query(request.query_params.multi_items())
        data = await body_of(request, self._most)
        async with self._decoded:
            image = await asyncio.to_thread(decode_unstated, data, WHERE, self._most_pixels)
            found = await self._detect((image, wanted.min_score))
        if isinstance(found, InputError):
            raise found
        return answered(await asyncio.to_thread(described, found, wanted))

    def _predictions(self, asked: list[tuple[Image.Image, float | None]]) -> list[Prediction | InputError]:
        """What is in each image of those who came together; one by one where a GPU's memory is too small for all."""
        try:
            return self._together(asked)
        except torch.OutOfMemoryError:
            logging.getLogger("ray.serve").warning(too_little_to_serve(len(asked), self._model.data))
            if len(asked) == 1:
                return [Refused(503, NO_MEMORY)]
        # Only here is the error gone, and with it what the step holds of the memory.
        return [found for one in asked for found in self._predictions([one])]

    def _together(self, asked: list[tuple[Image.Image, float | None]]) -> list[Prediction | InputError]:
        """What at least one of those asks for; `described` leaves out what the others do not."""
        scores = [score for _, score in asked if score is not None]
        least = min(scores) if len(scores) == len(asked) else None
        images, names = [image for image, _ in asked], [WHERE] * len(asked)
        return list(predictions(self._model, images, names, self._detect.size, min_score=least))

    def _about(self) -> dict[str, Any]:
        return {
            "program": f"msrcnn {__version__}",
            "model": self.served(),
            "categories": [{"id": number, "name": name} for _, number, name in self._model.categories],
            "device": str(self._model.device),
            "precision": self._model.precision,
            "images_a_step": self._detect.size,
            "max_bytes": self._most,
            "max_pixels": self._most_pixels,
        }


def application(options: ServiceOptions) -> serve.Application:
    """The application for these options.

    Raises:
        InputError: there is no such model.
    """
    weights, _ = find_model(options.model)
    low, high = worker_range(options.replicas, "--replicas")
    ahead = 2 * (options.batch or suited_batch(torch.device("cuda" if options.gpu else "cpu")))
    scale: dict[str, Any] = {"num_replicas": low}
    if low < high:
        scale = {"autoscaling_config": {
            "min_replicas": low, "max_replicas": high, "target_ongoing_requests": ahead,
        }}  # fmt: skip
    deployment = serve.deployment(
        **scale, max_ongoing_requests=ONGOING + ahead, max_queued_requests=options.queue,
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": int(options.gpu)},
        max_constructor_retry_count=3,
    )(Detector)  # fmt: skip
    threads = max(1, int(options.cpus))
    limits = int(options.max_mb * 1e6), int(options.max_megapixels * 1e6)
    return deployment.bind(weights.url, options.gpu, threads, options.batch, *limits, options.inference)


def app(args: Mapping[str, Any]) -> serve.Application:
    """The application for arguments by name, as `serve run` and a RayService give them: those of `ServiceOptions`.

    Raises:
        InputError: one is unknown, absent or not accepted.
    """
    nested = args.get("selection")
    for given, options, place in ((args, ServiceOptions, ""), (nested, SelectionChanges, "selection.")):
        known = [field.name for field in fields(options)]
        if isinstance(given, Mapping) and (unknown := sorted({*given} - {*known})):
            raise InputError(f"{place}{unknown[0]}: no such argument of the service; there are {', '.join(known)}")
    arguments = {name: str(value) if name == "replicas" else value for name, value in args.items()}
    try:
        return application(TypeAdapter(ServiceOptions).validate_python(arguments))
    except ValidationError as error:
        wrong = error.errors()[0]
        place = ".".join(str(part) for part in wrong["loc"])
        raise InputError(f"{place or 'arguments'} of the service: {wrong['msg']}; correct it") from None
