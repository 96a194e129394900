"""Mask Scoring R-CNN (Huang et al., CVPR 2019): the method, without any cluster.

    from msrcnn import load_model, predict

    model = load_model("runs/first")
    for found in predict(model, ["street.jpg", pixels]):
        print(found.names, found.mask_scores, found.masks().shape)

This package imports torch, torchvision, numpy, pycocotools and hotcoco, and nothing of Ray or MLflow: those live
in `pipelines`. Importing `msrcnn` itself is cheap; torch comes with what needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from msrcnn.errors import InputError
    from msrcnn.inference_config import InferenceConfig, SelectionChanges
    from msrcnn.prediction import Prediction, predict, predictions
    from msrcnn.weights import Checkpoint, load_model

__all__ = [
    "Checkpoint", "InferenceConfig", "InputError", "Prediction", "SelectionChanges", "load_model", "predict",
    "predictions",
]  # fmt: skip
__version__ = "0.1.0"
HOMES = {
    "InputError": "errors", "InferenceConfig": "inference_config", "SelectionChanges": "inference_config",
    "Checkpoint": "weights", "load_model": "weights",
}  # fmt: skip
"""Modules of what is exported and not in `msrcnn.prediction`."""
MODEL = "model.pt"
"""A finished model in the folder of its training."""


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module 'msrcnn' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(f"msrcnn.{HOMES.get(name, 'prediction')}"), name)
