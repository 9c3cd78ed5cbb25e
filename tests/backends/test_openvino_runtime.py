"""Without the optional package, OpenVINO is refused in one line that says what to install."""

from __future__ import annotations

import sys

import pytest

from quantinel.backends.openvino_runtime import OpenVINOSession
from quantinel.errors import UsageError


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"pip install 'quantinel\[openvino\]'"):
        OpenVINOSession(b"")
