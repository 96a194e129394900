"""What is set aside while a data set is read: one image or one annotation, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from msrcnn.errors import InputError


class Reason(StrEnum):
    """Why an image or an annotation was set aside."""

    IMAGE_RECORD = "image record broken"
    DUPLICATE_IMAGE = "duplicate image id"
    IMAGE_MISSING = "image file missing"
    IMAGE_TRUNCATED = "image truncated"
    IMAGE_UNDECODABLE = "image undecodable"
    IMAGE_SIZE = "image size differs from the annotation file"
    ANNOTATION_RECORD = "annotation record broken"
    DUPLICATE_ANNOTATION = "duplicate annotation id"
    UNKNOWN_IMAGE = "annotation of an unknown image"
    UNKNOWN_CATEGORY = "annotation of an unknown category"
    CATEGORY_ZERO = "annotation of category 0, which does not exist"
    POLYGON = "broken polygon"
    RLE = "broken RLE"
    EMPTY_MASK = "mask without a pixel"


@dataclass(frozen=True)
class Rejected:
    """One image or annotation that was set aside; an id that could not be read is None."""

    reason: str
    detail: str
    image_id: int | None = None
    annotation_id: int | None = None

    @property
    def where(self) -> str:
        """By its ids, for messages; empty without any."""
        ids = {"image": self.image_id, "annotation": self.annotation_id}
        return ", ".join(f"{kind} {value}" for kind, value in ids.items() if value is not None)


class AnnotationError(InputError):
    """One annotation cannot be used: `reason` is its kind, `detail` says what is wrong in it."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
