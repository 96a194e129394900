"""A finished model in MLflow's registry, for anyone with MLflow to load and serve: weights and code, nothing pickled.

Every call goes through the tracker's own client, so MLflow's global state (tracking address, active run) is neither
read nor changed, and a thread can do it.
"""

from __future__ import annotations

import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msrcnn
from msrcnn.errors import InputError
from pipelines.storage import sha256_of
from pipelines.tracking import Tracker

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

CODE = Path(__file__).with_name("served_model.py")
REQUIREMENTS = ("mlflow", "numpy", "pandas", "pillow", "pycocotools", "torch", "torchvision")
DIGEST_TAG = "msrcnn.sha256"
"""Of the weights: by it a model that was logged before, or in part, is known again."""
KINDS = {"int64": "long", "float64": "double", "object": "string"}
"""MLflow's names of the types of the answer's columns, by pandas'."""


def requirements() -> list[str]:
    """What the served model imports, at the versions installed here; without a build's own part (`+cpu`)."""
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in REQUIREMENTS]


def log_model(tracker: Tracker, model: Path, name: str, registered: str | None = None) -> str:
    """Logs a model file to the tracker's run and registers it. Done again, it finds what is there and adds nothing.

    Args:
        tracker: whose run the model comes from.
        model: written by `msrcnn.weights.save_model`.
        name: of the model in the run.
        registered: of the model in the registry, of which this becomes a version; not registered if absent.

    Returns:
        The URI that MLflow loads it by: `models:/REGISTERED/VERSION`, or `models:/ID` where it is not registered.

    Raises:
        InputError: there is no such file.
    """
    if not model.is_file():
        raise InputError(f"{model}: no such file; expected a model that `msrcnn train` wrote")
    logged = _logged_model(tracker, model, name)
    if registered is None:
        return f"models:/{logged.model_id}"
    return f"models:/{registered}/{_version(tracker, logged, registered)}"


def _logged_model(tracker: Tracker, model: Path, name: str) -> LoggedModel:
    """The run's model of that name and these weights, complete."""
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    client = tracker.client
    digest = sha256_of(model)
    experiment = client.get_run(tracker.run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{tracker.run_id}'")
    same = [m for m in found if m.name == name and m.tags.get(DIGEST_TAG) == digest]
    same.sort(key=lambda m: m.status != LoggedModelStatus.READY)
    if not same:
        same = [client.create_logged_model(
            experiment, name, tracker.run_id, tags={DIGEST_TAG: digest}, model_type="instance-segmentation"
        )]  # fmt: skip
    logged = same[0]
    if logged.status == LoggedModelStatus.READY:
        return logged
    client.log_outputs(tracker.run_id, [LoggedModelOutput(logged.model_id, step=0)])
    with tempfile.TemporaryDirectory(prefix="msrcnn-") as folder:
        _save(Path(folder) / "model", model, tracker.run_id, logged)
        client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
    return client.finalize_logged_model(logged.model_id, LoggedModelStatus.READY)


def _save(folder: Path, model: Path, run_id: str, logged: LoggedModel) -> None:
    """Writes the model as MLflow keeps it, with its code, into `folder`."""
    from mlflow import pyfunc
    from mlflow.models import Model, ModelSignature
    from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    from pipelines.served_model import IMAGE, MIN_SCORE, TYPES  # imports torch

    def schema(columns: dict[str, str]) -> Schema:
        return Schema([ColSpec(DataType[kind], name) for name, kind in columns.items()])

    warnings.filterwarnings("ignore", message=".*input example was not provided")  # the signature is written by hand
    described: Any = Model(
        artifact_path=logged.artifact_location, model_uuid=logged.model_id, run_id=run_id, model_id=logged.model_id
    )
    pyfunc.save_model(
        path=str(folder),
        python_model=str(CODE),
        artifacts={"weights": str(model)},
        code_paths=[str(Path(msrcnn.__file__).parent)],
        signature=ModelSignature(
            schema({IMAGE: "binary"}),
            schema({name: KINDS[kind] for name, kind in TYPES.items()}),
            ParamSchema([ParamSpec(MIN_SCORE, DataType.double, None)]),
        ),
        pip_requirements=requirements(),
        mlflow_model=described,
    )


def _version(tracker: Tracker, logged: LoggedModel, registered: str) -> str:
    """The version of the registered model that this logged model is."""
    from mlflow.exceptions import MlflowException

    client = tracker.client
    # A server finds a model by its id, and refuses a bare folder. Without one, MLflow would look for the id in its
    # global address.
    source = f"models:/{logged.model_id}" if tracker.address.startswith("http") else logged.artifact_location
    for version in client.search_model_versions(f"run_id = '{tracker.run_id}'"):
        if version.name == registered and version.source == source:  # `model_id` is not kept by every store
            return version.version
    try:
        client.create_registered_model(registered)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
            raise
    made = client.create_model_version(
        registered, source, run_id=tracker.run_id, await_creation_for=0, model_id=logged.model_id
    )
    return made.version
