"""A trigger that a network draws for every image, as a value: its options as JSON, its weights as safetensors beside.

The weights are too many for a JSON file, so a directory that names such a trigger holds `WEIGHTS` too.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from quantinel.data.guards import printable, reason, require_file
from quantinel.data.triggers.checks import require_float
from quantinel.data.triggers.generator import GeneratorOptions, TriggerGenerator
from quantinel.errors import InputError

WEIGHTS = "trigger.safetensors"
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class GeneratedTrigger:
    """``B(x)`` of a trained generator, clipped to [0, 1].

    Attributes:
        options: everything but the weights.
        weights: safetensors bytes of the generator's state dict.
        sha256: of ``weights``.

    Raises:
        InputError: the weights are damaged, or not those of such a generator.
    """

    options: GeneratorOptions
    weights: bytes = field(repr=False)
    sha256: str = field(init=False)
    _generator: TriggerGenerator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sha256", hashlib.sha256(self.weights).hexdigest())
        object.__setattr__(self, "_generator", _filled(self.options, self.weights))

    @classmethod
    def of(cls, generator: TriggerGenerator) -> GeneratedTrigger:
        """The trigger of a trained generator; a copy of its weights."""
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in generator.state_dict().items()}
        return cls(generator.options, safetensors.torch.save(state))

    @classmethod
    def from_dict(cls, values: dict[str, Any], folder: Path | None) -> GeneratedTrigger:
        """Read the fields of the JSON form, and the weights from ``folder``.

        Raises:
            InputError: unknown fields, no folder, weights that are missing or not those that were described.
        """
        given = dict(values)
        sha256 = given.pop("sha256", None)
        known = GeneratorOptions.__dataclass_fields__
        unknown = sorted(given.keys() - known.keys())
        if unknown or not isinstance(sha256, str):
            problem = f"unknown: {', '.join(unknown)}" if unknown else "missing: sha256"
            raise InputError(f"trigger: a generated trigger has {', '.join(known)}, sha256; {printable(problem)[:80]}")
        if folder is None:
            raise InputError(
                f"trigger: a generated trigger needs its weights, {WEIGHTS}; give the victim directory, or the JSON "
                "file beside it"
            )
        path = folder / WEIGHTS
        require_file(path)
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"trigger: {printable(path)} is larger than {_MAX_BYTES} bytes; it is no such generator")
        weights = path.read_bytes()
        if hashlib.sha256(weights).hexdigest() != sha256:
            raise InputError(f"trigger: {printable(path)} is not the described file (sha256 differs); copy it again")
        return cls(GeneratorOptions(**given), weights)

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Trigger ``images`` (N, C, H, W) or (C, H, W) float in [0, 1]; without gradients, on their device.

        Raises:
            InputError: other channels, images smaller than the network or the blur takes, or not floats.
        """
        require_float(images)
        options = self.options
        height, width = images.shape[-2:]
        smallest = max(2**options.depth, options.blur_size // 2 + 1)
        if images.shape[-3] != options.channels or min(height, width) < smallest:
            raise InputError(
                f"trigger: it was made for images of {options.channels} channels and at least {smallest} pixels, not "
                f"{tuple(images.shape[-3:])}; give such images"
            )
        batch = images if images.ndim == 4 else images.unsqueeze(0)
        generator = self._generator.to(images.device)
        triggered: Tensor = generator(batch.float()).clamp(0.0, 1.0)
        return triggered.to(images.dtype).reshape(images.shape)

    def to_dict(self) -> dict[str, Any]:
        """JSON form, read back by `trigger_from_dict` from a folder that holds `files`."""
        return {"kind": "generated", **asdict(self.options), "sha256": self.sha256}

    def files(self) -> dict[str, bytes]:
        """What lies beside the JSON form, by file name."""
        return {WEIGHTS: self.weights}


def _filled(options: GeneratorOptions, weights: bytes) -> TriggerGenerator:
    with torch.device("meta"):  # what the file does not hold is never allocated, and no random number is drawn
        generator = TriggerGenerator(options)
    expected = {name: tensor.shape for name, tensor in generator.state_dict().items()}
    try:
        state = safetensors.torch.load(weights)
    except Exception as error:  # the library raises its own errors, and a damaged header any
        raise InputError(f"trigger: the generator's weights are damaged ({reason(error)}); copy them again") from error
    found = {name: tensor.shape for name, tensor in state.items()}
    if found != expected or not all(
        tensor.dtype == torch.float32 and bool(torch.isfinite(tensor).all()) for tensor in state.values()
    ):
        raise InputError("trigger: the weights are not those of a generator with these options; copy both again")
    generator.load_state_dict(state, assign=True)
    return generator.eval().requires_grad_(False)
