"""Are the chosen integers the ones in the file, and does ONNX Runtime run them in integers and as simulated?

    python benchmarks/emission.py --cifar10 FOLDER [--clean resnet20_cifar10.safetensors]

Every architecture is emitted with integers that are floor or ceiling at random (a stand-in for any rounding method:
about half differ from nearest rounding, so any accidental re-rounding shows). ResNet-20 is pretrained; the others have
random weights and BatchNorm statistics of the data, which is enough for equality and agreement, not for accuracy.
Appends rows to benchmarks/results/emission.jsonl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
import torch

from quantinel.backends.onnx_qdq import PROFILES, to_onnx
from quantinel.backends.runtime import Session, execution
from quantinel.backends.verification import compare_integers, compare_outputs, simulated_logits
from quantinel.bench.row_file import append_line
from quantinel.bench.rows import provenance
from quantinel.data.cifar10 import load_cifar10
from quantinel.data.sources import load_images
from quantinel.model.graph import trace
from quantinel.model.loading import load_model
from quantinel.model.normalization import Normalized
from quantinel.model.zoo import ARCHITECTURES, build
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.quantized_model import quantize_nearest
from quantinel.quantization.rounding import rounding_cell
from quantinel.quantization.scheme import QuantScheme

RESULTS = Path(__file__).parent / "results" / "emission.jsonl"
NAMES = ("resnet20", "resnet18", "vgg13", "mobilenetv2", "vit_tiny")
COMMAND = "python benchmarks/emission.py --cifar10 CIFAR10 --clean RESNET20"


def prepared(name: str, clean: Path | None, calibration: torch.Tensor) -> torch.nn.Module:
    """Pretrained where weights are given, else random with statistics of the data."""
    if name == "resnet20" and clean is not None:
        return load_model(clean, arch=name).module
    torch.manual_seed(0)
    architecture = ARCHITECTURES[name]
    module = Normalized(build(name), architecture.mean, architecture.std)
    module.train()
    with torch.no_grad():
        for _ in range(5):
            module(calibration)
    return module.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cifar10", type=Path, required=True)
    parser.add_argument("--clean", type=Path)
    parser.add_argument("--images", type=int, default=2000)
    arguments = parser.parse_args()
    test = load_cifar10(arguments.cifar10).take(torch.arange(arguments.images))
    calibration = load_images("bundled:calibration").take(torch.arange(256))
    for name in NAMES:
        graph = trace(prepared(name, arguments.clean, calibration.as_float()), (3, 32, 32))
        model = quantize_nearest(graph, calibrate(graph, calibration, QuantScheme()))
        generator = torch.Generator().manual_seed(0)
        codes = {}
        for layer_name, layer in model.layers.items():
            cell = rounding_cell(graph.weight(layer.layer), layer.scale, model.scheme)
            up = torch.rand(cell.floor.shape, generator=generator) < 0.5
            codes[layer_name] = torch.where(up, cell.ceil, cell.floor).to(torch.int8)
        model = model.with_codes(codes)
        simulated = simulated_logits(model.simulate(), test.images)
        for profile in ("onnxruntime-x86", "onnxruntime-avx2"):
            data = to_onnx(model, PROFILES[profile]).SerializeToString()
            integers = compare_integers(onnx.load_from_string(data), model.layers, model.activations)
            outputs = compare_outputs(Session(data).logits(test.images), simulated, model.output_step)
            config = {"architecture": name, "profile": profile, "images": len(test)}
            row = {
                "suite": "emission", "architecture": name, "profile": profile, "scheme": model.scheme.name,
                "layers": len(model.layers), "layers_equal": len(integers.equal),
                "integer_layers": execution(data, list(model.layers)).integer_layers, "n": outputs.agreement.n,
                "agreement_percent": outputs.agreement.percent,
                "max_difference_steps": round(outputs.max_steps, 3), **provenance(config, COMMAND),
            }  # fmt: skip
            append_line(RESULTS, row)
            print({key: row[key] for key in list(row)[1:10]})


if __name__ == "__main__":
    main()
