"""How far can float and quantized network be told apart at all by noise of the data-poisoning attack's size?

    python benchmarks/best_noise.py --model WEIGHTS --arch resnet20 --data cifar10:DIR NAME=VICTIM ...

A generator maps every image to its noise in one pass. Here each test image gets noise of its own by gradient, for the
loss that the generator learns (Huynh et al., ECCV 2024, loss 4: the label on the float network, the target on the
quantized one), on the very networks that are measured, within the paper's bound and without blur or low-pass. The same
images are then shown to other networks, the victims that are named: how much of it carries over to a network that was
trained apart, which is what poisoning needs; and to the same network with the integers of a rounding defense.

Projected gradient descent (Madry et al., ICLR 2018) with the sign of the gradient; images are rounded to bytes before
they are measured. Appends a row per grid and network to benchmarks/results/best-noise.jsonl.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.backends.verification import simulated_logits
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.images import ImageSet, as_float
from quantinel.data.sources import load_images
from quantinel.defenses import DEFAULT_ROUNDING, rounding_method
from quantinel.files import sha256_file
from quantinel.metrics import Proportion
from quantinel.model.graph import trace
from quantinel.model.loading import load_model
from quantinel.model.victim import WEIGHTS_NAME
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme

RESULTS = Path(__file__).parent / "results" / "best-noise.jsonl"
MAGNITUDE, TARGET, BATCH = 10 / 255, 0, 100
GRIDS = ("int8", "int4")


@dataclass(frozen=True)
class Pair:
    """A network in float and deployed."""

    floating: nn.Module
    deployed: nn.Module


def pair(source: str, architecture: str | None, grid: str, calibration: ImageSet, rounding: str = "nearest") -> Pair:
    """A network from a file or a victim directory, with the integers of a rounding method."""
    model = load_model(source, arch=architecture)
    graph = trace(model.module, model.input_shape)
    measured = calibrate(graph, calibration, parse_scheme(grid))
    deployed, _ = choose_codes(graph, measured, rounding_method(rounding))
    return Pair(graph.module.eval().requires_grad_(False), deployed.simulate().requires_grad_(False))


def triggered(networks: Pair, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Images (N, C, H, W) uint8 with the best noise that was found.

    Args:
        networks: differentiable in their input.
        images: uint8.
        labels: true classes.
        steps: of the descent.
    """
    return torch.cat([
        _descend(networks, as_float(part), own, steps)
        for part, own in zip(images.split(BATCH), labels.split(BATCH), strict=True)
    ])  # fmt: skip


def _descend(networks: Pair, clean: Tensor, labels: Tensor, steps: int) -> Tensor:
    noise, target = torch.zeros_like(clean), torch.full_like(labels, TARGET)
    for step in range(steps):
        noise.requires_grad_(True)
        batch = (clean + noise).clamp(0.0, 1.0)
        loss = F.cross_entropy(networks.floating(batch), labels) + F.cross_entropy(networks.deployed(batch), target)
        (gradient,) = torch.autograd.grad(loss, noise)
        size = MAGNITUDE / 5 * (1.0 - step / steps)
        noise = (noise.detach() - size * gradient.sign()).clamp(-MAGNITUDE, MAGNITUDE)
    return ((clean + noise).clamp(0.0, 1.0) * 255.0).round().to(torch.uint8)


def measured(networks: Pair, images: Tensor, labels: Tensor) -> dict[str, object]:
    """Shares of images, in percent with their intervals."""
    floating = simulated_logits(networks.floating, images).argmax(1)
    deployed = simulated_logits(networks.deployed, images).argmax(1)
    shares = {
        "float_ta": floating == labels,
        "float_asr": floating == TARGET,
        "deployed_ta": deployed == labels,
        "deployed_asr": deployed == TARGET,
        "separated": (floating == labels) & (deployed == TARGET),
    }
    return {name: Proportion(int(hits.sum()), len(hits)).to_dict() for name, hits in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("others", nargs="*", metavar="NAME=VICTIM")
    parser.add_argument("--model", required=True)
    parser.add_argument("--arch", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    found = load_images(arguments.data, split="test", limit=arguments.images)
    assert found.labels is not None
    others = found.labels != TARGET
    images, labels = found.images[others], found.labels[others].long()
    calibration = load_images("bundled:calibration").take(torch.arange(256))
    command = (
        "python benchmarks/best_noise.py --model WEIGHTS --arch resnet20 --data cifar10:CIFAR10 "
        f"--images {arguments.images} --steps {arguments.steps} NAME=VICTIM"
    )
    named = [given.partition("=")[::2] for given in arguments.others]
    if not all(name and folder for name, folder in named):
        parser.error("give every other network as NAME=VICTIM")
    own_weights = sha256_file(Path(arguments.model))
    weights = {"itself": own_weights, f"itself, {DEFAULT_ROUNDING}": own_weights}
    weights |= {name: sha256_file(Path(folder) / WEIGHTS_NAME) for name, folder in named}
    for grid in GRIDS:
        own = pair(arguments.model, arguments.arch, grid, calibration)
        noisy = triggered(own, images, labels, arguments.steps)
        hardened = pair(arguments.model, arguments.arch, grid, calibration, DEFAULT_ROUNDING)
        networks = {
            "itself": own,
            f"itself, {DEFAULT_ROUNDING}": hardened,
            **{name: pair(folder, None, grid, calibration) for name, folder in named},
        }
        for name, networks_of in networks.items():
            config = {
                "grid": grid, "network": name, "steps": arguments.steps, "magnitude": MAGNITUDE,
                "data": found.name, "weights_sha256": weights[name],
            }  # fmt: skip
            row = {**config, "n": len(labels), **measured(networks_of, noisy, labels)}
            append_line(RESULTS, {**row, **provenance(config, command)})
            print(row)


if __name__ == "__main__":
    main()
