"""`msrcnn study`: is the mask score better than the class score, and is anything better than the paper's head?

OUT/shards, annotations, images   the data (`pipelines.study_data`)
OUT/runs/PART-SEED-KIND           trainings: PART choose or confirm; KIND paper (MaskIoU head and trunk together), heads
                                  (all heads on the paper's finished trunk), nms (the paper's, with hard NMS: nothing
                                  trains) or plain (Mask R-CNN)
OUT/evaluations/PART-SEED-KIND    detections and numbers of each
OUT/measured/PART-SEED.json       what one seed says about every ranking (`pipelines.study_measures`)
OUT/results.json, results.md      the tables (`pipelines.study_results`, `pipelines.study_table`)

In JSON files null stands for what is not defined, as a correlation where nothing was detected.

What is there is not done again, so that the same command goes on after any kill. A seed that is in `measured` with as
many draws needs neither its runs nor its evaluations any more.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from cluster.session import connect
from msrcnn.config import to_dict
from msrcnn.errors import InputError
from msrcnn.inference_config import SelectionChanges
from pipelines.evaluate import evaluate
from pipelines.manifest import read_manifest
from pipelines.options import EvaluateConfig, TrainConfig, worker_range
from pipelines.progress import duration
from pipelines.reporting import SUMMARY, UNFINISHED, plain
from pipelines.run_directory import MODEL
from pipelines.storage import ASIDE, exclusively, locate
from pipelines.study_data import StudyShards, study_shards
from pipelines.study_measures import measure
from pipelines.study_options import StudyConfig
from pipelines.study_origin import check_origin, origin_of
from pipelines.study_plan import CHOOSE, CONFIRM, HEADS, POWERS, STUDIES, Study
from pipelines.study_results import best_powers, results_of
from pipelines.study_table import markdown
from pipelines.train import train

STUDY = ".study.json"
MEASURED = "measured"
"""What seeds say: PART-SEED.json."""
DONE = "done.json"
"""In an evaluation's folder: how long training and evaluation took, and `study_origin`; that it is there means that
both are done."""
HARD_NMS = SelectionChanges(method="hard", iou_threshold=0.5, score_threshold=0.05)
"""Of the kind nms (section 4.1)."""


class Part(NamedTuple):
    """What one seed is for."""

    name: str  # choose or confirm
    seed: int


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
        chosen = [measured(config, plan, Part(CHOOSE, seed), shards, None, log) for seed in plan.choosing]
        powers = best_powers(plan, chosen)
        confirmed = [measured(config, plan, Part(CONFIRM, seed), shards, powers, log) for seed in plan.confirming]
    results = plain(results_of(config.name, plan, chosen, confirmed, powers) | {
        "command": shown_command(config), "trunk": plan.described(),
        "data": {name: read_manifest(folder).rows for name, folder in asdict(shards).items()},
    })  # fmt: skip
    locate(out / "results.json").write_json(results)
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
            yield from (Stage(part, seed, kind) for kind in plan.kinds(part))


def check_folder(config: StudyConfig, plan: Study) -> None:
    """Makes the folder of a study, or checks that it is one of this study with these settings.

    Raises:
        InputError: it is not.
    """
    place = locate(config.out)
    settings = {
        "study": config.name, "data": str(config.data) if config.data else None, "weights": config.weights,
        "plan": json.loads(json.dumps(to_dict(plan))), "heads": HEADS, "powers": list(POWERS),
        # Threads follow from workers, and last bits from threads, in which the heads' detections must be the paper's.
        "workers": config.workers, "gpu": config.gpu,
    }  # fmt: skip
    if (place / STUDY).size() is None:
        if any(not ASIDE.fullmatch(name) for name in place.list()):
            raise InputError(f"{config.out}: neither empty nor the folder of a study; choose another --out")
        place.make_folder()
        (place / STUDY).write(json.dumps(settings).encode())
    elif json.loads((place / STUDY).read()) != settings:
        raise InputError(f"{config.out}: holds another study, or this one with other settings; choose another --out")


def run_stage(
    config: StudyConfig, plan: Study, stage: Stage, shards: StudyShards, origin: dict[str, Any],
    log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """Trains and evaluates, if that is not done; what DONE holds."""
    evaluation = config.out / "evaluations" / stage.name
    if (evaluation / DONE).exists():
        done: dict[str, Any] = json.loads((evaluation / DONE).read_text())
        check_origin(evaluation, done["origin"], origin)
        return done
    began = time.monotonic()
    run = config.out / "runs" / stage.name
    tracking = config.tracking or f"sqlite:///{config.out.absolute()}/mlflow.db"
    paper = config.out / "runs" / replace(stage, kind="paper").name / MODEL
    if stage.kind != "nms":
        train(
            TrainConfig(
                preset=plan.preset, model=plan.model(stage.part, stage.kind),
                solver=plan.solver(stage.part, stage.kind, stage.seed),
                data=plan.data(), workers=config.workers, gpu=config.gpu, tracking=tracking, experiment="study",
                shards=shards.fit if stage.part == CHOOSE else shards.train, run=run, register="", keep=1,
                weights=str(paper) if stage.kind == "heads" else config.weights,
            ),
            log,
        )  # fmt: skip
    if not (evaluation / SUMMARY).exists() or (evaluation / UNFINISHED).exists():
        evaluate(
            EvaluateConfig(
                model=paper if stage.kind == "nms" else run / MODEL,
                shards=shards.choose if stage.part == CHOOSE else shards.val, out=evaluation,
                selection=replace(HARD_NMS if stage.kind == "nms" else SelectionChanges(), top_k=max(plan.counts)),
                gpu=config.gpu, actors=worker_range(config.workers)[1], tracking=tracking, experiment="study",
                bootstrap=0, figures=False,
            ),
            log,
        )  # fmt: skip
    done = {"seconds": time.monotonic() - began, "origin": origin}  # of the last attempt
    locate(evaluation / DONE).write(json.dumps(done).encode())
    return done


def measured(
    config: StudyConfig, plan: Study, part: Part, shards: StudyShards, powers: Mapping[str, float] | None,
    log: Callable[[str], None],
) -> dict[str, Any]:  # fmt: skip
    """What a seed says; its stages are run if that is not known."""
    file = config.out / MEASURED / f"{part.name}-{part.seed}.json"
    origin = origin_of(config, plan, shards)
    if file.exists():
        stored = json.loads(file.read_text())
        check_origin(file, stored["origin"], origin)
        if stored["draws"] == config.draws:
            return dict(defined(stored))
    every = list(stages_of(plan))
    stages = [stage for stage in every if (stage.part, stage.seed) == part]
    done = [
        run_stage(config, plan, stage, shards, origin,
                  timed(log, f"[{every.index(stage) + 1}/{len(every)}] {stage.name}"))
        for stage in stages
    ]  # fmt: skip
    timed(log, f"{part.name}-{part.seed}")("measuring")
    folders = {stage.kind: config.out / "evaluations" / stage.name for stage in stages}
    truth = shards.choose if part.name == CHOOSE else shards.val
    value = measure(folders, truth, tuple(plan.heads(part.name)), plan.counts, config.draws, powers)
    value["origin"] = done[0]["origin"]  # of the trunk that all of them rank the detections of
    value["seconds"] = sum(stage["seconds"] for stage in done)
    locate(file.parent).make_folder()
    locate(file).write(json.dumps(plain(value), allow_nan=False).encode())
    return value


def defined(value: Any) -> Any:
    """What `plain` was made of: null becomes nan, with which numbers can be computed."""
    if isinstance(value, dict):
        return {key: defined(part) for key, part in value.items()}
    if isinstance(value, list):
        return [defined(part) for part in value]
    return math.nan if value is None else value


def shown_command(config: StudyConfig) -> str:
    """The command without the paths and addresses of this machine."""
    given = {"--data": config.data, "--weights": config.weights}
    options = [f" {name} {name.removeprefix('--').upper()}" for name, value in given.items() if value is not None]
    options += [
        f" --{name} {getattr(config, name)}"
        for name in ("workers", "draws")
        if getattr(config, name) != getattr(StudyConfig, name)
    ]
    options += [" --gpu"] if config.gpu else []
    return f"msrcnn study {config.name} --out OUT{''.join(options)}"
