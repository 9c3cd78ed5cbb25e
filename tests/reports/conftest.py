"""The sample reports as fixtures."""

from __future__ import annotations

import pytest
import sample_report

from quantinel.audit.report import Report


@pytest.fixture
def full_report() -> Report:
    return sample_report.full()


@pytest.fixture
def minimal_report() -> Report:
    return sample_report.minimal()


@pytest.fixture
def unlabelled_report() -> Report:
    return sample_report.unlabelled()


@pytest.fixture
def hostile_report() -> Report:
    return sample_report.hostile()


@pytest.fixture(params=["full", "minimal", "unlabelled", "hostile"])
def any_report(request: pytest.FixtureRequest) -> Report:
    return getattr(sample_report, request.param)()  # type: ignore[no-any-return]
