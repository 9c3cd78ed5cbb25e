"""What a run needs and its result does not depend on: device, checkpoint, a way to stop, progress."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from quantinel.errors import UsageError

Progress = Callable[[str, int, int, float], None]
"""``progress(phase, steps done, steps in all, loss)``."""


@dataclass(frozen=True)
class Runtime:
    """How a run is carried out. Equal devices, thread counts and versions give equal bits; nothing else here matters.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        checkpoint: file that keeps the state of an unfinished run; a run that finds its own goes on from there, and
            removes it at the end. None: nothing is kept.
        checkpoint_seconds: time between two checkpoints.
        should_stop: polled after every step; when true, the checkpoint is written and `Interrupted` raised.
        progress: called after every step.
    """

    device: str = "cpu"
    checkpoint: Path | None = None
    checkpoint_seconds: float = 60.0
    should_stop: Callable[[], bool] | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.checkpoint_seconds) and self.checkpoint_seconds >= 0):
            raise UsageError(f"checkpoint_seconds is {self.checkpoint_seconds}; give a number of at least 0")

    def torch_device(self) -> torch.device:
        """The device, checked.

        Raises:
            UsageError: unknown, or not present on this machine.
        """
        kind, _, index = self.device.partition(":")
        if kind not in ("cpu", "cuda") or (index and not (kind == "cuda" and index.isdecimal())):
            raise UsageError(f"unknown device {self.device!r}; choose cpu, cuda or cuda:N")
        if kind == "cpu":
            return torch.device("cpu")
        present = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if int(index or 0) >= present:
            raise UsageError(f"device {self.device!r}: {present} GPUs are usable here; choose another, or cpu")
        return torch.device("cuda", int(index or 0))
