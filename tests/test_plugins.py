"""Plugins: the files of docs/add-a-method.md load, and a mistake is named with its file and line."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantinel import plugins
from quantinel.attacks import ATTACKS
from quantinel.bench.cells import expand
from quantinel.bench.commands import command
from quantinel.bench.suite_files import load_suite
from quantinel.defenses import (
    DEFENSES,
    PRUNING_DEFENSES,
    REPAIRS,
    Defense,
    PruningDefense,
    Repair,
    register,
    register_pruning,
    register_repair,
)
from quantinel.detectors import DETECTORS
from quantinel.errors import InputError, UsageError
from quantinel.plugins import load_plugin, loaded, place_in_plugin

PAGE = Path(__file__).parent.parent / "docs" / "add-a-method.md"


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is gone after it."""
    monkeypatch.setattr(plugins, "_loaded", {})
    kept = [(registry, dict(registry)) for registry in (ATTACKS, DEFENSES, REPAIRS, DETECTORS)]
    yield
    for registry, before in kept:
        registry.clear()
        registry.update(before)  # type: ignore[arg-type]
    for name in [name for name in sys.modules if name.startswith("quantinel_plugin_")]:
        del sys.modules[name]


@pytest.fixture
def pasted(tmp_path: Path) -> Path:
    """The page's files, in a folder."""
    for name, body in re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        (tmp_path / name).write_text(body, "utf-8")
    return tmp_path


def test_the_page_can_be_pasted(pasted: Path) -> None:
    for name in ("dice", "last_layer", "uniformity", "loud"):
        load_plugin(pasted / f"{name}.py")
    assert REPAIRS["last-layer"].build().through == "float"
    cells = expand(load_suite(pasted / "my_suite.toml"))
    assert {"victim/none/int8/dice-1/s0", "victim/none/int8/uniformity/s0", "victim/loud-short/int8/nearest/s0"} <= {
        cell.id for cell in cells
    }


def test_a_suite_of_a_plugin_that_was_not_given(pasted: Path) -> None:
    with pytest.raises(UsageError, match=r"unknown attack 'loud'; .*with --plugin before the verb"):
        expand(load_suite(pasted / "my_suite.toml"))


def test_the_command_names_the_file_as_it_is_called(pasted: Path) -> None:
    (pasted / "dice.py").rename(pasted / "my-dice.py")
    for name in ("my-dice", "uniformity", "loud"):
        load_plugin(pasted / f"{name}.py")
    assert command(load_suite(pasted / "my_suite.toml"), "run").startswith("quantinel --plugin my-dice.py ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ndef f(:\n", r"the plugin my-own.py fails: SyntaxError: .*\(my-own.py, line 2\)"),
        ("import sys\n\nraise ValueError('no')\n", r"the plugin my-own.py, line 3, fails: ValueError: no"),
        ("import not_there_at_all\n", "the plugin my-own.py, line 1, fails: ModuleNotFoundError"),
    ],
)
def test_a_failure_is_named_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "my-own.py"
    path.write_text(text, "utf-8")
    with pytest.raises(InputError, match=message):
        load_plugin(path)
    assert loaded() == ()


def test_names_that_are_taken_and_needs_that_do_not_exist(pasted: Path) -> None:
    text = (pasted / "dice.py").read_text("utf-8")
    (pasted / "taken.py").write_text(text.replace('"dice"', '"efrap"'), "utf-8")
    with pytest.raises(UsageError, match=r"the plugin taken.py: there is a defense called 'efrap' already"):
        load_plugin(pasted / "taken.py")
    (pasted / "needy.py").write_text(text.replace('= "weights"', '= "weigths"'), "utf-8")
    with pytest.raises(UsageError, match=r"the plugin needy.py: dice needs 'weigths'; write one of weights, "):
        load_plugin(pasted / "needy.py")


def test_kinds_of_defenses_share_their_names() -> None:
    with pytest.raises(UsageError, match="there is a defense called 'nad' already; choose another name"):
        register(Defense("nad", "a rounding under a repair's name", DEFENSES["nearest"].build))
    for taken in ("efrap", "shifted-pruning"):
        with pytest.raises(UsageError, match=f"there is a defense called '{taken}' already"):
            register_repair(Repair(taken, "a repair under another's name", REPAIRS["ft"].build))
    with pytest.raises(UsageError, match="there is a defense called 'ft' already"):
        register_pruning(PruningDefense("ft", "pruning", PRUNING_DEFENSES["shifted-pruning"].build))


def test_two_files_of_one_name(pasted: Path, tmp_path: Path) -> None:
    load_plugin(pasted / "dice.py")
    load_plugin(pasted / "dice.py")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "dice.py").write_text("x = 1\n", "utf-8")
    with pytest.raises(UsageError, match="two plugins are called dice; rename one file"):
        load_plugin(tmp_path / "other" / "dice.py")


def test_the_place_of_an_error_in_a_method(pasted: Path) -> None:
    path = pasted / "dice.py"
    path.write_text(path.read_text("utf-8").replace("problem.cell.ceil, ", "problem.ceil, "), "utf-8")
    load_plugin(path)
    line = next(n for n, text in enumerate(path.read_text("utf-8").splitlines(), 1) if "steps = " in text)
    with pytest.raises(AttributeError) as caught:
        DEFENSES["dice"].build().choose(object())  # type: ignore[arg-type]
    assert place_in_plugin(caught.value) == f"dice.py, line {line},"
    assert place_in_plugin(ValueError("elsewhere")) is None
