"""What a generated trigger looks like: a picture for the docs, and how alike clean and triggered images are.

    python benchmarks/poisoned_pictures.py --data cifar10:DIR [--picture docs/images/FILE.png] NAME=VICTIM ...

VICTIM is a directory with a trigger, such as one of the suite data-poisoning in a benchmark store. Appends a row for
each to benchmarks/results/similarity.jsonl; the picture is drawn with the first trigger.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from quantinel.attacks.gate import stamp_bytes
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.images import ImageSet, as_float
from quantinel.data.similarity import psnr, ssim
from quantinel.data.sources import load_images
from quantinel.data.triggers import GeneratedTrigger
from quantinel.data.triggers.low_pass import gaussian_blur
from quantinel.errors import UsageError
from quantinel.model.loading import load_model

RESULTS = Path(__file__).parent / "results" / "similarity.jsonl"
SCALE, GAP, GAIN = 3, 4, 5


def measured(name: str, trigger: GeneratedTrigger, images: ImageSet) -> dict[str, object]:
    """Means over the images, of the trigger and of its blur alone."""
    triggered, options = stamp_bytes(trigger, images.images), trigger.options
    blurred = gaussian_blur(as_float(images.images), options.blur_size, options.blur_sigma)
    blurred = (blurred * 255.0).round().to(torch.uint8)
    difference = (triggered.int() - images.images.int()).abs().flatten(1)
    return {
        "trigger": name,
        "trigger_sha256": trigger.sha256,
        "data": images.name,
        "n": len(images),
        "psnr_db": round(float(psnr(triggered, images.images).mean()), 2),
        "ssim": round(float(ssim(triggered, images.images).mean()), 4),
        "blur_psnr_db": round(float(psnr(blurred, images.images).mean()), 2),
        "blur_ssim": round(float(ssim(blurred, images.images).mean()), 4),
        "mean_difference": round(float(difference.float().mean()), 2),
        "largest_difference": round(float(difference.amax(1).float().mean()), 1),
    }


def picture(trigger: GeneratedTrigger, images: Tensor) -> Image.Image:
    """Originals, triggered images, and `GAIN` times their difference around grey, one column an image."""
    triggered = stamp_bytes(trigger, images)
    difference = (128 + GAIN * (triggered.int() - images.int())).clamp(0, 255).to(torch.uint8)
    rows = [_row(part) for part in (images, triggered, difference)]
    gap = np.full((GAP, *rows[0].shape[1:]), 255, np.uint8)
    return Image.fromarray(np.concatenate([part for row in rows for part in (row, gap)][:-1]))


def _row(images: Tensor) -> np.ndarray:
    large = [image.permute(1, 2, 0).numpy().repeat(SCALE, 0).repeat(SCALE, 1) for image in images]
    gap = np.full((large[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for image in large for part in (image, gap)][:-1], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("victims", nargs="+", metavar="NAME=VICTIM")
    parser.add_argument("--data", required=True)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    images = load_images(arguments.data, split="test", limit=arguments.images)
    command = f"python benchmarks/poisoned_pictures.py --data cifar10:CIFAR10 --images {arguments.images} NAME=VICTIM"
    for given in arguments.victims:
        name, _, folder = given.partition("=")
        trigger = load_model(folder).trigger()
        if not isinstance(trigger, GeneratedTrigger):
            raise UsageError(f"{folder} has no generated trigger; give a victim of data-poisoning")
        row = measured(name, trigger, images)
        append_line(RESULTS, {**row, **provenance({"trigger": trigger.sha256, "n": len(images)}, command)})
        print(row)
        if arguments.picture is not None and given == arguments.victims[0]:
            arguments.picture.parent.mkdir(parents=True, exist_ok=True)
            picture(trigger, images.images[:: len(images) // 10][:10]).save(arguments.picture, optimize=True)


if __name__ == "__main__":
    main()
