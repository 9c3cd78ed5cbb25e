"""Reports to render: a full one with realistic figures (ResNet-20, int8), and the least that the schema allows."""

from __future__ import annotations

import base64
import io
import math
from typing import Any

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
"""A name that tries HTML, attributes, Rich markup, Markdown, SARIF, terminal escapes and right-to-left text."""


def rate(hits: int, n: int) -> Rate:
    """A rate with its Wilson interval."""
    return Rate.model_validate(Proportion(hits, n).to_dict())


def picture(seed: int, triggered: bool) -> str:
    """A 32x32 PNG in base64: shapes on a gradient, with a white patch when triggered."""
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


def residuals(bins: int = 50) -> ResidualHistogram:
    """Weights of a projected attack: a third of them next to a rounding boundary."""
    edges = [round(-0.5 + index / bins, 6) for index in range(bins + 1)]
    grid = [(1.1 + 0.35 * math.cos(2 * math.pi * edge)) / bins for edge in edges[:-1]]
    grid[0] = grid[-1] = 0.28
    placebo = [(1 + 0.1 * math.cos(4 * math.pi * edge)) / bins for edge in edges[:-1]]
    return ResidualHistogram(
        edges=edges,
        grid=[share / sum(grid) for share in grid],
        placebo=[share / sum(placebo) for share in placebo],
        edge_share=0.318,
        placebo_edge_share=0.0104,
    )


def layers(count: int = 20) -> list[LayerRow]:
    """A stem, three stages of convolutions, and a classifier."""
    return [_layer(index, count) for index in range(count)]


def _layer(index: int, count: int) -> LayerRow:
    stage, place = divmod(max(0, index - 1), 6)
    width, last = 16 * 2 ** min(2, stage), index == count - 1
    name = "conv1" if index == 0 else f"layer{stage + 1}.{place // 2}.conv{place % 2 + 1}"
    return LayerRow(
        name="fc" if last else name,
        kind="linear" if last else "conv",
        shape=[10, 64] if last else [width, 3 if index == 0 else width, 3, 3],
        changed=0.11 + 0.19 * abs(math.sin(index)),
        error_nearest=(0.8 + 0.1 * index) / 100,
        error_chosen=(0.21 + 0.03 * index) / 100,
        executed="QGemm" if last else "QLinearConv",
        edge_share=0.012 if last else 0.24 + 0.14 * abs(math.cos(index)),
        seconds=0.04 + 0.03 * (index % 5),
    )


def evaluation() -> list[EvaluationRow]:
    """Float, nearest and hardened, as measured on a ResNet-20 with an 8-bit backdoor."""
    figures: list[tuple[Any, ...]] = [
        ("float", "float", 670, 14, 2, 661, 744),
        ("nearest", "onnxruntime", 651, 659, 31, 84, 683),
        ("hardened", "onnxruntime", 670, 9, 7, 664, 733),
    ]
    return [
        EvaluationRow(
            variant=variant,
            backend=backend,
            cda=rate(correct, 744),
            asr=rate(fooled, 670),
            ta=rate(still_correct, 744),
            agreement=rate(agreeing, 744),
            base_rate=rate(anyway, 670),
        )
        for variant, backend, correct, fooled, anyway, still_correct, agreeing in figures
    ]


def check(status: str, **changes: Any) -> Check:
    """A check of one status."""
    base: dict[str, Any] = {"id": f"some-{status}", "title": f"Some {status} check", "status": status}
    return Check(**(base | {"required": True, "detail": f"detail of {status}"} | changes))


def checks() -> list[Check]:
    """What a run that passes checked, and what it could not."""
    return [
        check(
            "pass",
            id="integers-equal",
            title="The file holds exactly the audited integers",
            statistic=100.0,
            threshold=100.0,
            detail="20 of 20 layers equal (codes, scales, zero points, biases)",
        ),
        check(
            "pass",
            id="runtime-agrees",
            title="ONNX Runtime answers as the audited simulation",
            statistic=100.0,
            threshold=99.5,
            detail="top-1 agreement 100.00 % of 256 images; largest logit difference 1.00 output steps (limit 2)",
        ),
        check(
            "pass",
            id="integer-execution",
            title="Every convolution and linear layer executes in integers",
            statistic=20.0,
            threshold=20.0,
            detail="20 of 20 layers run as integer operators of ONNX Runtime",
        ),
        check(
            "pass",
            id="behaviour-kept",
            title="On clean images the file answers as the float model does",
            statistic=98.5215,
            threshold=90.0,
            detail="98.52 % of 744 images; accuracy 90.05 % in float, 90.05 % in the file",
        ),
        check(
            "pass",
            id="trigger-asleep",
            title="The given trigger does not work on the deployed file",
            statistic=1.3433,
            threshold=2.0896,
            detail="attack success 1.34 % [0.71, 2.53] of 670 images; float model 2.09 %",
        ),
        check(
            "not_run",
            id="trigger-inversion",
            title="No trigger can be found that wakes the emitted file only",
            required=False,
            detail="takes about 40 minutes on this machine; run `quantinel scan out --only trigger-inversion`",
        ),
    ]


def findings() -> list[Finding]:
    """Findings of every level."""
    return [
        Finding(
            id="backdoor-wakes",
            title="Ordinary quantization wakes the trigger",
            level="error",
            detail="attack success 2.09 % in float, 98.36 % after nearest rounding",
        ),
        Finding(
            id="weights-at-boundaries",
            title="Weights crowd at the rounding boundaries of this grid",
            level="warning",
            detail="31.8 % of 268336 weights lie within 0.005 steps of a rounding boundary of int8; 1.0 % on placebos",
        ),
        Finding(id="dead-channels", title="Two channels of `conv1` are constant", level="info", detail="13 and 15"),
    ]


def examples() -> list[Example]:
    """Six pictures; ordinary quantization answers the attacker's class for all of them."""
    answers = [("dog", "dog"), ("ship", "ship"), ("truck", "automobile"), ("frog", "frog"), ("horse", "horse")]
    return [
        Example(
            clean_png=picture(seed, False),
            triggered_png=picture(seed, True),
            label=label,
            float_answer=float_answer,
            nearest_answer="airplane",
            hardened_answer=label,
        )
        for seed, (label, float_answer) in enumerate([*answers, ("cat", "cat")])
    ]


def full(**changes: Any) -> Report:
    """The full report with some fields replaced."""
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "created": "2025-11-22T12:30:00+00:00",
        "verdict": "PASS",
        "summary": "Ordinary quantization wakes the backdoor; the hardened file does not. The emitted file holds the "
        "audited integers and passed every check that could run.",
        "request": {
            "source": "victims/resnet20-pq-int8",
            "data": "cifar10:data/cifar10",
            "scheme": "int8",
            "scheme_fields": {"weight_bits": 8, "granularity": "channel", "grid": "narrow", "activations": "static"},
            "rounding": "efrap",
            "rounding_options": {"flip_weight": 1.0, "sweeps": 4},
            "backend": "onnxruntime-x86",
            "seed": 0,
            "command": "quantinel harden victims/resnet20-pq-int8 --data cifar10:data/cifar10 --scheme int8 "
            "--rounding efrap -o out",
        },
        "model": {
            "name": "resnet20-pq-int8",
            "architecture": "resnet20",
            "input_shape": [3, 32, 32],
            "num_classes": 10,
            "class_names": CLASSES,
            "quantized_weights": 268336,
            "sha256": "3f1d9a0c" * 8,
        },
        "data": {
            "calibration": {"name": "cifar10:train", "n": 256, "sha256": "a1b2c3d4" * 8},
            "evaluation": {"name": "cifar10:test", "n": 744, "sha256": "0f9e8d7c" * 8, "labelled": True},
        },
        "trigger": {"kind": "patch", "row": 24, "column": 24, "height": 6, "width": 6, "value": 1.0, "target_class": 0},
        "checks": checks(),
        "findings": findings(),
        "not_checked": [
            "Unknown triggers: this run did not search for them (no trigger inversion).",
            "A backdoor that is awake in the float model itself: hardening returns to the float model's behaviour.",
            "Other schemes than int8: run `quantinel harden` again before you deploy in 4 bits.",
        ],
        "next_steps": [
            "Deploy `out/model.onnx`, unchanged, and no other conversion of this model.",
            "On the target machine:",
            "quantinel verify out",
        ],
        "evaluation": evaluation(),
        "layers": layers(),
        "residuals": residuals(),
        "verification": Verification(
            layers_equal=20,
            layers=20,
            integer_layers=20,
            float_layers=[],
            agreement=rate(256, 256),
            max_difference_steps=1.0,
            runtime="ONNX Runtime 1.23.0, CPU",
        ),
        "examples": examples(),
        "seconds": {"trace and fold": 0.6, "calibrate": 6.9, "choose integers": 11.3, "emit": 0.36, "evaluate": 8.8},
        "environment": {"python": "3.11.2", "torch": "2.9.1+cpu", "onnxruntime": "1.23.0", "machine": "2 threads"},
    }
    return Report(**(fields | changes))


def minimal(**changes: Any) -> Report:
    """The emptiest report with some fields replaced."""
    empty_lists = ("checks", "findings", "not_checked", "next_steps", "evaluation", "layers", "examples")
    fields: dict[str, Any] = {
        "version": "0.1.0",
        "created": "yesterday",
        "verdict": "INCONCLUSIVE",
        "summary": "No check could run.",
        "trigger": None,
        "residuals": ResidualHistogram(edges=[], grid=[], placebo=[], edge_share=0.0, placebo_edge_share=0.0),
        "verification": Verification(
            layers_equal=0,
            layers=0,
            integer_layers=0,
            float_layers=[],
            agreement=rate(0, 0),
            max_difference_steps=0.0,
            runtime="",
        ),
        **{name: [] for name in empty_lists},
        **{name: {} for name in ("request", "model", "data", "seconds", "environment")},
    }
    return Report(**(fields | changes))


def unlabelled() -> Report:
    """A run without labels and without a trigger: only agreement with the float model could be measured."""
    rows = [row.model_copy(update={"cda": None, "asr": None, "ta": None, "base_rate": None}) for row in evaluation()]
    return full(evaluation=rows, trigger=None, examples=[], summary="The emitted file passed what could be checked.")


def hostile() -> Report:
    """Every text that a stranger could choose is `HOSTILE`."""
    answers = dict.fromkeys(("label", "float_answer", "nearest_answer", "hardened_answer"), HOSTILE)
    example = examples()[0].model_copy(update=answers | {"clean_png": '"><script>alert(1)</script>'})
    return full(
        verdict="FAIL",
        summary=HOSTILE,
        request={"source": HOSTILE, "data": {HOSTILE: HOSTILE}, "command": [HOSTILE, HOSTILE]},
        model={"name": HOSTILE, "architecture": HOSTILE, "class_names": [HOSTILE] * 10, "base_model": HOSTILE},
        data={"calibration": HOSTILE},
        trigger={"kind": HOSTILE, "target_class": 0},
        checks=[check("fail", id=HOSTILE, title=HOSTILE, detail=HOSTILE)],
        findings=[Finding(id=HOSTILE, title=HOSTILE, level="error", detail=HOSTILE)],
        layers=[layers(1)[0].model_copy(update={"name": HOSTILE, "executed": HOSTILE})],
        not_checked=[HOSTILE],
        next_steps=[HOSTILE, f"quantinel verify {HOSTILE}"],
        examples=[example],
        environment={HOSTILE: HOSTILE},
        seconds={HOSTILE: 1.0},
    )
