"""Several MaskIoU heads through the stages: trained side by side, detected with in one pass, each with its numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from mlflow import MlflowClient

from msrcnn.detector import MaskScoringRCNN
from msrcnn.weights import load_model
from pipelines.options import EvaluateConfig
from pipelines.scoring_options import ScoreConfig
from tests.training_runs import SMALL, records

HEADS = ("input=b", "target=2,tau=0.5")
LOSSES = {"loss/maskiou", "loss/maskiou.input-b", "loss/maskiou.target-2_tau-0.5"}


@pytest.mark.slow
@pytest.mark.ray
def test_heads_from_shards_to_numbers(trained, shards, tmp_path: Path) -> None:
    """A trunk that another run has trained, as `trained` had: three heads on it, by two workers."""
    from pipelines.evaluate import evaluate
    from pipelines.score import score
    from pipelines.train import train

    source = trained[0].run / "model.pt"
    config = replace(
        trained[0], run=tmp_path / "run", tracking=f"sqlite:///{tmp_path}/mlflow.db", weights=str(source), max_steps=4,
        model=replace(SMALL, trained="maskiou", heads=HEADS),
    )  # fmt: skip
    lines: list[str] = []
    train(config, lines.append)
    assert any("maskiou heads" in line and "input-b" not in line for line in lines)
    last = [record for record in records(config.run) if "loss/total" in record][-1]
    assert {name for name in last if name.startswith("loss/")} == {*LOSSES, "loss/total"}
    assert last["loss/total"] == pytest.approx(sum(last[name] for name in LOSSES))
    got, want = load_model(config.run / "model.pt").model, load_model(source).model
    assert got.config.heads == HEADS
    trunk = [name for name in want.state_dict() if not name.startswith("maskiou.")]
    assert all(torch.equal(got.state_dict()[name], want.state_dict()[name]) for name in trunk)

    # The source has the main head's weights: it would lead, so all heads begin as a run without weights has them.
    began = load_model(config.run / "initial.pt").model.state_dict()
    torch.manual_seed(config.solver.seed)
    fresh = MaskScoringRCNN(got.config).state_dict()
    heads = [name for name in fresh if name.startswith(("maskiou.", "heads."))]
    assert all(torch.equal(began[name], fresh[name]) for name in heads)
    assert not torch.equal(began["maskiou.fc1.weight"], want.state_dict()["maskiou.fc1.weight"])

    options = EvaluateConfig(config.run, shards / "val", tmp_path / "out", batch=3, bootstrap=5, figures=False)
    lines.clear()
    summary = evaluate(options, lines.append)
    rows = [row for row in pq.read_table(tmp_path / "out" / "detections").to_pylist() if row["category"] is not None]
    assert rows
    assert {len(row["maskious"]) for row in rows} == {len(HEADS)}
    assert list(summary.heads) == list(HEADS)
    for of_head in summary.heads.values():
        assert repr(of_head.ap.box) == repr(summary.ap.box)  # nan is not nan
        assert of_head.maskiou.all_detections.count == len(rows)
        assert of_head.maskiou != summary.maskiou
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["heads"].keys() == set(HEADS)
    assert sum(line.count(HEADS[1]) for line in lines) == 1

    record = json.loads((config.run / "run.json").read_text())
    metrics = MlflowClient(config.tracking).get_run(record["mlflow_run"]).data.metrics
    assert metrics.keys() >= LOSSES
    assert metrics["heads/input-b/AP"] == pytest.approx(summary.heads["input=b"].ap.mask_by_mask["AP"])

    again = ScoreConfig(tmp_path / "out", shards / "val", tmp_path / "again", bootstrap=5, figures=False,
                        tracking=config.tracking)  # fmt: skip
    assert repr(score(again, lines.append)) == repr(summary)
