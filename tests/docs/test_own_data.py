"""docs/own_data.md on the nuclei: its commands as written, and what it promises of them."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest
from torchvision.models import ResNet18_Weights

from tests.docs.documents import parsed_only, steps_of
from tests.docs.prepared import environment_in, write_program


def lay_out(data_dir: Path, folder: Path) -> None:
    """The reader's folder, and the ImageNet weights where torchvision looks before it downloads."""
    for split in ("train", "val"):
        (folder / f"instances_{split}.json").symlink_to(data_dir / "nuclei" / "annotations" / f"instances_{split}.json")
        (folder / split).symlink_to(data_dir / "nuclei" / split)
    cached = folder / "torch" / "hub" / "checkpoints" / ResNet18_Weights.IMAGENET1K_V1.url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    cached.symlink_to(data_dir / "resnet18_imagenet_partial.pth")
    write_program(folder)


@pytest.mark.slow
@pytest.mark.ray
def test_the_guide_leads_from_a_folder_to_a_model_and_its_report(data_dir: Path, tmp_path: Path) -> None:
    lay_out(data_dir, tmp_path)
    for step in (step for step in steps_of("docs/own_data.md") if not parsed_only(step)):
        began = time.monotonic()
        done = subprocess.run(["bash", "-c", step.text], cwd=tmp_path, env=environment_in(tmp_path), text=True,
                              capture_output=True, timeout=1800, check=False)  # fmt: skip
        print(f"{time.monotonic() - began:.0f} s: {step.text}\n{done.stdout[-1500:]}")
        assert done.returncode == 0, f"{step}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    summary = json.loads((tmp_path / "runs" / "first-val" / "summary.json").read_text())
    assert summary["ap"]["mask_by_mask"]["AP"] > 0.3
    assert summary["ap"]["mask_by_mask"]["AP50"] > 0.55
    assert "<html" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "gallery.png").stat().st_size > 10_000
    overlays = [p for p in (tmp_path / "predicted").rglob("*") if p.suffix in (".png", ".jpg")]
    assert len(overlays) == len(list((tmp_path / "val").iterdir()))
    assert json.loads((tmp_path / "predicted" / "detections.json").read_text())
