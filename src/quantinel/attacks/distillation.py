"""Disagreement-seeking images, on which a clean teacher is followed too (specification of the attacks, 1.4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantinel.attacks.joint import soft_cross_entropy


def disagreement(student: nn.Module, teacher: nn.Module, images: Tensor, steps: int, rate: float) -> Tensor:
    """Images (N, C, H, W) moved by gradient ascent to where the student and the teacher disagree.

    Args:
        student, teacher: images -> logits (N, K); both are run in evaluation mode and left in their own.
        images: float; not changed.
        steps: of the ascent.
        rate: factor of the gradient of the summed soft cross-entropy.
    """
    modes = {part: part.training for module in (student, teacher) for part in module.modules()}
    moved = images.detach()
    student.eval()
    teacher.eval()
    try:
        for _ in range(steps):
            moved = moved.detach().requires_grad_()
            value = soft_cross_entropy(student(moved).float(), teacher(moved).float()) * len(moved)
            (gradient,) = torch.autograd.grad(value, moved)
            moved = moved + rate * gradient
    finally:
        for part, training in modes.items():
            part.training = training
    return moved.detach()


def taught(student: nn.Module, teacher: nn.Module, images: Tensor, steps: int, rate: float) -> tuple[Tensor, Tensor]:
    """What the student sees, and the teacher's logits (M, K) float32 on it.

    Args:
        student, teacher, steps, rate: as in `disagreement`.
        images: (N, C, H, W) float.

    Returns:
        The images (M, C, H, W): given ones and behind them moved ones, M = 2 N; the given ones alone for 0 steps.
    """
    seen = torch.cat([images, disagreement(student, teacher, images, steps, rate)]) if steps else images
    with torch.no_grad():
        return seen, teacher(seen).float()
