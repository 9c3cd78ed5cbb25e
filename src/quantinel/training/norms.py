"""BatchNorm in training: statistics of the batch, or those that the network has."""

from __future__ import annotations

from torch import nn


def train_mode(module: nn.Module, *, frozen: bool) -> None:
    """Training mode; ``frozen`` keeps BatchNorm's running statistics and normalises with them (its affine part is
    trained all the same).
    """
    module.train()
    for part in module.modules():
        if frozen and isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.eval()
