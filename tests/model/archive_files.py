"""Networks as .pt2 archives, and the same archives with something changed."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.errors import InputError
from quantinel.model.archive import parse_pt2

Records = dict[str, bytes]
MODEL, WEIGHTS, CONSTANTS, SAMPLES = (
    "models/model.json",
    "data/weights/model_weights_config.json",
    "data/constants/model_constants_config.json",
    "data/sample_inputs/model.pt",
)


class SharedReLU(nn.Module):
    """One in-place ReLU, called first on the input itself; BatchNorm; a buffer that is not saved as one."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)
        self.register_buffer("gain", torch.linspace(1, 2, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv(self.relu(x - 0.5 if self.training else x))))
        pooled = F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).view(x.shape[0], -1)
        return self.head(self.relu(pooled * self.gain))


class Tokens(nn.Module):
    """Class token, attention as torch.nn has it (the batch in the middle), and windows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, stride=4)
        self.token = nn.Parameter(torch.randn(1, 1, 16))
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        batch, channels, height, width = x.shape
        x = (
            x.view(batch, channels, height // 2, 2, width // 2, 2)
            .permute(0, 2, 4, 3, 5, 1)
            .reshape(batch, -1, channels)
        )
        x = torch.cat([self.token.expand(batch, -1, -1), x], 1)
        return self.head((x + self.attention(x, x, x, need_weights=False)[0])[:, 0])


class Tiny(nn.Module):
    """The smallest classifier with a weight, a buffer that becomes a constant, and a multi-output operator."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 3)
        self.register_buffer("shift", torch.ones(3), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        low, high = x.chunk(2, dim=2)
        return self.head(torch.cat([low.mean((2, 3)), high.amax((2, 3))], 1)) + self.shift


def export(module: nn.Module, *examples: Any, decompose: bool = False, **options: Any) -> bytes:
    """What torch.export.save writes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(module, examples, **options)
        if decompose:
            program = program.run_decompositions()
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
    return buffer.getvalue()


def edit(data: bytes, change: Callable[[Records], object], compression: int = zipfile.ZIP_STORED) -> bytes:
    """The archive with other records; checksums are right again."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        root = archive.namelist()[0].split("/")[0]
        records = {name[len(root) + 1 :]: archive.read(name) for name in archive.namelist()}
    change(records)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in records.items():
            archive.writestr(f"{root}/{name}", content)
    return buffer.getvalue()


def zip_record(data: bytes, path: str) -> bytes:
    """One record of an archive."""
    found: list[bytes] = []
    edit(data, lambda records: found.append(records[path]))
    return found[0]


def edit_json(data: bytes, change: Callable[[Any], object], record: str = MODEL) -> bytes:
    """The archive with another JSON record."""

    def apply(records: Records) -> None:
        content = json.loads(records[record])
        change(content)
        records[record] = json.dumps(content).encode()

    return edit(data, apply)


def refused(data: bytes, match: str | None = None) -> str:
    """The one-line message with which the archive is refused."""
    with pytest.raises(InputError, match=match) as caught:
        parse_pt2(data, "model.pt2")
    message = str(caught.value)
    assert message.startswith("model.pt2: ")
    assert "\n" not in message
    assert ";" in message, "says what to do next"
    return message
