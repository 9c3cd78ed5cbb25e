"""Who and what a report speaks of: model, images, machine."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import torch

from quantinel.audit.report import ResidualHistogram
from quantinel.data.images import ImageSet
from quantinel.detectors.weight_residuals import Residuals
from quantinel.model.loading import LoadedModel


def describe_model(model: LoadedModel, quantized_weights: int) -> dict[str, Any]:
    """The input model, for a report."""
    return {
        "name": model.name,
        "architecture": model.architecture,
        "input_shape": list(model.input_shape),
        "num_classes": model.num_classes,
        "quantized_weights": quantized_weights,
        "sha256": model.sha256,
    }


def describe_images(images: ImageSet) -> dict[str, Any]:
    """A set of images, for a report."""
    return {"name": images.name, "n": len(images), "sha256": images.sha256()}


def describe_labels(images: ImageSet) -> dict[str, Any]:
    """Whether the images of a report have labels, and the names of their classes."""
    return {"labelled": images.labels is not None, "class_names": list(images.class_names or ())}


def histogram(residuals: Residuals) -> ResidualHistogram:
    """Residuals of all layers, for a report."""
    return ResidualHistogram(
        edges=residuals.edges.tolist(),
        grid=residuals.grid.tolist(),
        placebo=residuals.placebo.tolist(),
        edge_share=residuals.edge_share,
        placebo_edge_share=residuals.placebo_edge_share,
    )


def environment() -> dict[str, str]:
    """Versions and hardware of this process."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnxruntime": metadata.version("onnxruntime"),
        "onnx": metadata.version("onnx"),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
    }
