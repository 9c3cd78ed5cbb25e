"""What a deployer's quantizer does, as one frozen value.

The attacker's grid and the defender's grid are both schemes. A grid that differs by 0.4 % (127 against
127.5 levels) is a different grid: a backdoor planted for one usually sleeps on the other.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Literal

from quantinel.errors import UsageError

Granularity = Literal["channel", "tensor"]
Grid = Literal["narrow", "full"]
RangeRule = Literal["minmax", "mse", "percentile"]
Activations = Literal["static", "dynamic", "none"]

_CHOICES: dict[str, tuple[str, ...]] = {
    "granularity": ("channel", "tensor"),
    "grid": ("narrow", "full"),
    "weight_range": ("minmax", "mse", "percentile"),
    "activations": ("static", "dynamic", "none"),
    "activation_range": ("minmax", "mse", "percentile"),
}


@dataclass(frozen=True)
class QuantScheme:
    """Uniform quantization of weights (symmetric) and activations (affine, per tensor, unsigned).

    Attributes:
        weight_bits: 2 to 8. Fewer than 8 bits are stored in an int8 container.
        granularity: one scale per output channel, or one per tensor.
        grid: "narrow" is [-(2^(b-1)-1), 2^(b-1)-1] with scale = max|w| / (2^(b-1)-1), so that the largest
            weight sits exactly on the grid; "full" is [-2^(b-1), 2^(b-1)-1] with max|w| / (2^(b-1)-0.5),
            PyTorch's convention.
        weight_range: how max|w| is chosen: the maximum, the range of least squared error, or a percentile.
        weight_percentile: share of |w| kept by the percentile rule, in percent.
        activations: "static" (calibrated ranges), "dynamic" (measured at run time), or "none" (weight-only).
        activation_bits: 2 to 8, stored in uint8.
        activation_range: rule for static ranges.
        activation_percentile: share kept at each end by the percentile rule, in percent.
    """

    weight_bits: int = 8
    granularity: Granularity = "channel"
    grid: Grid = "narrow"
    weight_range: RangeRule = "minmax"
    weight_percentile: float = 99.9
    activations: Activations = "static"
    activation_bits: int = 8
    activation_range: RangeRule = "minmax"
    activation_percentile: float = 99.99

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise UsageError(f"scheme: {name} is {value!r}; choose one of {', '.join(choices)}")
        for name in ("weight_bits", "activation_bits"):
            if getattr(self, name) not in range(2, 9):
                raise UsageError(f"scheme: {name} is {getattr(self, name)}; choose 2 to 8")
        for name in ("weight_percentile", "activation_percentile"):
            if not 50.0 < getattr(self, name) <= 100.0:
                raise UsageError(f"scheme: {name} is {getattr(self, name)}; choose a value in (50, 100]")

    @property
    def code_min(self) -> int:
        """Smallest weight code."""
        return -self.code_max if self.grid == "narrow" else -self.code_max - 1

    @property
    def code_max(self) -> int:
        """Largest weight code."""
        return (1 << (self.weight_bits - 1)) - 1

    @property
    def levels(self) -> float:
        """Divisor of max|w| that gives the scale: 127 (narrow) or 127.5 (full) at 8 bits."""
        return self.code_max + (0.0 if self.grid == "narrow" else 0.5)

    @property
    def activation_max(self) -> int:
        """Largest unsigned activation code (the smallest is 0)."""
        return (1 << self.activation_bits) - 1

    @property
    def name(self) -> str:
        """Short name that `parse_scheme` reads back, e.g. ``int4-per-tensor-weight-only``."""
        parts = [f"int{self.weight_bits}"]
        if self.granularity == "tensor":
            parts.append("per-tensor")
        if self.grid == "full":
            parts.append("full")
        if self.weight_range != "minmax":
            parts.append(f"weight-{self.weight_range}")
        if self.activations == "dynamic":
            parts.append("dynamic")
        elif self.activations == "none":
            parts.append("weight-only")
        else:
            if self.activation_bits != 8:
                parts.append(f"a{self.activation_bits}")
            if self.activation_range != "minmax":
                parts.append(self.activation_range)
        return "-".join(parts)

    def to_dict(self) -> dict[str, object]:
        """All fields, for manifests and recipes."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


_TOKENS: dict[str, tuple[str, str]] = {
    "per-tensor": ("granularity", "tensor"),
    "per-channel": ("granularity", "channel"),
    "full": ("grid", "full"),
    "narrow": ("grid", "narrow"),
    "weight-mse": ("weight_range", "mse"),
    "weight-percentile": ("weight_range", "percentile"),
    "weight-only": ("activations", "none"),
    "dynamic": ("activations", "dynamic"),
    "mse": ("activation_range", "mse"),
    "percentile": ("activation_range", "percentile"),
}

SCHEMES: dict[str, str] = {
    "int8": "8-bit weights per channel, static 8-bit activations; what most runtimes deploy",
    "int4": "4-bit weights per channel in an int8 container, static 8-bit activations",
    "int8-per-tensor": "8-bit weights with one scale per tensor",
    "int8-full": "8-bit weights on PyTorch's [-128, 127] grid (scale = max / 127.5)",
    "int8-dynamic": "8-bit weights, activation ranges measured at run time",
    "int8-weight-only": "8-bit weights, float activations",
    "int4-weight-only": "4-bit weights, float activations",
}
"""Common names for `quantinel list schemes`; `parse_scheme` accepts every combination."""


def parse_scheme(name: str) -> QuantScheme:
    """Read a name such as ``int8``, ``int4-weight-only`` or ``int8-per-tensor-full-percentile``.

    Raises:
        UsageError: the name is not understood; the message lists what is.
    """
    match = re.fullmatch(r"int([2-8])((?:-[a-z0-9-]+)?)", name.strip().lower())
    options: dict[str, object] = {}
    rest = match.group(2) if match else ""
    while match and rest:
        for token in sorted(_TOKENS, key=len, reverse=True):
            if re.match(rf"-{re.escape(token)}(?=-|$)", rest):
                field, value = _TOKENS[token]
                rest = rest[len(token) + 1 :]
                break
        else:
            bits = re.match(r"-a([2-8])(?=-|$)", rest)
            if bits is None:
                match = None
                break
            field, value, rest = "activation_bits", bits.group(1), rest[bits.end() :]
        if field in options:
            match = None
            break
        options[field] = int(value) if field == "activation_bits" else value
    if match is None:
        raise UsageError(
            f"unknown scheme {name!r}; write int2 to int8, then any of "
            f"{', '.join(f'-{token}' for token in _TOKENS)}, -a2 to -a8 (for example int4-weight-only)"
        )
    return QuantScheme(weight_bits=int(match.group(1)), **options)  # type: ignore[arg-type]
