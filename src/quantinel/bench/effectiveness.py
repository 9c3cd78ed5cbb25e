"""Defense effectiveness rating: one figure for what a defense takes from the attack and from the model.

    DER = (max(0, ASR_before - ASR_after) - max(0, CDA_before - CDA_after) + 100) / 2,  all in percent

Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023, and the
defenses of quantization-conditioned backdoors after it. *Before* is the same float model under nearest rounding: what
deployment without a defense gives. 50 means no effect, 100 a perfect defense.
"""

from __future__ import annotations

from quantinel.bench.rows import ResultRow


def defense_effectiveness(before: ResultRow, after: ResultRow) -> float | None:
    """DER in percent.

    Args:
        before: of nearest rounding.
        after: of the same model, scheme and seed, defended.

    Returns:
        None where it means nothing: no attack, an attack that made no victim, or a figure that is missing.
    """
    if "none" in (before.attack, after.attack) or before.status != "ok" or after.status != "ok":
        return None
    if before.asr is None or after.asr is None or before.cda is None or after.cda is None:
        return None
    return (max(0.0, before.asr - after.asr) - max(0.0, before.cda - after.cda) + 100.0) / 2.0
