"""Outputs appear whole or not at all, and nothing that existed is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quantinel.errors import OutputError, UsageError
from quantinel.files import atomic_directory, check_file, check_output, write_file


def test_a_failure_removes_everything_it_created(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_directory(tmp_path / "new" / "deep" / "out") as folder:
            (folder / "half").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing_rename", [1, 2])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_an_interrupted_replacement_keeps_the_old_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing_rename: int, failure: BaseException
) -> None:
    target = tmp_path / "out"
    with atomic_directory(target) as folder:
        (folder / "content").write_text("old")
    real, calls = os.rename, []

    def rename(source: Path, destination: Path) -> None:
        calls.append(source)
        if len(calls) == failing_rename:
            raise failure
        real(source, destination)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises((KeyboardInterrupt, OutputError)), atomic_directory(target, overwrite=True) as folder:
        (folder / "content").write_text("new")
    assert (target / "content").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_replacement_and_refusal(tmp_path: Path) -> None:
    target = tmp_path / "out"
    for text in ("old", "new"):
        with atomic_directory(target, overwrite=True) as folder:
            (folder / "content").write_text(text)
    assert (target / "content").read_text() == "new"
    with pytest.raises(UsageError, match="exists"), atomic_directory(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OutputError, match="disk is full"):
        write_file(tmp_path / "file", b"data")
    assert list(tmp_path.iterdir()) == []


def test_an_output_is_checked_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("mine", "utf-8")
    check_file(tmp_path / "file")
    check_file(tmp_path / "new" / "deep" / "report.html")
    check_output(tmp_path / "new" / "deep", overwrite=False)
    with pytest.raises(UsageError, match="is a folder; give the name of a file"):
        check_file(tmp_path)
    with pytest.raises(OutputError, match="file is no folder"):
        check_file(tmp_path / "file" / "deep" / "report.html")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="no permission in"):
        check_file(tmp_path / "new" / "report.html")
    with pytest.raises(OutputError, match="no permission in"):
        check_output(tmp_path / "new", overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
