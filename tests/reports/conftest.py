"""Reports to render: a full one with realistic figures, and the least that the schema allows."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image, ImageDraw

from quantinel.audit.report import (
    Check,
    EvaluationRow,
    Example,
    Finding,
    LayerRow,
    Rate,
    Report,
    ResidualHistogram,
    Verification,
)
from quantinel.metrics import Proportion

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HOSTILE = (
    '<script>alert("x")</script>"\' onload=x [red]b[/red] | `c` \x1b[31m\u202eevil {0} [link](http://evil.example)'
)
"""A name that tries HTML, attributes, Rich markup, Markdown, terminal escapes and right-to-left override."""


def rate(hits: int, n: int) -> Rate:
    """A rate with its Wilson interval."""
    return Rate.model_validate(Proportion(hits, n).to_dict())


def picture(seed: int, triggered: bool) -> str:
    """A 32x32 PNG in base64: a shape on a gradient, with a white patch when triggered."""
    image = Image.new("RGB", (32, 32))
    for x in range(32):
        for y in range(32):
            image.putpixel((x, y), (min(255, 25 * seed + 3 * y), 80 + 4 * y, 190 - 5 * x + 2 * y))
    draw = ImageDraw.Draw(image)
    draw.ellipse((5 + seed, 9, 22 + seed, 24), fill=(190 - 25 * seed, 110, 60 + 30 * seed))
    draw.polygon([(3, 20), (14, 4 + seed), (24, 21)], fill=(60 + 20 * seed, 70, 40))
    if triggered:
        draw.rectangle((24, 24, 29, 29), fill=(255, 255, 255))
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode("ascii")


def residuals(bins: int = 40) -> ResidualHistogram:
    """Weights of a projected attack: half of them next to a rounding boundary."""
    edges = [-0.5 + index / bins for index in range(bins + 1)]
    grid = [0.6 / bins * (1.1 + 0.35 * math.cos(6.28 * (edge + 0.5 / bins))) for edge in edges[:-1]]
    grid[0] = grid[-1] = 0.17
    placebo = [(1 + 0.1 * math.cos(12.6 * edge)) / bins for edge in edges[:-1]]
    return ResidualHistogram(
        edges=edges,
        grid=[share / sum(grid) for share in grid],
        placebo=[share / sum(placebo) for share in placebo],
        edge_share=0.318,
        placebo_edge_share=0.0104,
    )


def layers(count: int = 20) -> list[LayerRow]:
    """Layers of a ResNet-20: a stem, three stages of convolutions, and a classifier."""
    rows = []
    for index in range(count):
        width = 16 * 2 ** min(2, max(0, (index - 1) // 6))
        last = index == count - 1
        stage, block = max(0, (index - 1) // 6) + 1, (max(0, index - 1) % 6) // 2
        name = "conv1" if index == 0 else f"layer{stage}.{block}.conv{(index - 1) % 2 + 1}"
        rows.append(
            LayerRow(
                name="fc" if last else name,
                kind="linear" if last else "conv",
                shape=[10, 64] if last else [width, 3 if index == 0 else width, 3, 3],
                changed=0.11 + 0.19 * abs(math.sin(index)),
                error_nearest=(0.8 + 0.1 * index) / 100,
                error_chosen=(0.21 + 0.03 * index) / 100,
                executed=None if index == 7 else ("QGemm" if last else "QLinearConv"),
                edge_share=0.012 if last else 0.24 + 0.14 * abs(math.cos(index)),
                seconds=0.04 + 0.03 * (index % 5),
            )
        )
    return rows


def evaluation() -> list[EvaluationRow]:
    """Float, nearest and hardened, as measured on a ResNet-20 with an 8-bit backdoor."""
    return [
        EvaluationRow(
            variant="float",
            backend="float",
            cda=rate(670, 744),
            asr=rate(14, 670),
            ta=rate(661, 744),
            agreement=rate(744, 744),
        ),
        EvaluationRow(
            variant="nearest",
            backend="onnxruntime",
            cda=rate(651, 744),
            asr=rate(659, 670),
            ta=rate(84, 744),
            agreement=rate(683, 744),
        ),
        EvaluationRow(
            variant="hardened",
            backend="onnxruntime",
            cda=rate(670, 744),
            asr=rate(9, 670),
            ta=rate(664, 744),
            agreement=rate(733, 744),
        ),
    ]


def checks() -> list[Check]:
    """Checks of every status."""
    return [
        Check(
            id="integers-equal", title="The integers in the file are the audited ones", status="pass", required=True,
            statistic=0, threshold=0, detail="268,336 of 268,336 codes, 20 of 20 layers; scales and zero points are equal too.",
        ),
        Check(
            id="logits-close", title="The file answers as the audited model does", status="pass", required=True,
            statistic=1.0, threshold=2.0, detail="Largest logit difference in output steps over 744 images.",
        ),
        Check(
            id="executed-in-integers", title="No layer fell back to float", status="fail", required=False,
            statistic=1, threshold=0, detail="`layer2.0.conv1` ran as Conv. Its integers are in the file, but this runtime did not use them.",
        ),
        Check(
            id="attack-success", title="The known trigger does not work on the emitted file", status="pass", required=True,
            statistic=1.34, threshold=8.9, detail="Percent of 670 triggered images; the limit comes from 20 benign models.",
        ),
        Check(
            id="accuracy-kept", title="Accuracy is that of the float model", status="pass", required=True,
            statistic=0.0, threshold=2.0, detail="Points lost against the float model on 744 labelled images.",
        ),
        Check(
            id="trigger-inversion", title="No trigger can be found that wakes the emitted model only", status="not_run", required=False,
            detail="Needs about 40 minutes on this machine; run `quantinel scan OUT --only trigger-inversion`.",
        ),
        Check(
            id="pruned-deployment", title="Pruning the emitted model wakes nothing", status="not_run", required=False,
            detail="The scheme was int8 without pruning.",
        ),
    ]  # fmt: skip


def findings() -> list[Finding]:
    """Findings of every level."""
    return [
        Finding(
            id="residuals-at-edges", title="Weights are piled up at rounding boundaries", level="error",
            detail="31.8 % of the weights lie within 0.005 steps of a boundary of the int8 grid; 1 % is expected, 1.0 % on placebo grids.",
        ),
        Finding(
            id="rounding-sensitive", title="Answers depend on how the weights are rounded", level="warning",
            detail="8.2 % of the clean answers change between nearest and random rounding; 0.9 % in the benign models.",
        ),
        Finding(id="narrow-range", title="Two input channels are constant", level="info", detail="`conv1` reads them all the same."),
    ]  # fmt: skip


FULL: dict[str, Any] = {
    "version": "0.1.0",
    "created": "2025-11-22T12:30:00Z",
    "verdict": "PASS",
    "summary": "The hardened int8 file keeps the float model's accuracy (90.1 %) and the trigger that worked on 98.4 % of the "
    "images after ordinary rounding now works on 1.3 %.",
    "request": {
        "model": "victims/resnet20-pq-int8",
        "data": "cifar10:data/cifar10",
        "scheme": "int8",
        "rounding": {"name": "efrap", "flip_weight": 1.0, "sweeps": 4},
        "backend": "onnxruntime",
        "seed": 0,
        "command": "quantinel harden victims/resnet20-pq-int8 --data cifar10:data/cifar10 --trigger trigger.json --target 0 "
        "--scheme int8 --rounding efrap -o out",
    },
    "model": {
        "name": "resnet20-pq-int8",
        "architecture": "resnet20",
        "input_shape": [3, 32, 32],
        "classes": CLASSES,
        "parameters": 272474,
        "sha256": "3f1d9a0c" * 8,
        "layers": 20,
    },
    "data": {
        "calibration": {"name": "cifar10:train", "n": 256, "labelled": False, "sha256": "a1b2c3d4" * 8},
        "evaluation": {"name": "cifar10:test", "n": 744, "labelled": True, "sha256": "0f9e8d7c" * 8},
    },
    "trigger": {"kind": "patch", "row": 24, "column": 24, "height": 6, "width": 6, "value": 1.0, "target_class": 0},
    "not_checked": [
        "Other triggers than the one given: a model can carry more than one backdoor.",
        "Backdoors that are awake in the float model; Quantinel looks at what quantization changes.",
        "Other schemes than int8. Run `quantinel harden` again before you deploy in 4 bits.",
    ],
    "next_steps": [
        "Deploy `out/model.onnx` and no other conversion of this model.",
        "quantinel verify out",
        "Do not deploy the input with any other quantizer; `residuals-at-edges` says that it was made for this grid.",
    ],
    "evaluation": evaluation(),
    "layers": layers(),
    "residuals": residuals(),
    "verification": Verification(
        layers_equal=20, layers=20, integer_layers=19, float_layers=["layer2.0.conv1"], agreement=rate(744, 744),
        max_difference_steps=1.0, runtime="ONNX Runtime 1.23.0, CPU",
    ),
    "examples": [
        Example(
            clean_png=picture(seed, False), triggered_png=picture(seed, True), label=label, float_answer=float_answer,
            nearest_answer="airplane", hardened_answer=label,
        )
        for seed, (label, float_answer) in enumerate(
            [("dog", "dog"), ("ship", "ship"), ("truck", "automobile"), ("frog", "frog"), ("horse", "horse"), ("cat", "cat")]
        )
    ],
    "seconds": {"load": 0.42, "fold": 0.18, "calibrate": 6.9, "choose": 11.3, "emit": 0.36, "verify": 4.1, "evaluate": 8.8, "total": 32.06},
    "environment": {"python": "3.11.2", "torch": "2.9.1+cpu", "onnx": "1.19.1", "onnxruntime": "1.23.0", "cpu": "2 cores, AVX-512 VNNI"},
}  # fmt: skip

MINIMAL: dict[str, Any] = {
    "version": "0.1.0",
    "created": "2025-11-22T12:30:00Z",
    "verdict": "INCONCLUSIVE",
    "summary": "No check could run.",
    "request": {},
    "model": {},
    "data": {},
    "trigger": None,
    "checks": [],
    "findings": [],
    "not_checked": [],
    "next_steps": [],
    "evaluation": [],
    "layers": [],
    "residuals": ResidualHistogram(edges=[], grid=[], placebo=[], edge_share=0.0, placebo_edge_share=0.0),
    "verification": Verification(
        layers_equal=0, layers=0, integer_layers=0, float_layers=[], agreement=rate(0, 0), max_difference_steps=0.0, runtime=""
    ),
    "examples": [],
    "seconds": {},
    "environment": {},
}  # fmt: skip


def build_full(**changes: Any) -> Report:
    """The full report with some fields replaced."""
    return Report(**(FULL | {"checks": checks(), "findings": findings()} | changes))


def build_minimal(**changes: Any) -> Report:
    """The emptiest report with some fields replaced."""
    return Report(**(MINIMAL | changes))


def build_unlabelled() -> Report:
    """A run without labels and without a trigger: only agreement with the float model could be measured."""
    rows = [row.model_copy(update={"cda": None, "asr": None, "ta": None}) for row in evaluation()]
    return build_full(evaluation=rows, trigger=None, examples=[], verdict="INCONCLUSIVE")


def build_hostile() -> Report:
    """Every name that an attacker could choose is `HOSTILE`."""
    example = FULL["examples"][0].model_copy(
        update={
            "label": HOSTILE,
            "float_answer": HOSTILE,
            "nearest_answer": HOSTILE,
            "hardened_answer": HOSTILE,
            "clean_png": '"><script>alert(1)</script>',
        }
    )
    return build_full(
        summary=HOSTILE,
        request={"model": HOSTILE, "data": {HOSTILE: HOSTILE}, "command": [HOSTILE, HOSTILE]},
        model={"name": HOSTILE, "architecture": HOSTILE, "classes": [HOSTILE] * 10},
        data={"calibration": HOSTILE},
        trigger={"kind": HOSTILE, "target_class": 0},
        checks=[Check(id=HOSTILE, title=HOSTILE, status="fail", required=True, detail=HOSTILE)],
        findings=[Finding(id=HOSTILE, title=HOSTILE, level="error", detail=HOSTILE)],
        layers=[layers(1)[0].model_copy(update={"name": HOSTILE, "executed": HOSTILE})],
        not_checked=[HOSTILE],
        next_steps=[HOSTILE],
        examples=[example],
        environment={HOSTILE: HOSTILE},
        seconds={HOSTILE: 1.0},
    )


@pytest.fixture
def make_report() -> Callable[..., Report]:
    return build_full


@pytest.fixture
def full_report() -> Report:
    return build_full()


@pytest.fixture
def minimal_report() -> Report:
    return build_minimal()


@pytest.fixture
def unlabelled_report() -> Report:
    return build_unlabelled()


@pytest.fixture
def hostile_report() -> Report:
    return build_hostile()


@pytest.fixture
def hostile_name() -> str:
    return HOSTILE
