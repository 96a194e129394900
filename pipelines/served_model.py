"""The code of a model in MLflow: encoded images in, detections out.

MLflow keeps this file with the model's weights and a copy of the package `msrcnn`, and runs it where the model is
loaded. So it imports nothing of the project but that package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from msrcnn.data.batching import make_batch
from msrcnn.data.decoding import ImageError, upright_size
from msrcnn.detection_rows import detection_rows
from msrcnn.errors import InputError
from msrcnn.rows import ImageTruth
from msrcnn.structures import Detections
from msrcnn.weights import load_model

IMAGE = "image"
"""The column of encoded images in what is asked; in what is answered, the position of the image's row."""
MAX_PIXELS = 1 << 28
"""Of an image: a few kilobytes can claim to be gigabytes of pixels."""
TYPES: dict[str, str] = {
    IMAGE: "int64", "category_id": "int64", "category": "object", "x0": "float64", "y0": "float64", "x1": "float64",
    "y1": "float64", "class_score": "float64", "maskiou": "float64", "mask_score": "float64", "height": "int64",
    "width": "int64", "rle": "object",
}  # fmt: skip
"""The columns of the answer; one row a detection, best class score first in each image."""


class ServedModel(PythonModel):
    """Mask Scoring R-CNN as MLflow calls it."""

    def load_context(self, context: Any) -> None:
        """Reads the weights; on a GPU if there is one."""
        checkpoint = load_model(Path(context.artifacts["weights"]))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model, self.data = checkpoint.model.to(self.device), checkpoint.data
        self.categories = {number: (source, name) for number, source, name in checkpoint.categories}

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """The detections in each image of the column `image`, as `TYPES`; no rows for an image without any.

        Raises:
            InputError: an image cannot be decoded; the message names its row, counted from 0.
        """
        rows: list[dict[str, Any]] = []
        for row, image in enumerate(model_input[IMAGE]):  # one by one: an answer does not depend on what else was asked
            rows += self._detect(row, image)
        return pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)

    def _detect(self, row: int, image: Any) -> list[dict[str, Any]]:
        where = f"row {row} of the column {IMAGE!r}"
        if not isinstance(image, (bytes, bytearray)):
            raise InputError(f"{where}: a {type(image).__name__}, expected the bytes of an image file")
        try:
            height, width = upright_size(bytes(image), where)
            if height * width > MAX_PIXELS:
                raise InputError(f"{where}: {width} x {height} pixels, at most {MAX_PIXELS} are taken; "
                                 "give a smaller image")  # fmt: skip
            batch = make_batch([bytes(image)], [truth := _nothing_known(row, height, width)], self.data)
        except ImageError as error:
            raise InputError(f"{where}: {error.detail}; {error.remedy}") from None
        found: Detections = self.model(batch.to(self.device))
        return [
            self._row(row, detection)
            for detection in detection_rows(batch, found, [truth])
            if detection.get("category") is not None
        ]

    def _row(self, row: int, detection: dict[str, Any]) -> dict[str, Any]:
        source, name = self.categories[detection["category"]]
        kept = ("class_score", "maskiou", "mask_score", "height", "width")
        return {
            IMAGE: row, "category_id": source, "category": name,
            **dict(zip(("x0", "y0", "x1", "y1"), detection["bbox"], strict=True)),
            **{key: detection[key] for key in kept}, "rle": detection["rle"].decode("ascii"),
        }  # fmt: skip


def _nothing_known(row: int, height: int, width: int) -> ImageTruth:
    """An image of which only the size is known."""
    return ImageTruth(
        row, height, width, np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros((0, 4), np.float32),
        np.zeros(0, np.float32), np.zeros(0, bool), [],
    )  # fmt: skip


set_model(ServedModel())
