"""A loss that is not finite: its update is suppressed on the device, and training stops one step later.

Nothing waits for the device: what it finds is copied to the host while it computes the next step, and read then. The
workers tell one another, so that all of them suppress the same update, stop at the same step, and take a checkpoint
at the same step where rank 0 asks for one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from msrcnn.errors import InputError


class NotFiniteError(InputError):
    """Training cannot go on. `mine`: whether this worker's images are the reason."""

    def __init__(self, message: str, mine: bool) -> None:
        super().__init__(message)
        self.mine = mine

    def __reduce__(self) -> tuple[type[NotFiniteError], tuple[str, bool]]:
        return NotFiniteError, (str(self), self.mine)


@dataclass(frozen=True)
class StepTerms:
    """A worker's losses of a step."""

    names: tuple[str, ...]
    values: Tensor  # float [P, L]: part of the worker's images, loss term
    images: list[list[int]]  # ids, of each part

    def blame(self, values: Tensor) -> str:
        """Which images have which terms that are not finite; empty if all are finite.

        Args:
            values: `self.values`, on the host.
        """
        found = []
        for ids, terms in zip(self.images, values, strict=True):
            bad = [name for name, good in zip(self.names, terms.isfinite().tolist(), strict=True) if not good]
            if bad:
                found.append(f"{', '.join(bad)} of images {', '.join(map(str, ids))}")
        return "; ".join(found)


class _Late:
    """Tensors on their way to the host."""

    def __init__(self, step: int, terms: StepTerms, *tensors: Tensor) -> None:
        self.step, self.terms = step, terms
        self._event = None
        if tensors[0].device.type == "cuda":
            self._host = [torch.empty(t.shape, dtype=t.dtype, pin_memory=True) for t in tensors]
            for host, device in zip(self._host, tensors, strict=True):
                host.copy_(device, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = [t.detach().clone() for t in tensors]

    def read(self) -> list[Tensor]:
        if self._event is not None:
            self._event.synchronize()  # of a step that the device has long done
        return self._host


class Guard:
    """Watches over the steps of one worker.

    Args:
        workers: of the group.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._waiting: list[_Late] = []

    def judge(self, step: int, terms: StepTerms, norm: Tensor, ask: bool) -> Tensor:
        """Whether the update of this step may happen, bool [], on the device.

        Args:
            step: of the training, from 0.
            terms: this worker's losses.
            norm: of the gradient of all workers, float [].
            ask: whether this worker asks for a checkpoint.
        """
        bad = ~(terms.values.isfinite().all() & norm.isfinite())
        flags = torch.stack([bad.float(), torch.full_like(norm, float(ask), dtype=torch.float32)])  # [2]
        if self.workers > 1:
            torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        self._waiting.append(_Late(step, terms, flags, terms.values))
        return flags[0] == 0

    def asked(self, late: int = 1) -> bool:
        """Whether a worker asked for a checkpoint in the steps but the `late` last ones, which are not yet read.

        Raises:
            NotFiniteError: one of them had a loss or gradient that is not finite.
        """
        asked = False
        while len(self._waiting) > late:
            step = self._waiting.pop(0)
            flags, values = step.read()
            if flags[0]:
                raise self._error(step, values)
            asked |= bool(flags[1])
        return asked

    @staticmethod
    def _error(step: _Late, values: Tensor) -> NotFiniteError:
        mine = step.terms.blame(values)
        advice = "look at their annotations and pixels, or lower --solver.lr or set --solver.clip-norm in a new --run"
        if mine:
            return NotFiniteError(f"step {step.step + 1}: loss not finite: {mine}; {advice}", True)
        ids = ", ".join(str(i) for part in step.terms.images for i in part)
        return NotFiniteError(
            f"step {step.step + 1}: the gradient is not finite though every loss is, with images {ids} among others; "
            "lower --solver.lr or set --solver.clip-norm in a new --run", False)  # fmt: skip
