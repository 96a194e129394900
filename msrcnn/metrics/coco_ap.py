"""COCO average precision of boxes and of masks under three scores, from parts that merge over workers."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import hotcoco
import numpy as np
import numpy.typing as npt

from msrcnn.errors import InputError
from msrcnn.metrics.coco_rows import annotation_dicts, detection_dicts, image_dicts, pair_images, refuse_repeated
from msrcnn.metrics.mask_matching import IOU_THRESHOLDS
from msrcnn.metrics.matches import RANKINGS, RESAMPLED, Matches, Samples
from msrcnn.metrics.resampling import percentiles
from msrcnn.rows import ImageDetections, ImageTruth

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's 12 summary numbers in the official order."""

# One evaluator each: boxes by class score, masks by three scores.
_RANKINGS = ("box", "class", "mask", "oracle")
_HEADER = struct.Struct("<7Q")  # byte lengths of what `to_bytes` joins: categories, image ids, matches, four states


@dataclass(frozen=True)
class CategoryAP:
    """Mask AP of one category; nan where it has no instance in the ground truth."""

    number: int  # contiguous, 1..C
    name: str
    by_class: float  # masks ranked by class score
    by_mask: float  # masks ranked by mask score
    by_oracle: float  # class score x true MaskIoU


@dataclass(frozen=True)
class PrecisionRecall:
    """One ranking's precision at COCO's 101 recalls (0, 0.01, ... 1), detections up to 100 an image."""

    ranking: str  # box, class, mask or oracle: what `APReport` calls box, mask_by_class, ...
    iou: float  # threshold
    precision: tuple[float, ...]  # [101], mean over the categories with instances; nan if there are none


@dataclass(frozen=True)
class APReport:
    """The AP side of an evaluation. Dictionaries hold `METRICS`, as fractions.

    Where the ground truth has nothing in a range COCO prints -1; here it is nan, so that no mean takes it in
    unseen.
    """

    box: dict[str, float]  # boxes ranked by class score
    mask_by_class: dict[str, float]  # as Mask R-CNN ranks
    mask_by_mask: dict[str, float]  # as Mask Scoring R-CNN ranks
    mask_by_oracle: dict[str, float]  # Table 7
    gain: float  # mask AP by mask score minus by class score
    gain_interval: tuple[float, float]  # 95%, from a bootstrap over the images; nan without it or with one image
    intervals: dict[str, dict[str, tuple[float, float]]]  # likewise of `matches.RESAMPLED`, of box, mask_by_class,
    # mask_by_mask, and gain: the last less the one before it
    oracle_gap: float  # mask AP by oracle score minus by class score
    oracle_gap_closed: float  # gain / oracle_gap; nan where the gap is not positive
    per_category: tuple[CategoryAP, ...]


class CocoAP:
    """Accumulates COCO average precision image by image.

    A worker feeds its own images to `update` and sends `to_bytes`; the driver joins the parts with `merge` and
    calls `summarise` and `curves`, after which nothing can be added. The result does not depend on how the images
    were split nor on the order of the parts. Equal scores are ranked as in pycocotools: by image id, and in an image
    by the order in which its detections were given, for each of the scores.
    """

    def __init__(self, categories: Sequence[tuple[int, str]]) -> None:
        """Takes the contiguous number and the name of every category."""
        self.categories = tuple((int(number), str(name)) for number, name in categories)
        self._numbers = np.array([number for number, _ in self.categories], dtype=np.int64)
        self._image_ids: set[int] = set()
        self._final: dict[str, Any] = {}  # finished evaluators, once there are any
        self._samples: Samples = {}  # on the draws of the last `summarise`
        self.matches = Matches(self.categories)
        listed = [{"id": number, "name": name} for number, name in self.categories]
        self._evaluators = {
            ranking: hotcoco.StreamingEval(listed, "bbox" if ranking == "box" else "segm") for ranking in _RANKINGS
        }

    def update(
        self,
        truths: Sequence[ImageTruth],
        detections: Sequence[ImageDetections],
        true: Mapping[int, npt.NDArray[np.float64]] | None = None,
    ) -> None:
        """Scores a batch of images.

        Args:
            truths: every image of the batch, those without instances too.
            detections: the detections of these images in any order; an image without any may be absent.
            true: `true_maskiou` of each image in `detections` by image id, where it is known already; computed
                otherwise.

        Raises:
            InputError: an image comes twice, detections have no truth, a category is unknown or a mask does
                not fit its image. Nothing of the batch has been taken then.
        """
        paired = pair_images(truths, detections, self._numbers, self._image_ids)
        images = image_dicts(truths)
        annotations = [row for truth in truths for row in annotation_dicts(truth)]
        found: dict[str, list[dict[str, Any]]] = {ranking: [] for ranking in _RANKINGS}
        for truth, of_image in paired:
            for ranking, rows in detection_dicts(truth, of_image, (true or {}).get(truth.image_id)).items():
                found[ranking] += rows
        self.matches.update(truths, detections)
        for ranking, evaluator in self._evaluators.items():
            evaluator.update(images, annotations, found[ranking])
        self._image_ids.update(truth.image_id for truth in truths)

    @classmethod
    def merge(cls, parts: Iterable[CocoAP]) -> CocoAP:
        """Joins the parts of an evaluation that was split by image; the parts stay usable.

        Raises:
            InputError: there is no part, the parts' categories differ, or an image is in two parts.
        """
        parts = list(parts)
        if not parts:
            raise InputError("nothing to merge: the evaluation has no part; evaluate at least one partition")
        merged = cls(parts[0].categories)
        for part in parts:
            if part.categories != merged.categories:
                raise InputError(
                    f"parts of an evaluation have different categories ({len(part.categories)} and "
                    f"{len(merged.categories)}, or other names); evaluate all images against one data set"
                )
            refuse_repeated(merged._image_ids & part._image_ids)
            merged._image_ids |= part._image_ids
        for ranking in _RANKINGS:
            states = [part._evaluators[ranking] for part in parts]
            merged._evaluators[ranking] = hotcoco.StreamingEval.merge(states)
        merged.matches = Matches.merge(part.matches for part in parts)
        return merged

    def to_bytes(self) -> bytes:
        """The state, to be sent to another process: 90 (1 category) to 130 (80) bytes a detection, all rankings."""
        blobs = [
            json.dumps(self.categories).encode(),
            np.array(sorted(self._image_ids), dtype=np.int64).tobytes(),
            self.matches.to_bytes(),
            *(self._evaluators[ranking].to_bytes() for ranking in _RANKINGS),
        ]
        return _HEADER.pack(*(len(blob) for blob in blobs)) + b"".join(blobs)

    @classmethod
    def from_bytes(cls, data: bytes) -> CocoAP:
        """Reads back `to_bytes`."""
        ends = _HEADER.size + np.cumsum(_HEADER.unpack_from(data))
        starts = [_HEADER.size, *ends[:-1]]
        categories, image_ids, matches, *states = (data[a:b] for a, b in zip(starts, ends, strict=True))
        restored = cls([(number, name) for number, name in json.loads(categories)])
        restored._image_ids = set(np.frombuffer(image_ids, dtype=np.int64).tolist())
        restored.matches = Matches.from_bytes(matches, restored.categories)
        for ranking, state in zip(_RANKINGS, states, strict=True):
            restored._evaluators[ranking] = hotcoco.StreamingEval.from_bytes(state)
        return restored

    def summarise(self, bootstrap: int = 1000, seed: int = 0, alike: CocoAP | None = None) -> APReport:
        """Computes the report; nothing can be added afterwards.

        Args:
            bootstrap: draws of the images for the intervals; 0 leaves them nan. One takes about 0.1 s for 5000
                images of 100 detections on one core, and grows with the images.
            seed: of the draws, at least 0.
            alike: of the same detections with other MaskIoUs, summarised with the same draws: what those gave boxes and
                masks by class score is not computed again.

        Raises:
            InputError: no image was scored.
        """
        final = self._finished()
        # `compare` accumulates by itself and, unlike `summarize`, prints nothing.
        box = hotcoco.compare(final["box"], final["box"])
        oracle = hotcoco.compare(final["class"], final["oracle"])
        gained = hotcoco.compare(final["class"], final["mask"])
        by_class, by_mask = _metrics(gained["metrics_a"]), _metrics(gained["metrics_b"])
        by_oracle = _metrics(oracle["metrics_b"])
        gain, gap = by_mask["AP"] - by_class["AP"], by_oracle["AP"] - by_class["AP"]
        intervals = self._intervals(bootstrap, seed, alike)
        return APReport(
            box=_metrics(box["metrics_a"]),
            mask_by_class=by_class,
            mask_by_mask=by_mask,
            mask_by_oracle=by_oracle,
            gain=gain,
            gain_interval=intervals["gain"]["AP"],
            intervals=intervals,
            oracle_gap=gap,
            oracle_gap_closed=gain / gap if gap > 0 else float("nan"),
            per_category=self._per_category(gained["per_category"], oracle["per_category"]),
        )

    def _intervals(self, bootstrap: int, seed: int, alike: CocoAP | None) -> dict[str, dict[str, tuple[float, float]]]:
        names = ("box", "mask_by_class", "mask_by_mask", "gain")
        if bootstrap == 0:
            return {name: dict.fromkeys(RESAMPLED, (float("nan"), float("nan"))) for name in names}
        known = {name: of for name, of in alike._samples.items() if name != "mask"} if alike is not None else {}
        wanted = [ranking for ranking in RANKINGS if ranking not in known]
        self._samples = known | self.matches.resample(bootstrap, seed, wanted)
        box, by_class, by_mask = (self._samples[ranking] for ranking in RANKINGS)
        gain = {name: by_mask[name] - by_class[name] for name in RESAMPLED}
        of = zip(names, (box, by_class, by_mask, gain), strict=True)
        return {name: {metric: percentiles(drawn[metric]) for metric in RESAMPLED} for name, drawn in of}

    def curves(self, ious: Sequence[float] = (0.5, 0.75)) -> tuple[PrecisionRecall, ...]:
        """Precision against recall, for each ranking and each of `ious`; nothing can be added afterwards.

        Raises:
            InputError: no image was scored, or a threshold is none of COCO's 0.5, 0.55, ... 0.95.
        """
        for iou in ious:
            if not np.isclose(IOU_THRESHOLDS, iou).any():
                raise InputError(f"IoU threshold {iou}: accepted are 0.5, 0.55, ... 0.95")
        curves = []
        for ranking, evaluator in self._finished().items():
            evaluator.accumulate()
            precision = evaluator.eval["precision"][:, :, :, 0, -1]  # [10, 101, C] for all areas, 100 detections
            present = (precision >= 0).all(axis=(0, 1))  # [C], -1 where a category has no instance
            for iou in ious:
                of_iou = precision[int(np.argmin(np.abs(IOU_THRESHOLDS - iou)))][:, present]  # [101, c]
                mean = of_iou.mean(axis=1) if present.any() else np.full(len(of_iou), np.nan)
                curves.append(PrecisionRecall(ranking, float(iou), tuple(mean.tolist())))
        return tuple(curves)

    def _finished(self) -> dict[str, Any]:
        """hotcoco's evaluators with all images in; they take no more."""
        if not self._image_ids:
            raise InputError("nothing to evaluate: no image was scored; check the detections and the data set")
        if not self._final:
            self._final = {ranking: evaluator.finalize() for ranking, evaluator in self._evaluators.items()}
        return self._final

    def _per_category(self, gained: list[dict[str, Any]], oracle: list[dict[str, Any]]) -> tuple[CategoryAP, ...]:
        values = {row["cat_id"]: (_or_nan(row["ap_a"]), _or_nan(row["ap_b"])) for row in gained}
        best = {row["cat_id"]: _or_nan(row["ap_b"]) for row in oracle}
        nan = float("nan")  # hotcoco leaves out categories without instances
        return tuple(
            CategoryAP(number, name, *values.get(number, (nan, nan)), best.get(number, nan))
            for number, name in self.categories
        )


def _metrics(values: dict[str, float]) -> dict[str, float]:
    return {name: _or_nan(values[name]) for name in METRICS}


def _or_nan(value: float) -> float:
    return float("nan") if value == -1 else float(value)
