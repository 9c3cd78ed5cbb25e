"""A float model from whatever the user has: file, directory, library name or module.

Model files are untrusted: pickles are refused (they run code when opened), ``.pt2`` goes through `archive`,
and ``.safetensors`` holds numbers only. Code is imported where the user names it (``factory``), and nowhere
else.
"""

from __future__ import annotations

import hashlib
import io
import logging
import math
import os
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from quantinel.data.triggers import Trigger, trigger_from_dict
from quantinel.errors import InputError, UnsupportedError, UsageError
from quantinel.model.archive import parse_pt2, read_file
from quantinel.model.archive_text import shown
from quantinel.model.checkpoints import fit, load_state, read_safetensors, strip_prefix
from quantinel.model.named_models import Found, Shape, call_factory, from_timm, from_torchvision, reason
from quantinel.model.normalization import Normalized
from quantinel.model.victim import MANIFEST_NAME, WEIGHTS_NAME, VictimManifest, read_manifest
from quantinel.model.zoo import ARCHITECTURES, build

logger = logging.getLogger(__name__)

BUNDLED = "bundled:"
_ASSETS = Path(__file__).parent.parent / "assets"
_PICKLES = frozenset([
    ".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".tar", ".jit", ".ts", ".torchscript", ".joblib", ".npy",
    ".npz", ".h5", ".keras", ".model",
])  # fmt: skip
_RECIPE = (
    "convert it where you trust it: safetensors.torch.save_file(model.state_dict(), 'model.safetensors'), to be "
    "given with --arch or --factory, or torch.export.save(torch.export.export(model.eval(), (images,)), "
    "'model.pt2')"
)


@dataclass(frozen=True)
class LoadedModel:
    """A float classifier, ready for images in [0, 1].

    Attributes:
        module: eval mode, normalises inside; float32 images (N, C, H, W) in [0, 1] -> logits (N, K).
        name: short, for file names and reports.
        source: what the user gave.
        input_shape: (C, H, W).
        num_classes: K.
        sha256: of the weights file; None for a module from memory or from a library.
        architecture: name as in ``quantinel list architectures``, if it is one of those.
        victim: manifest, if the model came from a victim directory.
        folder: that directory.
    """

    module: nn.Module
    name: str
    source: str
    input_shape: Shape
    num_classes: int
    sha256: str | None
    architecture: str | None = None
    victim: VictimManifest | None = None
    folder: Path | None = None

    def trigger(self) -> Trigger | None:
        """The trigger that a victim directory brings along; None for clean models and attacks without one.

        Raises:
            InputError: it is of no known form, or its weights are missing from the directory.
        """
        if self.victim is None or self.victim.trigger is None:
            return None
        return trigger_from_dict(self.victim.trigger, self.folder)


def load_model(
    model: str | Path | nn.Module,
    *,
    arch: str | None = None,
    factory: str | None = None,
    num_classes: int | None = None,
    input_shape: Shape | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LoadedModel:
    """Load a float model.

    Args:
        model: ``.pt2`` or ``.safetensors`` file, victim directory, ``bundled:NAME``, ``timm:NAME``,
            ``torchvision:NAME``, or a module, which is put in eval mode and used as it is.
        arch: architecture of a ``.safetensors`` file, a key of `quantinel.model.zoo.ARCHITECTURES`.
        factory: ``pkg.module:callable``, called to make the module of a ``.safetensors`` file.
        num_classes: checked against the model.
        input_shape: (C, H, W) of one image; needed for a module and with ``factory``.
        mean, std: normalisation per channel of images in [0, 1]; without them the model's own, or none.

    Raises:
        UsageError: options that do not fit the source, or an unknown name.
        InputError: missing, damaged, refused, or not a classifier of the expected form.
        UnsupportedError: an ONNX file.
    """
    if (mean is None) != (std is None):
        raise UsageError("mean and std go together; give both or neither")
    if input_shape is not None and not _is_image(input_shape):
        raise UsageError(f"input_shape is (C, H, W) of one image, not {input_shape}; give for example 3,32,32")
    if isinstance(model, nn.Module):
        _no_options("a module", arch=arch, factory=factory)
        source = f"module:{type(model).__name__}"
        found = Found(model, type(model).__name__, input_shape)
    else:
        source = str(model)
        found = _find(source, arch, factory, num_classes, input_shape)
    shape = input_shape or found.input_shape
    if shape is None:
        raise UsageError(f"the shape of one image is not known for {source}; give input_shape (--input-shape C,H,W)")
    if found.input_shape not in (None, shape):
        raise InputError(f"{source} takes images of shape {found.input_shape}, not {shape}; drop --input-shape")
    module = found.module.eval()
    _check_weights(module, source)
    mean, std = (found.mean, found.std) if mean is None else (mean, std)
    if mean is not None and std is not None:
        if len(mean) != shape[0]:
            raise UsageError(
                f"mean and std have {len(mean)} numbers, but images have {shape[0]} channels; give one a channel"
            )
        module = Normalized(module, mean, std).eval()
    classes = _count_classes(module, shape, source)
    if num_classes not in (None, classes):
        raise InputError(f"{source} has {classes} classes, not {num_classes}; drop --num-classes or give another model")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", found.name).strip("-.") or "model"
    return LoadedModel(
        module, name, source, shape, classes, found.sha256, found.architecture, found.victim, found.folder
    )


def bundled_model(source: str) -> Path:
    """Folder of a victim that comes with Quantinel, ``bundled:NAME``.

    Raises:
        UsageError: there is none of that name.
    """
    names = sorted(path.parent.name for path in _ASSETS.glob(f"*/{MANIFEST_NAME}"))
    name = source.removeprefix(BUNDLED)
    if name not in names:
        raise UsageError(
            f"{source} does not come with Quantinel; choose {' or '.join(BUNDLED + item for item in names)}"
        )
    return _ASSETS / name


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and min(shape) >= 1 and math.prod(shape) <= 1 << 26


def _no_options(what: str, **options: object) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UsageError(f"--{given[0]} does not go with {what}; drop it")


def _find(
    source: str, arch: str | None, factory: str | None, num_classes: int | None, input_shape: Shape | None
) -> Found:
    """Decide by name and content what the source is."""
    for prefix, from_library in (("timm:", from_timm), ("torchvision:", from_torchvision)):
        if source.startswith(prefix):
            _no_options(f"{prefix}NAME", arch=arch, factory=factory)
            return from_library(source.removeprefix(prefix))
    path = bundled_model(source) if source.startswith(BUNDLED) else Path(source)
    if os.path.isdir(path):
        return _from_directory(path, arch, factory)
    suffix = path.suffix.lower()
    if suffix in _PICKLES and os.path.isfile(path):
        raise InputError(f"{path} is a pickle (or may hold one), which can run code when opened; {_RECIPE}")
    data = read_file(path)
    if _is_pickle(data):
        raise InputError(f"{path} holds a pickle, which can run code when opened; {_RECIPE}")
    if suffix == ".onnx":
        raise UnsupportedError(f"{path}: ONNX is not read as a float model yet; give the torch.export file (.pt2)")
    if suffix == ".pt2":
        _no_options("a .pt2 file, which holds its own graph", arch=arch, factory=factory)
        exported = parse_pt2(data, source)
        return Found(exported.module, path.stem, exported.input_shape, sha256=exported.sha256)
    if suffix != ".safetensors":
        raise InputError(f"{path} is of no known kind; give a .pt2 or .safetensors file, or a victim directory")
    if (arch is None) == (factory is None):
        raise UsageError(f"{path} holds weights only; give --arch NAME or --factory pkg.module:callable, one of them")
    state, sha256 = read_safetensors(data, source), hashlib.sha256(data).hexdigest()
    if factory is not None:
        module = call_factory(factory)
        load_state(module, state, source, factory)
        return Found(module, path.stem, None, sha256=sha256)
    assert arch is not None
    module, shape = _fill_architecture(arch, state, source, num_classes, input_shape)
    return Found(
        module,
        path.stem,
        shape,
        ARCHITECTURES[arch].mean[: shape[0]],
        ARCHITECTURES[arch].std[: shape[0]],
        sha256,
        arch,
    )


def _is_pickle(data: bytes) -> bool:
    """A bare pickle, or a zip archive of torch.save or TorchScript, whatever the file is called."""
    if re.match(rb"\x80[\x02-\x05](?!.{6}\{)", data, re.DOTALL):  # not the length of a safetensors header, then "{"
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return any(name.endswith(".pkl") for name in archive.namelist())
    except Exception:  # not a zip archive, or a damaged one; the reader of its kind says so
        return False


def _from_directory(folder: Path, arch: str | None, factory: str | None) -> Found:
    if not os.path.exists(folder / MANIFEST_NAME):
        if os.path.exists(folder / "manifest.json") and os.path.exists(folder / "model.onnx"):
            raise UsageError(
                f"{folder} is already quantized; check it with quantinel verify or measure it with quantinel evaluate"
            )
        raise InputError(f"{folder} is not a victim directory (no {MANIFEST_NAME}); give the model file inside it")
    _no_options("a victim directory", arch=arch, factory=factory)
    manifest = read_manifest(folder)
    path = folder / WEIGHTS_NAME
    data = read_file(path)
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != manifest.weights_sha256:
        raise InputError(
            f"{path} is not the file that {MANIFEST_NAME} describes (sha256 differs); make the victim again"
        )
    if manifest.architecture not in ARCHITECTURES:
        raise InputError(f"{folder} has the unknown architecture {shown(manifest.architecture)}; make the victim again")
    shape = manifest.input_shape
    if not _is_image(shape) or not len(manifest.mean) == len(manifest.std) == shape[0]:
        raise InputError(f"{folder / MANIFEST_NAME} has an impossible image shape or mean; make the victim again")
    state = read_safetensors(data, str(path))
    module, _ = _fill_architecture(manifest.architecture, state, str(path), manifest.num_classes, shape)
    return Found(
        module,
        folder.resolve().name,
        shape,
        manifest.mean,
        manifest.std,
        sha256,
        manifest.architecture,
        manifest,
        folder,
    )


def _fill_architecture(
    arch: str, state: dict[str, Tensor], source: str, num_classes: int | None, input_shape: Shape | None
) -> tuple[nn.Module, Shape]:
    """A named architecture with these weights; what is not given is read off the weights."""
    with torch.device("meta"):  # shapes only
        names = list(build(arch, 10, 32).state_dict())
    state = strip_prefix(state, set(names))
    if input_shape is None:
        kernel = next((state[name] for name in names if name in state and state[name].ndim == 4), None)
        input_shape = (3 if kernel is None else int(kernel.shape[1]), 32, 32)
    last = state.get(names[-1])
    classes = int(last.shape[0]) if last is not None and last.ndim else 10
    if last is not None and num_classes not in (None, classes):
        raise InputError(
            f"{source} has {classes} classes, not {num_classes}; drop --num-classes or give another checkpoint"
        )
    if classes < 2:
        raise InputError(f"{source} has {classes} output; Quantinel needs a classifier with at least 2 classes")
    with torch.device("meta"):  # what the file does not hold is never allocated
        expected = build(arch, classes, input_shape[1], input_shape[0]).state_dict()
    fit(expected, state, source, arch)
    module = build(arch, classes, input_shape[1], input_shape[0])
    load_state(module, state, source, arch)
    return module, input_shape


def _check_weights(module: nn.Module, source: str) -> None:
    """Float32, not quantized, finite."""
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise InputError(f"{source}: {shown(name)} is {parameter.dtype}; give a float32 model (model.float())")
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise InputError(f"{source}: {shown(name)} has no data (device meta); load its weights first")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{source}: {shown(name)} holds NaN or infinite numbers; give an undamaged checkpoint")


def _count_classes(module: nn.Module, shape: Shape, source: str) -> int:
    """Number of logits, from a run on one black image."""
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.inference_mode():
            logits = module(torch.zeros(1, *shape, device=device))
    except Exception as error:  # any model, any failure
        raise InputError(
            f"{source} fails on an image of shape {shape} ({reason(error)}); check --input-shape"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[0] != 1 or logits.shape[1] < 2:
        got = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise InputError(f"{source} returns {got}, not logits (N, classes); wrap it in a module that returns those")
    if not logits.is_floating_point() or not bool(torch.isfinite(logits).all()):
        raise InputError(f"{source} returns logits that are not finite for a black image; check the checkpoint")
    return int(logits.shape[1])
