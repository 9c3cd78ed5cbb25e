"""The built-in check of a scan that takes three detectors of rounding errors together.

Each looks for another sign that nearest rounding is no rounding like others: answers on clean images, on triggers of
known kinds, and on a trigger that is searched. What trains a victim to be quiet on one of them seldom keeps it quiet on
all, and three figures that are each a little unusual are together more so (Fisher, "Statistical Methods for Research
Workers", 1925, 21.1).

Fisher's method supposes independent p-values. These share the model, its rounding errors and its images, and the first
two their control copies as well: both draw the same signs from the same seed, and exaggerate the errors by different
factors. Among harmless models the first two correlate, and the first is conservative. What that comes to is measured on
harmless models like every threshold (`benchmarks/calibrate_scan.py`).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from quantinel.detectors.controls import surprise
from quantinel.detectors.significance import combined
from quantinel.detectors.subject import Detection
from quantinel.errors import NotAssessable

PARTS = ("re-rounding", "trigger-probing", "trigger-inversion")
"""The detectors whose p-values are combined."""


def combination(found: Mapping[str, Detection]) -> Detection:
    """Fisher's combination of the parts.

    Args:
        found: what the parts found, by name; others are left alone.

    Returns:
        The combined p-value and, as score, its -log10. The suspected class is the one that most parts name, and of
        several such the one whose part is least usual.

    Raises:
        NotAssessable: a part did not run, or gave no p-value.
    """
    p_values = {}
    for name in PARTS:
        value = found[name].p_value if name in found else None
        if value is None or not math.isfinite(value):
            raise NotAssessable(f"it combines the p-values of {', '.join(PARTS)}; there is none of {name}")
        p_values[name] = value
    together = combined(list(p_values.values()))
    return Detection(
        score=surprise(together),
        statistics={f"p_value of {name}": value for name, value in p_values.items()},
        p_value=together,
        suspect_class=_suspect(found, p_values),
        remarks=tuple(dict.fromkeys(said for name in PARTS for said in found[name].remarks)),
        notes=tuple(dict.fromkeys(note for name in PARTS for note in found[name].notes)),
    )


def _suspect(found: Mapping[str, Detection], p_values: Mapping[str, float]) -> int | None:
    """The class that most parts name; ties go to the smallest p-value."""
    named = [found[name].suspect_class for name in sorted(PARTS, key=p_values.__getitem__)]
    votes = Counter(index for index in named if index is not None)
    return votes.most_common(1)[0][0] if votes else None
