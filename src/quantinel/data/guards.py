"""What every reader checks before it trusts a file."""

from __future__ import annotations

import importlib
import stat
from pathlib import Path
from typing import Any

from quantinel.errors import InputError, UsageError

MAX_BYTES = 16 * 2**30
"""No reader allocates more than this for the pixels of one set."""

_LONGEST = 300


def printable(text: object) -> str:
    """``text`` on one line: file names and error messages of other libraries may hold control characters."""
    joined = " ".join(str(text).split())
    joined = joined if len(joined) <= _LONGEST else f"{joined[:_LONGEST]}..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in joined)


def reason(error: BaseException | None) -> str:
    """What an error of another library says, short and on one line."""
    return printable(getattr(error, "strerror", None) or error)[:200] or type(error).__name__


def require_file(path: Path) -> None:
    """Refuse what is not a regular file: reading a FIFO waits forever, a device may never end.

    Raises:
        InputError: missing, unreachable, or no regular file (symbolic links are followed).
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(f"{printable(path)} cannot be read ({reason(error)}); check the path") from error
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a FIFO, a socket or a device"
        raise InputError(f"{printable(path)} is {kind}, not a regular file; give a file")


def require_bytes(count: int, where: str) -> None:
    """Refuse an allocation above `MAX_BYTES`.

    Raises:
        InputError: ``count`` bytes are too many.
    """
    if count > MAX_BYTES:
        raise InputError(
            f"{where}: the pixels take {count / 2**30:.1f} GiB, more than the limit of "
            f"{MAX_BYTES // 2**30} GiB; take fewer images (a limit) or smaller ones"
        )


def import_optional(module: str, purpose: str, install: str) -> Any:
    """Import a package that is not a dependency.

    Args:
        module: what to import.
        purpose: what needs it, as the start of the message.
        install: what to give to pip.

    Raises:
        UsageError: the package is missing or broken.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a build for another torch fails with RuntimeError or OSError
        package = module.partition(".")[0]
        raise UsageError(f"{purpose} needs {package} ({reason(error)}); run: pip install '{install}'") from error
