"""What a method returns is checked before it becomes integers: methods may come from plugins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tests.support import make_images

from quantinel.errors import InputError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import QuantScheme


@dataclass(frozen=True)
class Faulty:
    """Returns what it was given, whatever the layer."""

    returned: Any
    name = "faulty"
    needs = "weights"

    def choose(self, problem: Any) -> Any:
        if isinstance(self.returned, torch.dtype):
            return torch.zeros_like(problem.weight, dtype=self.returned)
        return self.returned


@pytest.mark.parametrize(
    ("returned", "given"),
    [
        (None, "a NoneType"),
        ([1], "a list"),
        (torch.float32, r"torch.float32 \(8, 3, 3, 3\)"),
        (torch.int32, r"torch.int32 \(8, 3, 3, 3\)"),
        (torch.zeros(2, dtype=torch.int8), r"torch.int8 \(2,\)"),
    ],
)
def test_the_message_names_what_was_returned(odd_graph: FloatGraph, returned: Any, given: str) -> None:
    ranges = calibrate(odd_graph, make_images(16), QuantScheme())
    expected = rf"method faulty returned {given} as the codes of stem; .* torch.int8 \(8, 3, 3, 3\)"
    with pytest.raises(InputError, match=expected):
        choose_codes(odd_graph, ranges, Faulty(returned))
