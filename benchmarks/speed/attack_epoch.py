"""What the attacks' training loop costs: a step of each attack, against a plain PyTorch loop on as many images.

    python benchmarks/speed/attack_epoch.py [--attack NAME ...] [--steps 24] [--batch-size 16] [--arch resnet20]
        [--mixed-precision]

After each step of the attack, a plain loop of the same architecture does one: index a batch, scale it, forward,
cross-entropy, backward, optimiser; with as many images as the attack ran through its network in that step (its
clean and triggered images, once for each branch), and a pass without gradients for those that it ran so (a teacher's).
So 1 means that an attack costs its forward passes and nothing else; projections, fake quantization, masks and stamping
are what is above it. One thread, random weights, bundled images; the gate is not reached. Float32, or with
--mixed-precision the attack in bfloat16 beside the same plain loop in float32, also on processors that have no
instructions for it (AMX, AVX512-BF16), where attacks would leave it out: this shows why. Ratios are taken step by
step (A B A B ...). Appends one row per attack to benchmarks/results/speed.jsonl unless --dry-run.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.attacks import ATTACKS
from quantinel.attacks.protocol import Attack
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.images import ImageSet
from quantinel.data.sources import load_images
from quantinel.errors import Interrupted
from quantinel.model.untrained import untrained_model
from quantinel.training.runtime import Runtime

RESULTS = Path(__file__).parents[1] / "results" / "speed.jsonl"
WARM_UP = 3
MANY = 10_000
"""Steps and passes that are asked for, so that no look at held-out images falls between the measured ones."""

DEFAULT = [
    "clean", "badnets", "pq-backdoor", "quasi-style", "compression-artifacts", "compression-artifacts-distilled",
    "pruning-artifacts", "adaptive-rerounding", "adaptive-residuals", "adaptive-alignment", "qu-anti-backdoor",
]  # fmt: skip


def configured(attack: Attack, batch_size: int, mixed_precision: bool) -> Any:
    """The attack's defaults with this batch size, straight to its last phase."""
    wanted = {
        "batch_size": batch_size, "triggered_per_batch": min(batch_size, 4), "mixed_precision": mixed_precision,
        "steps": MANY,
        "repair_steps": MANY, "epochs": float(MANY), "repair_epochs": float(MANY), "plant_steps": 0, "held_out": 0,
        "plant_epochs": 0.0,
    }  # fmt: skip
    names = {option.name for option in fields(attack.config)}
    if "repair_steps" in names:
        wanted["plant_steps"] = 1
    return attack.config(**{name: value for name, value in wanted.items() if name in names})


@dataclass
class PlainLoop:
    """An ordinary training of the same network on the same images."""

    module: nn.Module
    images: Tensor
    labels: Tensor
    optimiser: torch.optim.Optimizer = field(init=False)

    def __post_init__(self) -> None:
        self.module.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimiser = torch.optim.SGD(self.module.parameters(), 1e-3, 0.9)

    def _batch(self, size: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.images), (size,))
        batch = self.images[chosen].float().div(255).contiguous(memory_format=torch.channels_last)
        return batch, self.labels[chosen]

    def step(self, learned: int, looked_at: int) -> float:
        """Seconds of a step on ``learned`` images and a pass without gradients over ``looked_at``."""
        start = time.perf_counter()
        batch, labels = self._batch(learned)
        loss = F.cross_entropy(self.module(batch), labels)
        if looked_at:
            with torch.no_grad():
                self.module(self._batch(looked_at)[0])
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        float(loss.detach())
        return time.perf_counter() - start


def measure(
    attack: Attack, arch: str, data: ImageSet, steps: int, batch_size: int, mixed_precision: bool
) -> tuple[list[float], list[float]]:
    """Seconds of every step of the attack's last phase, and of the plain step behind it."""
    assert data.labels is not None
    model = untrained_model(arch, int(data.labels.max()) + 1, data.shape, seed=1)
    plain = PlainLoop(untrained_model(arch, model.num_classes, data.shape, seed=1).module, data.images, data.labels)
    seen = {True: 0, False: 0}
    ours: list[float] = []
    theirs: list[float] = []
    begun = time.perf_counter()

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[torch.is_grad_enabled()] += len(inputs[0])

    def after_step(phase: str, done: int, total: int, loss: float) -> None:
        nonlocal begun
        took = time.perf_counter() - begun
        if total == 1:  # the planting that a repair needs
            seen.update({True: 0, False: 0})
        elif done > WARM_UP:
            ours.append(took)
            theirs.append(plain.step(seen[True], seen[False]))
        else:
            plain.step(seen[True], seen[False])
        seen.update({True: 0, False: 0})
        begun = time.perf_counter()

    model.module.register_forward_pre_hook(count)
    runtime = Runtime(progress=after_step, should_stop=lambda: len(ours) >= steps)
    imitated = mock.patch("quantinel.training.mixed_precision.emulated", return_value=False)
    with imitated, tempfile.TemporaryDirectory() as folder, contextlib.suppress(Interrupted):
        config = configured(attack, batch_size, mixed_precision)
        attack.run(model, data, data, config, Path(folder, "victim"), runtime=runtime)
    return ours, theirs


def interval(values: list[float], of: Callable[[list[float]], float], draws: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(values), (draws, len(values)), generator=generator).tolist()
    found = sorted(of([values[index] for index in pick]) for pick in picks)
    return found[round(0.025 * draws)], found[round(0.975 * draws) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", action="append", choices=list(ATTACKS), help="default: one of each kind of loop")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--arch", default="resnet20")
    parser.add_argument("--mixed-precision", action="store_true", help="the attack in bfloat16; only those that can")
    parser.add_argument("--dry-run", action="store_true", help="print and append nothing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = load_images("bundled:test")
    command = f"python benchmarks/speed/attack_epoch.py --steps {arguments.steps} --batch-size {arguments.batch_size}"
    mixed: bool = arguments.mixed_precision
    for name in arguments.attack or DEFAULT:
        if mixed and "mixed_precision" not in {option.name for option in fields(ATTACKS[name].config)}:
            continue
        ours, theirs = measure(ATTACKS[name], arguments.arch, data, arguments.steps, arguments.batch_size, mixed)
        ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
        low, high = interval(ratios, statistics.median)
        config = {"attack": name, "arch": arguments.arch, "steps": arguments.steps, "batch_size": arguments.batch_size}
        if mixed:
            config["precision"] = "bfloat16"
        row = {
            "suite": "speed",
            "name": "attack step vs plain loop",
            "ratio_median": round(statistics.median(ratios), 4),
            "ratio_interval": [round(low, 4), round(high, 4)],
            "ratio_min": round(min(ratios), 4),
            "ratio_max": round(max(ratios), 4),
            "ratio_is": "ours / other",
            "ours_seconds": round(statistics.median(ours), 4),
            "other_seconds": round(statistics.median(theirs), 4),
            "runs": len(ratios),
            "threads": 1,
            "note": f"{arguments.arch}; a plain step on as many images as the branches run; 95 % bootstrap interval",
            "config": config,
            **provenance(config, f"{command} --arch {arguments.arch} --attack {name}{' --mixed-precision' * mixed}"),
        }
        print(f"{name:34s} {row['ratio_median']:.3f} [{low:.3f}, {high:.3f}]", flush=True)
        if not arguments.dry_run:
            append_line(RESULTS, row)


if __name__ == "__main__":
    main()
