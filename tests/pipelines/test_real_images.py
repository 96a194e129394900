"""The main job on photographs and micrographs; needs MSRCNN_DATA."""

from dataclasses import replace
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from msrcnn.config import DataConfig, ModelConfig, SolverConfig
from msrcnn.data.batching import draw, make_batch
from msrcnn.data.coco import read_coco, read_instance
from msrcnn.detector import MaskScoringRCNN
from msrcnn.metrics.coco_ap import CocoAP
from msrcnn.presets import PRESETS
from msrcnn.rows import ImageTruth
from msrcnn.solver import learning_rate, make_optimizer, set_learning_rate
from pipelines.manifest import read_manifest
from pipelines.options import EvaluateConfig, TrainConfig
from pipelines.schema import DETECTION_ROW
from pipelines.shard import ShardConfig, shard
from pipelines.stored_rows import images_of

pytestmark = pytest.mark.slow


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_twenty_steps_on_coco_then_every_validation_image_is_accounted_for(data_dir, tmp_path):
    from pipelines.evaluate import evaluate
    from pipelines.train import train

    root = data_dir / "coco_sample"
    for split in ("train", "val"):
        annotations = root / "annotations" / f"instances_{split}2017.json"
        shard(ShardConfig(annotations, root / f"{split}2017", tmp_path / split), log=lambda _: None)
    preset = PRESETS["r18-fpn"]
    small = replace(preset.model, norm="group_norm", frozen_stages=0, channels=64, hidden=256)
    train(
        TrainConfig(
            tmp_path / "train", tmp_path / "run", model=small, data=DataConfig(320, 544),
            solver=SolverConfig(batch=2, warmup_steps=10, clip_norm=10.0), max_steps=20, threads=2,
            tracking=f"sqlite:///{tmp_path}/mlflow.db",
        )
    )  # fmt: skip
    summary = evaluate(EvaluateConfig(tmp_path / "run", tmp_path / "val", tmp_path / "out", batch=4, bootstrap=0))
    rows = pq.read_table(tmp_path / "out" / "detections")
    wanted = [i for p in read_manifest(tmp_path / "val").paths for i in pq.read_table(p)["image_id"].to_pylist()]
    assert len(wanted) == 165
    assert set(rows["image_id"].to_pylist()) == set(wanted)
    assert summary.images.with_detections + summary.images.without_detections == 165
    assert summary.images.failed == 0
    per_image = rows.group_by("image_id").aggregate([("category", "count")])["category_count"].to_pylist()
    assert max(per_image) <= 100
    empty = [row for row in rows.to_pylist() if row["category"] is None]
    assert len(empty) == summary.images.without_detections


def truth_of(record, numbers) -> ImageTruth:
    found = [read_instance(a, record.height, record.width, numbers) for a in record.annotations]
    return ImageTruth(
        record.image_id, record.height, record.width,
        np.array([a["id"] for a in record.annotations]),
        np.array([i.category for i in found], np.int32),
        np.array([i.bbox for i in found], np.float32),
        np.array([i.area for i in found], np.float32),
        np.array([i.iscrowd for i in found]),
        [i.rle for i in found],
    )  # fmt: skip


STEPS, DECAY = 240, 180


def test_four_nuclei_images_are_overfitted(data_dir):
    """Targets, losses, inference and evaluation agree: mask AP of at least 0.6 on the images that were trained on."""
    from msrcnn.detection_rows import detection_rows

    root = data_dir / "nuclei"
    dataset = read_coco(root / "annotations" / "instances_train.json")
    numbers = {c.source_id: i for i, c in enumerate(dataset.categories, start=1)}
    records = [r for r in dataset.images if 10 <= len(r.annotations) <= 40][:4]
    truths = [truth_of(r, numbers) for r in records]
    images = [(root / "train" / r.file_name).read_bytes() for r in records]
    model_config = ModelConfig(
        levels=(2, 3, 4, 5), norm="group_norm", frozen_stages=0, anchor_sizes=((16,), (32,), (64,), (128,)),
        channels=64, hidden=256, num_classes=1, rpn=replace(ModelConfig().rpn, train_proposals=500),
        roi=replace(ModelConfig().roi, samples=128),
    )  # fmt: skip
    solver = SolverConfig(batch=2, lr=0.08, warmup_steps=40, decay_epochs=(DECAY,), epochs=STEPS)
    data = DataConfig(512, 512)
    torch.manual_seed(0)
    model = MaskScoringRCNN(model_config).train()
    optimizer = make_optimizer(model, solver)
    for step in range(STEPS):
        pair = slice(0, 2) if step % 2 == 0 else slice(2, 4)
        draws = [draw(0, step, t.image_id) for t in truths[pair]]
        losses = model(make_batch(images[pair], truths[pair], data, draws))
        optimizer.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        set_learning_rate(optimizer, learning_rate(solver, step, steps_per_epoch=1))
        optimizer.step()

    model.eval()
    rows = []
    for pair in (slice(0, 2), slice(2, 4)):
        batch = make_batch(images[pair], truths[pair], data)
        rows += chain.from_iterable(detection_rows(batch, model(batch), truths[pair]))
    ap = CocoAP([(1, "nucleus")])
    ap.update(truths, list(images_of(pa.Table.from_pylist(rows, DETECTION_ROW)).values()))
    report = ap.summarise(bootstrap=0)
    print({name: getattr(report, name)["AP"] for name in ("box", "mask_by_class", "mask_by_mask", "mask_by_oracle")})
    assert report.mask_by_class["AP"] >= 0.6
    assert report.mask_by_mask["AP"] >= 0.6
