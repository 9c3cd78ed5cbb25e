"""Methods from files outside of the package: the code that the user names is run, and nothing else.

A plugin is one Python file that registers attacks, defenses or detectors (`quantinel.attacks.register` and so on). Its
source is kept, so that worker processes and other machines run the same text, and results know what made them.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType
from typing import TypeVar

from quantinel.errors import InputError, QuantinelError, UsageError

_PREFIX = "quantinel_plugin_"
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plugin:
    """A loaded file: its module's name, its text, and its own name without the folder."""

    module: str
    source: str
    file: str


_loaded: dict[str, Plugin] = {}


class _Loader(importlib.abc.InspectLoader):
    def __init__(self, plugin: Plugin) -> None:
        self._plugin = plugin

    def get_source(self, fullname: str) -> str:
        return self._plugin.source

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self._plugin.source, self._plugin.file)

    def is_package(self, fullname: str) -> bool:
        return False


def load_plugin(path: Path) -> None:
    """Run a plugin file.

    Raises:
        UsageError: another file of the same name was loaded.
        InputError: the file cannot be read, or fails.
    """
    try:
        source = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the plugin {path} cannot be read ({error}); give a Python file") from error
    restore([Plugin(_PREFIX + re.sub(r"\W", "_", path.stem), source, path.name)])


def loaded() -> tuple[Plugin, ...]:
    """All plugins of this process, in the order of loading."""
    return tuple(_loaded.values())


def restore(plugins: Iterable[Plugin]) -> None:
    """Run plugins that another process loaded; those that are there already are left alone.

    Raises:
        UsageError: a plugin of the same name with other text is there.
        InputError: one fails.
    """
    for plugin in plugins:
        if plugin.module in _loaded:
            if _loaded[plugin.module] != plugin:
                raise UsageError(f"two plugins are called {plugin.module.removeprefix(_PREFIX)}; rename one file")
            continue
        spec = ModuleSpec(plugin.module, _Loader(plugin), origin=plugin.file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[plugin.module] = module
        try:
            assert spec.loader is not None
            spec.loader.exec_module(module)
        except UsageError as error:
            del sys.modules[plugin.module]
            raise UsageError(f"the plugin {plugin.file}: {error}") from error
        except QuantinelError:
            del sys.modules[plugin.module]
            raise
        except Exception as error:  # any code, any failure
            del sys.modules[plugin.module]
            where = place_in_plugin(error) or plugin.file
            raise InputError(f"the plugin {where} fails: {type(error).__name__}: {error}") from error
        _loaded[plugin.module] = plugin


def place_in_plugin(error: BaseException) -> str | None:
    """File and line of the plugin code that raised ``error`` or called what did; None if none took part."""
    found = None
    for frame, line in traceback.walk_tb(error.__traceback__):
        module = frame.f_globals.get("__name__", "")
        if module.startswith(_PREFIX):
            found = f"{frame.f_code.co_filename}, line {line},"
    return found


def source_of(module: str) -> str | None:
    """Text of a plugin's module; None if there is none of that name."""
    plugin = _loaded.get(module)
    return None if plugin is None else plugin.source


def add(registry: dict[str, _T], name: str, method: _T, what: str) -> _T:
    """Register a method.

    Raises:
        UsageError: the name is taken.
    """
    if name in registry:
        raise UsageError(f"there is {what} called {name!r} already; choose another name")
    registry[name] = method
    return method
