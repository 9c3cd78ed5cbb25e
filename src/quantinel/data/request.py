"""What a caller wants of a source of images, apart from where it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from quantinel.data.sampling import balanced_indices
from quantinel.errors import UsageError

Progress = Callable[[int, int], None]
"""Called as ``progress(done, total)``, in pictures."""


@dataclass(frozen=True)
class Request:
    """The options of `quantinel.data.sources.load_images`.

    Attributes:
        name: how the user named the source; the start of messages.
        input_shape: (C, H, W) of the model, C in {1, 3}, or None.
        split: for sources that have splits.
        limit: images to keep at most, or None.
        seed: of the choice that ``limit`` makes.
        progress: called while pictures are decoded, or None.

    Raises:
        UsageError: an impossible shape or limit.
    """

    name: str
    input_shape: tuple[int, int, int] | None = None
    split: str = "test"
    limit: int | None = None
    seed: int = 0
    progress: Progress | None = None

    def __post_init__(self) -> None:
        shape = self.input_shape
        if shape is not None and (len(shape) != 3 or shape[0] not in (1, 3) or min(shape) < 1):
            raise UsageError(
                f"input shape {shape} is not (C, H, W) with 1 or 3 channels; images can feed no other model"
            )
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"a limit of {self.limit} images leaves nothing; give at least 1, or no limit")

    def choose(self, labels: Tensor | None, total: int) -> Tensor | None:
        """The ascending indices that the limit leaves of ``total`` images, or None when it leaves all."""
        if self.limit is None or self.limit >= total:
            return None
        return balanced_indices(labels, total, self.limit, self.seed)
