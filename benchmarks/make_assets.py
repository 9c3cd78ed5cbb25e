"""Make the bundled image slices: 1,000 test and 512 calibration images of CIFAR-10, class-balanced by chance.

    python benchmarks/make_assets.py --cifar10 FOLDER

Test images are the first 1,000 of the test split; calibration images are a seeded random draw of the training split,
so that no bundled calibration image is ever a test image.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from quantinel.data.cifar10 import load_cifar10
from quantinel.data.strips import write_strips

ASSETS = Path(__file__).parents[1] / "src" / "quantinel" / "assets"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cifar10", type=Path, required=True, help="folder with data_batch_1.npz ... test_batch.npz")
    folder = parser.parse_args().cifar10
    write_strips(ASSETS / "cifar10_test.npz", load_cifar10(folder).take(torch.arange(1000)))
    train = load_cifar10(folder, "train")
    chosen = torch.randperm(len(train), generator=torch.Generator().manual_seed(20221122))[:512].sort().values
    write_strips(ASSETS / "cifar10_calibration.npz", train.take(chosen))


if __name__ == "__main__":
    main()
