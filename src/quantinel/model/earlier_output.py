"""Which files of a folder an earlier run wrote: those may be replaced, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from quantinel.errors import InputError, UsageError
from quantinel.model.archive_text import shown

_HARDENED = "manifest.json"
_VICTIM_FILES = frozenset([
    "victim.json", "model.safetensors", "trigger.safetensors", "poisoned/train.npz", "poisoned/poisoned.npz",
    "poisoned/poisoned.json", "poisoned/trigger.json", "poisoned/trigger.safetensors",
])  # fmt: skip
_NAMED = 3


def check_replaceable(folder: Path) -> None:
    """A folder is replaced only if it is empty, or an output of Quantinel that nothing was added to.

    Raises:
        UsageError: it holds other files.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_symlink() or not path.is_dir()]
    own = _written(folder)
    foreign = [name for name in (path.relative_to(folder).as_posix() for path in files) if name not in own]
    if foreign:
        more = f" and {len(foreign) - _NAMED} more" if len(foreign) > _NAMED else ""
        raise UsageError(
            f"{folder} holds files that Quantinel did not write ({', '.join(map(shown, foreign[:_NAMED]))}{more}), "
            "it is not replaced; move them, or choose another output"
        )


def _written(folder: Path) -> frozenset[str]:
    """Paths inside the folder that its manifest names, or that belong to every victim."""
    from quantinel.model.victim import MANIFEST_NAME, read_manifest

    try:
        manifest = json.loads((folder / _HARDENED).read_bytes())
        if manifest["format"] == "quantinel-manifest-1":
            return frozenset([_HARDENED, *manifest["outputs"]])
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        pass  # no hardened folder; it may be a victim
    if (folder / MANIFEST_NAME).is_file():
        try:
            read_manifest(folder)
        except InputError:
            return frozenset()
        return _VICTIM_FILES
    return frozenset()
