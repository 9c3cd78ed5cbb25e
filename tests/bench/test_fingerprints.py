from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from quantinel.attacks import ATTACKS
from quantinel.bench import fingerprints
from quantinel.bench.fingerprints import FileFingerprints, code_fingerprint, folder_digest
from quantinel.bench.nodes import STAGES
from quantinel.defenses import DEFENSES
from quantinel.errors import InputError

Write = Callable[[str, str], None]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """A package in the place of quantinel: ``stage`` uses ``deep.tool`` and the registry of attacks."""
    monkeypatch.setattr(fingerprints, "_PACKAGE", tmp_path)

    def write(name: str, text: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
        code_fingerprint.cache_clear()
        fingerprints._parsed.cache_clear()

    write("stage.py", "from quantinel.deep import tool\nfrom quantinel.attacks import ATTACKS\nx = 1\n")
    write("deep/__init__.py", "")
    write("deep/tool.py", '"""Says this."""\ndef f(a):\n    """And that."""\n    return a  # why\n')
    write("attacks/__init__.py", "from quantinel.attacks import one, two\n")
    write("attacks/one.py", "y = 1\n")
    write("attacks/two.py", "y = 1\n")
    yield write  # type: ignore[misc]
    code_fingerprint.cache_clear()
    fingerprints._parsed.cache_clear()


def now(*methods: str) -> str:
    return code_fingerprint(("quantinel.stage", *methods))


def test_wording_changes_nothing(package: Write) -> None:
    before = now()
    package("deep/tool.py", '"""Other words."""\n\n\ndef f( a ):\n    "Shorter."\n    # a remark\n    return (a)\n')
    assert now() == before


def test_code_counts_wherever_it_is(package: Write) -> None:
    before = now()
    package("deep/tool.py", "def f(a):\n    return -a\n")
    changed = now()
    assert changed != before
    package("stage.py", "from quantinel.deep.tool import f\nfrom quantinel.attacks import ATTACKS\nx = 2\n")
    assert now() not in (before, changed)


def test_a_method_changes_its_own_cells_only(package: Write) -> None:
    one, two, none = "quantinel.attacks.one", "quantinel.attacks.two", now()
    before = now(one), now(two)
    package("attacks/two.py", "y = 2\n")
    package("attacks/three.py", "y = 2\n")
    package("attacks/__init__.py", "from quantinel.attacks import one, two, three\n")
    assert now(one) == before[0]
    assert now() == none
    assert now(two) != before[1]


def test_a_module_without_source_is_an_error(package: Write) -> None:
    with pytest.raises(InputError, match="no_such_module"):
        code_fingerprint(("no_such_module",))
    with pytest.raises(InputError, match=r"quantinel\.gone"):
        code_fingerprint(("quantinel.gone",))


def reached(*modules: str) -> set[str]:
    """All modules of this package behind some."""
    seen: set[str] = set()
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module not in seen and module not in fingerprints._REGISTRIES:
            seen.add(module)
            pending += fingerprints._parsed(module)[1]
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_stages_do_not_depend_on_the_machinery_or_on_methods(stage: str) -> None:
    """Otherwise a change of the store, the rows or one method would compute everything anew."""
    found = reached(f"quantinel.bench.stages.{stage}")
    machinery = {
        f"quantinel.bench.{name}" for name in ("rows", "row_file", "store", "schedule", "runner", "plan", "cells")
    }
    assert not found & machinery
    methods = {attack.config.__module__ for attack in ATTACKS.values()} | {
        d.build.__module__ for d in DEFENSES.values()
    }
    assert found & methods <= ({"quantinel.attacks.clean"} if stage == "train" else set())
    assert not any(name.startswith(("quantinel.cli", "quantinel.reports")) for name in found)


def test_a_memo_saves_the_hashing_until_size_or_time_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, memo = tmp_path / "data", tmp_path / "memo.json"
    (data / "sub").mkdir(parents=True)
    (data / "a").write_bytes(b"1234")
    (data / "sub" / "b").write_bytes(b"5678")
    hashed: list[str] = []
    real = fingerprints.sha256_file
    monkeypatch.setattr(fingerprints, "sha256_file", lambda path: hashed.append(path.name) or real(path))

    def look() -> tuple[str, list[str]]:
        hashed.clear()
        found = FileFingerprints(memo)
        value = found.of_path(data)
        found.save()
        return value, list(hashed)

    first, names = look()
    assert names == ["a", "b"]
    assert look() == (first, [])
    (data / "a").write_bytes(b"12345")
    second, names = look()
    assert second != first
    assert names == ["a"]
    state = (data / "a").stat()
    (data / "a").write_bytes(b"12346")
    os.utime(data / "a", ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    assert look()[0] not in (first, second)
    (data / "sub" / "b").rename(data / "sub" / "c")
    assert look()[0] not in (first, second)
    for damaged in ("", "[]", '{"x": 1}', json.dumps({str((data / "a").resolve()): ["?"]})):
        memo.write_text(damaged)
        assert look()[1] == ["a", "c"]


def test_one_run_sees_the_data_as_they_were_first(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    files = FileFingerprints(tmp_path / "memo.json")
    before = files.of_path(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"22")
    assert files.of_path(tmp_path / "a") == before


def test_data_are_known_by_content_and_not_by_place(tmp_path: Path) -> None:
    files = FileFingerprints(tmp_path / "memo.json")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_bytes(b"same")
    assert files.of_data(f"cifar10:{tmp_path / 'one'}") == files.of_data(str(tmp_path / "two"))
    assert files.of_data("bundled:test") != files.of_data("bundled:calibration")
    assert files.of_data("bundled") == files.of_data("bundled:test")
    assert files.of_data("hf:a/b") == "hf:a/b"
    with pytest.raises(InputError, match="does not exist; check the suite and --data-root"):
        files.of_data(str(tmp_path / "three"))


def test_a_folder_is_its_names_and_contents() -> None:
    assert folder_digest([("a", "1"), ("b", "2")]) == folder_digest([("b", "2"), ("a", "1")])
    assert folder_digest([("a", "1"), ("b", "2")]) != folder_digest([("a", "2"), ("b", "1")])
