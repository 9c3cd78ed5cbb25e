"""The catalogue of rules: complete, unambiguous, stable."""

from __future__ import annotations

import re

import pytest

from quantinel.audit.rules import ARTEFACT, BEHAVIOUR, COMBINED, LEVELS, RULES, Rule, at_least, rule_of
from quantinel.detectors import DETECTORS

STABLE = {
    "QCB001": "re-rounding",
    "QCB002": "trigger-probing",
    "QCB003": "weight-residuals",
    "QCB004": "pruning-divergence",
    "QCB005": ARTEFACT,
    "QCB006": BEHAVIOUR,
    "QCB009": "neural-cleanse",
    "QCB010": COMBINED,
}


def test_ids_keep_their_meaning() -> None:
    assert list(RULES) == [f"QCB{number:03}" for number in range(1, 11)]
    assert {rule: rule_of(detector).id for rule, detector in STABLE.items()} == {rule: rule for rule in STABLE}


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.id)
def test_every_rule_says_what_it_means_and_what_to_do(rule: Rule) -> None:
    assert re.fullmatch(r"QCB\d{3}", rule.id)
    assert 20 < len(rule.title) < 80
    assert len(rule.explanation) > 100
    assert len(rule.help) > 30
    assert set(rule.required) <= set(rule.detectors)


def test_no_detector_belongs_to_two_rules() -> None:
    named = [name for rule in RULES.values() for name in rule.detectors]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", DETECTORS)
def test_every_detector_of_this_package_has_a_rule(name: str) -> None:
    """Name a new detector under the rule of `quantinel.audit.rules` that it supports."""
    assert rule_of(name).id != "QCB008"


def test_others_report_under_a_rule_of_their_own() -> None:
    assert rule_of("somebody's plugin").id == "QCB008"


def test_levels_are_ordered() -> None:
    assert [[at_least(level, limit) for limit in LEVELS] for level in LEVELS] == [
        [True, False, False], [True, True, False], [True, True, True],
    ]  # fmt: skip
