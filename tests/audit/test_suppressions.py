"""The suppression file: strict, small, and without a way round a check that did not run."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from quantinel.audit.suppressions import load_suppressions
from quantinel.errors import InputError

GOOD = """
[[suppress]]
rule = "QCB003"
statement = "Trained with fake quantization by ourselves."
expires = 2030-01-31
target = "int8"
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "accepted.toml"
    path.write_text(GOOD, "utf-8")
    (entry,) = load_suppressions(path)
    assert (entry.rule, entry.target, entry.model) == ("QCB003", "int8", None)
    assert entry.expires == datetime.date(2030, 1, 31)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("QCB003", "QCB007"), "what could not be judged cannot be suppressed"),
        (GOOD.replace("QCB003", "QCB999"), "QCB999 is no rule; choose one of QCB001"),
        (GOOD.replace("expires = 2030-01-31\n", ""), "expires: Field required"),
        (GOOD.replace("2030-01-31", '"soon"'), "expires"),
        (GOOD.replace("Trained with fake quantization by ourselves.", "ok"), "statement: .*at least 10"),
        (GOOD + 'model = "abc"', "model"),
        (GOOD + 'colour = "red"', "Extra inputs"),
        ("suppress = 1", "list"),
        ("", "suppress: Field required"),
        ("[[suppress", "is no TOML file"),
    ],
)
def test_bad_files_are_refused_with_their_place(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "accepted.toml"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=words):
        load_suppressions(path)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_suppressions(tmp_path / "missing.toml")
    path = tmp_path / "binary.toml"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="no TOML file"):
        load_suppressions(path)
    path.write_bytes(b"#" * (2 << 20))
    with pytest.raises(InputError, match="larger than"):
        load_suppressions(path)
