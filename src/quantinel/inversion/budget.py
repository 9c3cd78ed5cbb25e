"""How long a detector may work."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Budget:
    """Wall-clock time that all detectors of one scan share.

    A detector that has little left may do less of the same work (fewer control copies, fewer steps) and says so in
    `Detection.notes`; results under a budget depend on the machine, those without one do not.

    Attributes:
        seconds: from ``started``; infinite by default.
        clock: seconds, monotonic.
        started: when the clock began.
    """

    seconds: float = math.inf
    clock: Callable[[], float] = time.monotonic
    started: float = field(default=math.nan)

    def __post_init__(self) -> None:
        if math.isnan(self.started):
            object.__setattr__(self, "started", self.clock())

    def remaining(self) -> float:
        """Seconds left, never negative; infinite without a limit."""
        return max(0.0, self.seconds - (self.clock() - self.started))

    def share(self, parts: int) -> Budget:
        """A budget of an equal share of what is left, for one of ``parts`` pieces of work."""
        return Budget(self.remaining() / max(parts, 1), self.clock)
