"""What a result depends on besides its configuration: the code that makes it and the files it reads.

The code of a stage is everything its modules import from this package, directly or not. It is hashed as parsed
syntax without docstrings, so that comments and wording change nothing. Registries (the ``__init__`` of attacks,
defenses and detectors) are not followed: they import every method, and a change of one method must not recompute the
others.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from quantinel.bench.images import SYNTHETIC
from quantinel.data.bundled import bundled_images
from quantinel.errors import InputError
from quantinel.files import sha256_file, write_file
from quantinel.plugins import source_of

_PACKAGE = Path(__file__).parent.parent
_REGISTRIES = frozenset({"quantinel", "quantinel.attacks", "quantinel.defenses", "quantinel.detectors"})


@functools.cache
def code_fingerprint(modules: tuple[str, ...]) -> str:
    """Hash of the source of ``modules`` and of all that they import from this package (16 hex digits)."""
    seen: dict[str, str] = {}
    pending = list(modules)
    while pending:
        module = pending.pop()
        if module in seen or module in _REGISTRIES:
            continue
        seen[module], imports = _parsed(module)
        pending += imports
    text = "".join(f"{name}:{seen[name]};" for name in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@functools.cache
def _parsed(module: str) -> tuple[str, tuple[str, ...]]:
    """Hash of one module's syntax, and the modules of this package that it imports."""
    tree = ast.parse(_source_of(module))
    imports = tuple(dict.fromkeys(_imports(tree)))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Pass()
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _is_docstring(statement: ast.AST) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("quantinel"))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("quantinel"):
            assert node.module is not None
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if _path_of(inner) is not None else node.module


def _path_of(module: str) -> Path | None:
    place = _PACKAGE.joinpath(*module.split(".")[1:])
    return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)


def _source_of(module: str) -> str:
    """Text of a module of this package, or of a plugin."""
    path = _path_of(module) if module.split(".")[0] == "quantinel" else None
    source = source_of(module) if path is None else path.read_text("utf-8")
    if source is None:
        raise InputError(f"the source of module {module} is not there; results cannot be told apart without it")
    return source


class FileFingerprints:
    """Hashes of files and folders, remembered by size and time of change.

    One object looks at every path once: a run sees the data as they were when it first needed them.

    Args:
        memo: JSON file that keeps them between runs.
    """

    def __init__(self, memo: Path) -> None:
        self._path = memo
        self._known: dict[str, list[object]] = _read_memo(memo)
        self._changed = False
        self._seen: dict[Path, str] = {}

    def of_path(self, path: Path) -> str:
        """Hash of a file, or of all files of a folder with their names.

        Raises:
            InputError: there is nothing, or it cannot be read.
        """
        if path not in self._seen:
            try:
                self._seen[path] = self._look(path)
            except OSError as error:
                raise InputError(f"{path} cannot be read ({error.strerror}); check its permissions") from error
        return self._seen[path]

    def _look(self, path: Path) -> str:
        if path.is_file():
            return self._of_file(path)
        if not path.is_dir():
            raise InputError(f"{path} does not exist; check the suite and --data-root")
        files = sorted(item for item in path.rglob("*") if item.is_file())
        parts = (f"{item.relative_to(path)}:{self._of_file(item)};" for item in files)
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def of_data(self, specification: str) -> str:
        """Hash of the images that a data specification names; libraries' data sets and made images count by name."""
        prefix, _, rest = specification.partition(":")
        if prefix == "bundled":
            return self.of_path(bundled_images(f"bundled:{rest or 'test'}"))
        if prefix in ("hf", "torchvision") or specification == SYNTHETIC:
            return specification
        return self.of_path(Path(rest if prefix in ("cifar10", "gtsrb") else specification).expanduser())

    def _of_file(self, path: Path) -> str:
        state = path.stat()
        known = self._known.get(str(path.resolve()))
        if known is not None and known[:2] == [state.st_size, state.st_mtime_ns]:
            return str(known[2])
        digest = sha256_file(path)
        self._known[str(path.resolve())] = [state.st_size, state.st_mtime_ns, digest]
        self._changed = True
        return digest

    def save(self) -> None:
        """Write the memo if something was hashed."""
        if self._changed:
            write_file(self._path, json.dumps(self._known, sort_keys=True).encode())
            self._changed = False


def _read_memo(memo: Path) -> dict[str, list[object]]:
    """The memo; empty where it is missing or damaged."""
    try:
        known = json.loads(memo.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {path: entry for path, entry in entries if isinstance(entry, list) and len(entry) == 3}


def folder_digest(files: Iterable[tuple[str, str]]) -> str:
    """Hash of (name, sha256) pairs: what downstream stages depend on."""
    return hashlib.sha256("".join(f"{name}:{digest};" for name, digest in sorted(files)).encode()).hexdigest()
