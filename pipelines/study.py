"""`msrcnn study`: is the mask score better than the class score, and is anything better than the paper's head?

OUT/shards, annotations, images   the data (`pipelines.study_data`)
OUT/runs/PART-SEED-KIND           trainings: PART choose or confirm; KIND plain (Mask R-CNN), paper (MaskIoU head and
                                  trunk together) or heads (all heads on the paper's finished trunk)
OUT/evaluations/PART-SEED-KIND    detections and numbers of each
OUT/measured/PART-SEED.npz        what one seed says about every ranking (`pipelines.study_measures`)
OUT/results.json, results.md      the tables (`pipelines.study_results`, `pipelines.study_table`)

What is there is not done again, so that the same command goes on after any kill.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cluster.session import connect
from msrcnn.config import to_dict
from msrcnn.errors import InputError
from msrcnn.weights import load_model, save_model
from pipelines.evaluate import evaluate
from pipelines.manifest import read_manifest
from pipelines.options import EvaluateConfig, TrainConfig
from pipelines.progress import duration
from pipelines.provenance import made
from pipelines.run_directory import MODEL
from pipelines.storage import exclusively, locate
from pipelines.study_data import StudyShards, study_shards
from pipelines.study_measures import Seed, measure, read_seed, write_seed
from pipelines.study_options import StudyConfig
from pipelines.study_plan import STUDIES, Study
from pipelines.study_results import results_of
from pipelines.study_table import markdown
from pipelines.train import train

STUDY = ".study.json"
CHOOSE, CONFIRM = "choose", "confirm"
KINDS = {CHOOSE: ("paper", "heads"), CONFIRM: ("plain", "paper", "heads")}
"""Trainings of a seed in their order: heads stand on the paper's trunk. A Mask R-CNN alone says whether boxes suffer."""


@dataclass(frozen=True)
class Stage:
    """A training of one seed and its evaluation."""

    part: str
    seed: int
    kind: str

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.part}-{self.seed}-{self.kind}"


def study(config: StudyConfig, log: Callable[[str], None] = print) -> None:
    """Runs what is missing of a study and writes its tables.

    Raises:
        InputError: the data or the folder cannot be used.
    """
    began, out, plan = time.monotonic(), config.out, STUDIES[config.name]
    check_folder(config, plan)
    with exclusively(locate(out), "studying into"), connect(config.address):
        shards = study_shards(out, plan.shapes or config.data or out, config.address, log)
        stages = list(stages_of(plan))
        for number, stage in enumerate(stages, start=1):
            said = timed(log, f"[{number}/{len(stages)}] {stage.name}")
            run_stage(config, plan, stage, shards, said)
        chosen = seeds_of(config, plan, CHOOSE, shards, log)
        confirmed = seeds_of(config, plan, CONFIRM, shards, log)
        results = results_of(config.name, plan, chosen, confirmed, config.draws)
        results["made"] = made()
        results["data"] = {name: read_manifest(folder).rows for name, folder in asdict(shards).items()}
    locate(out / "results.json").write((json.dumps(results, indent=1) + "\n").encode())
    text = markdown(results)
    locate(out / "results.md").write(text.encode())
    log(text)
    log(f"studied in {duration(time.monotonic() - began)}: {out / 'results.md'}")


def timed(log: Callable[[str], None], name: str) -> Callable[[str], None]:
    """Takes a stage's lines: which of how many, and the time of day."""
    return lambda line: log(f"{time.strftime('%H:%M:%S')} {name}: {line}")


def stages_of(plan: Study) -> Iterator[Stage]:
    """What a study trains, in order."""
    for part, seeds in ((CHOOSE, plan.choosing), (CONFIRM, plan.confirming)):
        for seed in seeds:
            yield from (Stage(part, seed, kind) for kind in KINDS[part])


def check_folder(config: StudyConfig, plan: Study) -> None:
    """Makes the folder of a study, or checks that it is one of this study with these settings.

    Raises:
        InputError: it is not.
    """
    place = locate(config.out)
    settings = {"study": config.name, "weights": config.weights, "plan": json.loads(json.dumps(to_dict(plan)))}
    if (place / STUDY).size() is None:
        if place.list():
            raise InputError(f"{config.out}: neither empty nor the folder of a study; choose another --out")
        place.make_folder()
        (place / STUDY).write(json.dumps(settings).encode())
    elif json.loads((place / STUDY).read()) != settings:
        raise InputError(f"{config.out}: holds another study, or this one with other settings; choose another --out")


def run_stage(
    config: StudyConfig, plan: Study, stage: Stage, shards: StudyShards, log: Callable[[str], None]
) -> None:
    """Trains and evaluates, if that is not done."""
    out = config.out
    run, evaluation = out / "runs" / stage.name, out / "evaluations" / stage.name
    if (evaluation / "summary.json").exists():
        return
    tracking = config.tracking or f"sqlite:///{out.absolute()}/mlflow.db"
    trunk = out / "runs" / replace(stage, kind="paper").name / MODEL
    began = time.monotonic()
    train(
        TrainConfig(
            preset=plan.preset, model=plan.model(stage.kind), solver=plan.solver(stage.kind, stage.seed),
            data=plan.data(), workers=config.workers, gpu=config.gpu, tracking=tracking, experiment="study",
            shards=shards.fit if stage.part == CHOOSE else shards.train, run=run,
            weights=str(trunk) if stage.kind == "heads" else config.weights, register="", keep=1,
        ),
        log,
    )  # fmt: skip
    seconds = time.monotonic() - began
    if seconds > 1:
        locate(run / "seconds.json").write(json.dumps(seconds).encode())
    model = with_detections(run / MODEL, run / "measured.pt", max(plan.counts))
    evaluate(
        EvaluateConfig(
            model=model, shards=shards.choose if stage.part == CHOOSE else shards.val, out=evaluation, gpu=config.gpu,
            tracking=tracking, experiment="study", bootstrap=0, figures=False,
        ),
        log,
    )  # fmt: skip


def with_detections(model: Path, other: Path, top_k: int) -> Path:
    """A model that gives so many detections an image; the model itself if it does so anyway."""
    checkpoint = load_model(model)
    config = checkpoint.model.config
    if config.selection.top_k == top_k:
        return model
    checkpoint.model.config = replace(config, selection=replace(config.selection, top_k=top_k))
    save_model(other, checkpoint.model, checkpoint.data, checkpoint.categories)
    return other


def seeds_of(
    config: StudyConfig, plan: Study, part: str, shards: StudyShards, log: Callable[[str], None]
) -> list[Seed]:
    """What each seed of a part says, measured where it is not yet."""
    found = []
    for seed in plan.choosing if part == CHOOSE else plan.confirming:
        file = config.out / "measured" / f"{part}-{seed}.npz"
        if not file.exists():
            log(f"{time.strftime('%H:%M:%S')} measuring {part}-{seed}")
            folders = {k: config.out / "evaluations" / Stage(part, seed, k).name for k in KINDS[part]}
            truth = shards.choose if part == CHOOSE else shards.val
            draws = config.draws if part == CONFIRM else 0
            write_seed(file, measure(folders, truth, plan, draws))
        found.append(read_seed(file))
    return found
