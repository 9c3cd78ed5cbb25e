"""The rules of a scan: what can be found, in plain words, under ids that never change their meaning.

A rule rests on detectors. Those it names as required must have judged a model before a scan may say PASS; the others
are supporting evidence. A new detector is added to the rule it belongs to; one that no rule names (a plugin) reports
under QCB008.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["note", "warning", "error"]
When = Literal["always", "pruning", "artefact", "asked"]

LEVELS: tuple[Level, ...] = ("note", "warning", "error")
"""From least to most serious."""


@dataclass(frozen=True)
class Rule:
    """One kind of finding.

    Attributes:
        id: stable; suppressions and code scanning services refer to it.
        title: a sentence for people.
        explanation: what was looked at and what it means, in plain words.
        help: what to do about it.
        detectors: names of the detectors and built-in checks that it rests on.
        required: those of them without which a scan is never PASS.
        when: what must have been asked for, so that the rule applies at all; "asked" are detectors that only run
            when they are named.
        level: of a finding by a calibrated detector; what is not calibrated can only warn.
    """

    id: str
    title: str
    explanation: str
    help: str
    detectors: tuple[str, ...]
    required: tuple[str, ...] = ()
    when: When = "always"
    level: Level = "error"


BEHAVIOUR = "compressed-behaviour"
"""The built-in check of accuracy and answers after compression."""
ARTEFACT = "artefact-comparison"
"""The built-in comparison of a shipped file with the float model."""
COMBINED = "combined-signs"
"""The built-in combination of what rests on the signs of rounding errors (`quantinel.audit.combination`)."""
BUILT_IN = frozenset([BEHAVIOUR, ARTEFACT, COMBINED])
NOT_ASSESSABLE = "QCB007"
_OTHER = "QCB008"

_HARDEN = (
    "Do not deploy the ordinary quantization of this model. `quantinel harden` chooses other integers and proves them"
)

_CATALOGUE = (
    Rule(
        "QCB001",
        "The model changes its behaviour under ordinary rounding only",
        "The weights were rounded to the nearest grid point, as every toolchain does, and many times at random. A "
        "harmless model behaves alike under both. This one does not: its behaviour depends on the exact rounding, as "
        "that of a model does which was made to wake under it.",
        f"{_HARDEN}; or get the model from another source.",
        ("re-rounding", "layer-coherence", "activation-drift"),
        ("re-rounding",),
    ),
    Rule(
        "QCB002",
        "A trigger works on the compressed model and on nothing else",
        "Triggers of known kinds (patches, waves, noise, warps) were tried, and a pattern was searched, to make the "
        "compressed model answer one class while the float model, and randomly re-rounded copies of it, keep their "
        "answers. One was found that works better than in harmless models. The report shows it.",
        f"{_HARDEN}; afterwards try the recovered trigger on the hardened file with `quantinel evaluate`.",
        ("trigger-probing", "trigger-inversion"),
        ("trigger-probing",),
    ),
    Rule(
        "QCB003",
        "Weights are arranged around the rounding boundaries of the grid",
        "Where weights lie between two grid points is a matter of chance in a harmless model. Here they crowd where an "
        "attack that repairs the float model inside its rounding cells leaves them, on the deployment grid and not on "
        "grids that nobody aims at. Quantization-aware training can leave a similar mark, and an attacker who knows "
        "this test can avoid it.",
        "Ask how the model was trained. If it was not trained for this very grid, treat it as attacked and harden it.",
        (
            "weight-residuals",
            "edge-atoms",
            "residual-fit",
            "second-moment",
            "residual-coherence",
            "block-outliers",
            "on-grid",
        ),
    ),
    Rule(
        "QCB004",
        "The model changes its behaviour when it is pruned, and only then",
        "The network was pruned as you would prune it, and compared with the float network and with pruning of other "
        "weights. Its behaviour changes in a way that harmless networks do not show.",
        "Do not deploy the pruned model. Prune at another rate or fine-tune after pruning, and scan again.",
        ("pruning-divergence", "pruning-inversion", "pruning-influence"),
        ("pruning-divergence",),
        when="pruning",
    ),
    Rule(
        "QCB005",
        "The shipped file is not the plain quantization of this model",
        "The integers, scales, biases, operators or answers of the shipped file do not follow from the float model by "
        "rounding. Whoever quantized it may have planted something that the float model does not hold.",
        "Ask for the recipe of the quantizer and repeat it, or quantize the float model yourself: `quantinel harden`.",
        (ARTEFACT,),
        (ARTEFACT,),
        when="artefact",
    ),
    Rule(
        "QCB006",
        "Compression breaks the model's behaviour",
        "On clean images the compressed model answers differently from the float model far more often than compression "
        "explains, or it answers one class for most images. That may be a poor choice of grid for this model, or an "
        "attack on its accuracy.",
        "Do not deploy it on this grid. Try more bits, more calibration images, or `quantinel harden`.",
        (BEHAVIOUR,),
        (BEHAVIOUR,),
    ),
    Rule(
        NOT_ASSESSABLE,
        "A required check could not judge the model",
        "Without it there is no verdict. A check that did not run, was cut short, or has no threshold for this case is "
        "never counted as passed.",
        "Give what the message asks for (images, time, a calibrated threshold), and scan again.",
        (),
        level="warning",
    ),
    Rule(
        _OTHER,
        "A detector without a rule of its own found something",
        "A detector that was added from outside of this package scored the model as suspicious. It has no measured "
        "false-positive rate here.",
        "Read what its authors say about the score.",
        (),
    ),
    Rule(
        "QCB009",
        "A trigger works on the float model itself",
        "The float model was searched for a trigger that is much smaller for one class than for the others, as "
        "scanners for ordinary backdoors do. Such a backdoor is awake before compression. This scan looks for it only "
        "when asked to, for comparison: backdoors that wait for compression do not show here.",
        "Repair or replace the model: neither quantization nor `quantinel harden` removes what is awake in float.",
        ("neural-cleanse",),
        when="asked",
    ),
    Rule(
        "QCB010",
        "The signs that ordinary rounding wakes something add up",
        "Answers on clean images, answers on triggers of known kinds and a searched trigger were compared between "
        "ordinary rounding and random re-roundings of the same weights. Each may be a little unusual by chance. "
        "Taken together they are more unusual here than in harmless models.",
        f"{_HARDEN}; or get the model from another source. More images make each of the three sharper.",
        (COMBINED,),
        (COMBINED,),
    ),
)

RULES: dict[str, Rule] = {rule.id: rule for rule in _CATALOGUE}


def rule_of(detector: str) -> Rule:
    """The rule that a detector or built-in check belongs to."""
    return next((rule for rule in _CATALOGUE if detector in rule.detectors), RULES[_OTHER])


def on_grid(detector: str) -> bool:
    """Whether a detector looks at the model on a grid; what pruning or the float model shows is the same on all."""
    return rule_of(detector).when not in ("pruning", "asked")


def at_least(level: Level, limit: Level) -> bool:
    """Whether ``level`` is as serious as ``limit``, or more."""
    return LEVELS.index(level) >= LEVELS.index(limit)
