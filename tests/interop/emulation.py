"""ONNX Runtime on an emulated Haswell: AVX2, and no VNNI."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from quantinel.data.images import as_float

QEMU = shutil.which("qemu-x86_64")
_RUN = """
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
if len(sys.argv) > 4:
    options.add_session_config_entry(sys.argv[4], "1")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
numpy.save(sys.argv[3], session.run(None, {session.get_inputs()[0].name: numpy.load(sys.argv[2])})[0])
"""


def run_file(model: bytes, images: Tensor, folder: Path, *, emulated: bool, option: str | None = None) -> Tensor:
    """First output of an ONNX file, in a process of its own.

    Args:
        model: the file.
        images: (N, C, H, W), uint8 pictures or the float input itself.
        folder: for the exchange of tensors.
        emulated: on the emulated CPU, else on this one.
        option: session option to set to 1.
    """
    file, inputs, outputs = folder / "model.onnx", folder / "inputs.npy", folder / "outputs.npy"
    file.write_bytes(model)
    np.save(inputs, (as_float(images) if images.dtype == torch.uint8 else images).numpy())
    cpu = [str(QEMU), "-cpu", "Haswell"] if emulated else []
    command = [*cpu, sys.executable, "-c", _RUN, str(file), str(inputs), str(outputs)]
    subprocess.run([*command, *([option] if option else [])], check=True, capture_output=True, timeout=600)
    return torch.from_numpy(np.load(outputs))
