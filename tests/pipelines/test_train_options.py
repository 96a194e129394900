"""What a training can be told: parts of a step, where to store, what to begin with, what to evaluate on."""

import json
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from msrcnn.errors import InputError
from msrcnn.weights import load_model
from pipelines.checkpoint_list import checkpoint_name, committed
from pipelines.manifest import read_manifest, write_manifest
from pipelines.options import EvaluateConfig
from pipelines.schema import SHARD_ROW
from pipelines.storage import locate, on_disk
from tests.object_store import object_store
from tests.training_runs import SMALL, records

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
STEPS = 10


@pytest.fixture(scope="module")
def accumulated(trained, shards, tmp_path_factory):
    """The two workers' run again by one worker that computes two images at a time, evaluated after each epoch."""
    from pipelines.train import train

    folder = tmp_path_factory.mktemp("accumulated")
    config = replace(
        trained[0], run=folder / "run", tracking=f"sqlite:///{folder}/mlflow.db", workers="1", images_at_once=2,
        validation=shards / "val",
    )  # fmt: skip
    lines: list[str] = []
    train(config, lines.append)
    return config, lines


def test_one_worker_with_two_parts_equals_two_workers(trained, accumulated):
    ours, theirs = (load_model(run.run / "model.pt").model.state_dict() for run in (accumulated[0], trained[0]))
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0, atol=1e-5, msg=name)
    one, other = ([r for r in records(run.run) if "loss/total" in r] for run in (accumulated[0], trained[0]))
    for name in ("step", "loss/total", "loss/maskiou", "gradient_norm", "lr"):
        assert [r[name] for r in one] == pytest.approx([r[name] for r in other], rel=1e-3), name
    assert [r["workers"] for r in one] == [1, 1]


def test_each_epoch_is_evaluated_and_the_best_model_kept(accumulated):
    config, lines = accumulated
    found = {r["step"]: r for r in records(config.run) if "validation/mask_by_mask/AP" in r}
    assert sorted(found) == [5, 10]
    # Too few may be matched for a correlation of those.
    named = {"mask_by_class/AP", "maskiou_all/maskiou_pearson", "maskiou_matched/count"}
    for epoch in found.values():
        assert {f"validation/{name}" for name in named} <= epoch.keys()
    assert sum("evaluated epoch" in line for line in lines) == 2
    assert sorted(path.name for path in (config.run / "validation").iterdir()) == [
        "step-00000005.json", "step-00000010.json"
    ]  # fmt: skip
    best = max(found, key=lambda step: (found[step]["validation/mask_by_mask/AP"], step))
    kept = load_model(config.run / "best.pt").model.state_dict()
    want = load_model(config.run / f"step-{best:08d}" / "model.pt").model.state_dict()
    assert all(torch.equal(kept[name], want[name]) for name in want)


def test_numbers_of_evaluations_join_the_mlflow_run(accumulated):
    config, lines = accumulated
    client = MlflowClient(config.tracking)
    run = json.loads((config.run / "run.json").read_text())["mlflow_run"]
    for name in ("loss/total", "validation/mask_by_mask/AP", "system/worker_memory_megabytes"):
        stored = sorted((m.step, m.value) for m in client.get_metric_history(run, name))
        assert stored == [(r["step"], r[name]) for r in records(config.run) if name in r], name
    tags = client.get_run(run).data.tags
    assert tags["version/torch"].startswith(torch.__version__.split("+")[0])
    assert {m.name for m in client.search_logged_models([client.get_run(run).info.experiment_id])} == {"model", "best"}
    assert {m.name for m in client.search_registered_models()} == {"msrcnn", "msrcnn-best"}
    assert lines[-1].endswith(f"{config.run}/model.pt; the best by mask AP on --validation: {config.run}/best.pt")


def test_every_epoch_has_each_image_once(accumulated):
    config, lines = accumulated
    for number in (1, 2):
        text = (config.run / "images" / f"epoch-{number:04d}.jsonl").read_text()
        seen = Counter(i for line in text.splitlines() for step in json.loads(line)["images"] for i in step)
        assert len(seen) == 20
        assert set(seen.values()) == {1}
        assert f"epoch {number}: 20 images, each once; 2 left out" in lines


@pytest.mark.slow
def test_a_run_directory_behind_a_url_and_old_weights(trained, shards, tmp_path):
    """In an object store; begun with another run's weights, ended inside the epoch, gone on with, evaluated."""
    from pipelines.evaluate import evaluate
    from pipelines.train import train

    source = trained[0].run / "step-00000005"
    with object_store() as place:
        url = place.format("runs/second")
        run = locate(url)
        config = replace(
            trained[0], run=url, tracking=f"sqlite:///{tmp_path}/mlflow.db", workers="3", from_checkpoint=str(source),
            max_steps=3, cpus=0.4, checkpoint_minutes=1e-6,
        )  # fmt: skip
        with pytest.raises(InputError, match=r"another model \(model.hidden: 64 -> 32\); give --weights to take what"):
            train(replace(config, model=replace(SMALL, hidden=32)))
        lines: list[str] = []
        train(config, lines.append)
        old = load_model(source / "model.pt").model.state_dict()
        with on_disk(run / "initial.pt") as path:
            initial = load_model(path).model.state_dict()
        assert all(torch.equal(initial[name], old[name]) for name in old)
        assert len(committed(run)) == 2  # the last of those inside the epoch
        train(replace(config, max_steps=7), lines.append)
        assert any("3 workers begin at step 3" in line for line in lines)
        assert not any("word" in line for line in lines)  # the store's password
        steps = [record["step"] for record in records(url)]
        assert steps == sorted(set(steps))
        assert steps[-1] == 7
        left = {name for name in run.list() if name.startswith("step-")}
        assert left == {checkpoint_name(step) for step in committed(run)}
        out = EvaluateConfig(url, shards / "val", tmp_path / "out", bootstrap=0, tracking=config.tracking)
        assert evaluate(out, lines.append).images.total == 8


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_training_with_the_image(trained, shards, tmp_path):
    """One NaN in one image's boxes: the update is left out, the last checkpoint loads, the message names the image."""
    from pipelines.train import train

    manifest = read_manifest(shards / "train")
    rows = [row for p in manifest.paths for row in pq.read_table(p).to_pylist()]
    bad = next(row for row in rows if row["image_id"] in epoch_ids(trained[0].run, 2, from_step=3))
    bad["instances"][0]["bbox"][2] = float("nan")
    broken = tmp_path / "shards"
    broken.mkdir()
    whole = [pq.ParquetFile(path) for path in manifest.paths]
    sizes = [file.metadata.row_group(0).num_rows for file in whole]
    assert sum(file.metadata.num_rows for file in whole) == len(rows)
    pq.write_table(pa.Table.from_pylist(rows, SHARD_ROW), broken / "shard.parquet", row_group_size=sizes[0])
    part = replace(manifest.parts[0], file="shard.parquet", rows=len(rows))
    part = replace(part, bytes=(broken / "shard.parquet").stat().st_size)
    write_manifest(replace(manifest, folder=broken, parts=(part,)))
    config = replace(
        trained[0], shards=broken, run=tmp_path / "run", tracking=f"sqlite:///{tmp_path}/mlflow.db", images_at_once=1,
        checkpoint_minutes=1e-6,
    )  # fmt: skip
    with pytest.raises(InputError, match=rf"loss not finite: rpn_box of images {bad['image_id']}; look at"):
        train(config, lambda _: None)
    assert not (config.run / "model.pt").exists()
    step = committed(locate(config.run))[-1]
    weights = load_model(config.run / f"step-{step:08d}" / "model.pt").model.state_dict()
    assert all(bool(value.isfinite().all()) for value in weights.values())
    client = MlflowClient(config.tracking)
    run = json.loads((config.run / "run.json").read_text())["mlflow_run"]
    assert client.get_run(run).info.status == "FAILED"


def epoch_ids(run, epoch: int, from_step: int) -> set[int]:
    """The images of an epoch's steps from one on."""
    lines = [json.loads(line) for line in (run / "images" / f"epoch-{epoch:04d}.jsonl").read_text().splitlines()]
    return {i for line in lines for step in line["images"][from_step:] for i in step}
