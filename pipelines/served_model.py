"""The code of a model in MLflow: encoded images in, detections out.

MLflow keeps this file with the model's weights and a copy of the package `msrcnn`, and runs it where the model is
loaded. So it imports nothing of the project but that package.
"""

from __future__ import annotations

import math
import re
from threading import Lock
from typing import Any

import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc import PythonModel

from msrcnn import Prediction, load_model
from msrcnn.data.decoding import ImageError
from msrcnn.prediction import predictions

IMAGE = "image"
"""The column of encoded images in what is asked; in what is answered, the position of the image's row."""
TYPES: dict[str, str] = {
    IMAGE: "int64", "category_id": "int64", "category": "object", "x0": "float64", "y0": "float64", "x1": "float64",
    "y1": "float64", "class_score": "float64", "maskiou": "float64", "worth": "float64", "mask_score": "float64",
    "height": "int64", "width": "int64", "rle": "object",
}  # fmt: skip
"""The columns of the answer; one row a detection, best mask score first in each image."""
MIN_SCORE = "min_score"
"""The parameter: the least mask score of a detection; all are answered if absent."""
MOST_PIXELS = 50_000_000
"""Of an image: a few kilobytes can claim to be gigabytes of pixels, and anybody may send them."""
BASE64 = re.compile(rb"[A-Za-z0-9+/]{60,}")
"""How text begins that MLflow has not decoded: it does so for data frames, not for `inputs` and `instances`."""


class ServedModel(PythonModel):
    """Mask Scoring R-CNN as MLflow calls it."""

    def load_context(self, context: Any) -> None:
        """Reads the weights; on a GPU if there is one."""
        self.model = load_model(context.artifacts["weights"], "cuda" if torch.cuda.is_available() else "cpu")
        self.turn = Lock()  # MLflow's server calls from many threads, and memory is counted for one image at a time

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:  # noqa: ARG002
        """The detections in each image of the column `image`, as `TYPES`; no rows for an image without any.

        Raises:
            MlflowException: an image cannot be decoded, named by its row, counted from 0, or the parameter is no
                score. MLflow's server answers it with status 400.
        """
        least = (params or {}).get(MIN_SCORE)
        if least is not None and not math.isfinite(least):
            raise _refused(f"{MIN_SCORE} = {least} is not accepted; it must be a number")
        images = list(model_input[IMAGE])
        for row, image in enumerate(images):
            if not isinstance(image, (bytes, bytearray)):
                raise _refused(f"{_where(row)}: a {type(image).__name__}, expected the bytes of an image file")
        rows: list[dict[str, Any]] = []
        named = map(_where, range(len(images)))
        with self.turn:
            answers = predictions(self.model, map(bytes, images), named, most_pixels=MOST_PIXELS, min_score=least)
            for row, found in enumerate(answers):
                if isinstance(found, ImageError):
                    encoded = "; it is base64, which dataframe_split and dataframe_records take"
                    raise _refused(f"{found}{encoded if BASE64.match(images[row]) else ''}")
                rows += detection_columns(row, found)
        return pd.DataFrame(rows, columns=list(TYPES)).astype(TYPES)


def detection_columns(row: int, found: Prediction) -> list[dict[str, Any]]:
    """The detections in an image as rows of the answer."""
    return [
        {
            IMAGE: row, "category_id": one.category_id, "category": one.category,
            **dict(zip(("x0", "y0", "x1", "y1"), one.box, strict=True)),
            "class_score": one.class_score, "maskiou": one.maskiou, "worth": one.worth, "mask_score": one.mask_score,
            "height": found.height, "width": found.width, "rle": one.rle.decode("ascii"),
        }
        for one in found.detections()
    ]  # fmt: skip


def _refused(reason: str) -> MlflowException:
    return MlflowException(reason, error_code=BAD_REQUEST)


def _where(row: int) -> str:
    return f"row {row} of the column {IMAGE!r}"


set_model(ServedModel())
