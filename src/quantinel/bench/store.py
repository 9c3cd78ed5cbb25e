"""The content-addressed store of stage results: whole or absent, never half there.

``objects/STAGE/CONTENT/CODE`` holds the files of one result and ``stage.json`` (`Stored`). CONTENT is the hash of
configuration, sources and the digests of the inputs; CODE that of the source code. A stage that is run again after a
change of code therefore lies beside its earlier results, whose times serve as estimates. The digest of a result covers
its files except those whose names begin with an underscore (times, logs), so that a stage that gives the same files
again lets everything behind it stay cached.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from quantinel.bench.fingerprints import folder_digest
from quantinel.bench.rows import environment, sha256_of
from quantinel.errors import InputError, Interrupted
from quantinel.files import atomic_directory, output_errors, sha256_file

RECORD = "_stage.json"
LOG = "_log.txt"
_LOCK_SECONDS = 0.25


class Stored(BaseModel):
    """``_stage.json``: one finished stage.

    Attributes:
        stage: train, attack, compress, defend, evaluate, detect.
        label: for people.
        config, sources, inputs: everything that decided the result (sources and inputs by digest).
        code: fingerprint of the code.
        status: "gate_failed" for an attack that made no victim; its weights are there all the same.
        error: why.
        seconds: wall time of the stage.
        digest: of the files.
        files: name -> (bytes, sha256).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str
    label: str
    config: dict[str, Any]
    sources: dict[str, str]
    inputs: dict[str, str]
    code: str
    status: Literal["ok", "gate_failed"]
    error: str | None
    seconds: float
    digest: str
    files: dict[str, tuple[int, str]]
    environment: dict[str, Any]


@dataclass(frozen=True)
class Address:
    """Where the result of a stage lies: decided by what goes in, before anything runs."""

    stage: str
    content: str
    code: str

    @property
    def key(self) -> str:
        """Content and code in one."""
        return sha256_of([self.stage, self.content, self.code])[:32]

    @property
    def relative(self) -> Path:
        """Folder within the store."""
        return Path("objects", self.stage, self.content, self.code)


def address(stage: str, config: dict[str, Any], sources: dict[str, str], inputs: dict[str, str], code: str) -> Address:
    """The address of a stage's result.

    Args:
        stage: its name.
        config: everything in the suite that decides the result.
        sources: fingerprints of external files and data, by role.
        inputs: digests of upstream results, by role.
        code: fingerprint of the code.
    """
    return Address(stage, sha256_of({"config": config, "sources": sources, "inputs": inputs})[:32], code)


class Store:
    """A folder of stage results that several processes may use at once.

    Args:
        root: created when the first result is stored.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, where: Address) -> Path:
        """Where the result lies, or would lie."""
        return self.root / where.relative

    def find(self, where: Address) -> Stored | None:
        """The result at an address; None where there is none or where files are missing."""
        return read_stored(self.folder(where))

    def siblings(self, where: Address) -> list[tuple[Path, Stored]]:
        """Results of the same content made by any code, newest first."""
        place = self.folder(where).parent
        found = [(path, stored) for path in place.glob("[!.]*") if (stored := read_stored(path)) is not None]
        return sorted(found, key=lambda item: str(item[1].environment.get("created", "")), reverse=True)

    def checkpoint(self, where: Address) -> Path:
        """Folder for what a long stage keeps to go on after an interruption."""
        return self.root / "partial" / where.key

    def lock_file(self, key: str) -> Path:
        """The file that is locked while the stage with this key is computed."""
        return self.root / "locks" / key

    @contextlib.contextmanager
    def lock(self, where: Address, should_stop: Callable[[], bool] | None = None) -> Iterator[None]:
        """Hold a result's lock: of several processes that want it, one computes it. Ends with the process.

        Raises:
            Interrupted: ``should_stop`` asked for it while another process held the lock.
        """
        path = self.lock_file(where.key)
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        while True:
            try:
                lock.acquire(timeout=_LOCK_SECONDS)
                break
            except Timeout:
                if should_stop is not None and should_stop():
                    raise Interrupted("stopped while another run computed this stage") from None
        try:
            yield
        finally:
            lock.release()

    @contextlib.contextmanager
    def write(self, where: Address) -> Iterator[Path]:
        """A folder to write a result into; it appears at its address when the block ends without an error.

        The caller holds the result's lock, so whatever earlier writers left here belongs to nobody.
        """
        target = self.folder(where)
        with output_errors(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        for left in (*target.parent.glob(f".{target.name}.partial-*"), *target.parent.glob(f".{target.name}.old-*")):
            shutil.rmtree(left, ignore_errors=True)
        with atomic_directory(target, overwrite=True) as folder:
            yield folder
        shutil.rmtree(self.checkpoint(where), ignore_errors=True)

    def all(self) -> Iterator[tuple[Path, Stored]]:
        """Every result in the store."""
        for path in sorted(self.root.glob(f"objects/*/*/[!.]*/{RECORD}")):
            stored = read_stored(path.parent)
            if stored is not None:
                yield path.parent, stored


def describe_files(folder: Path) -> tuple[dict[str, tuple[int, str]], str]:
    """Size and hash of every file, and the digest over those that count."""
    files = {
        str(path.relative_to(folder)): (path.stat().st_size, sha256_file(path))
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != RECORD
    }
    counted = ((name, digest) for name, (_, digest) in files.items() if not Path(name).name.startswith("_"))
    return files, folder_digest(counted)


def write_stored(
    folder: Path,
    where: Address,
    label: str,
    config: dict[str, Any],
    sources: dict[str, str],
    inputs: dict[str, str],
    status: Literal["ok", "gate_failed"],
    error: str | None,
    seconds: float,
    device: str = "cpu",
) -> Stored:
    """Describe a finished result in its folder; ``device`` is what it was computed on, "cpu" or the GPU's name."""
    files, digest = describe_files(folder)
    stored = Stored(
        stage=where.stage, label=label, config=config, sources=sources, inputs=inputs, code=where.code, status=status,
        error=error, seconds=round(seconds, 3), digest=digest, files=files,
        environment={**environment(), "device": device},
    )  # fmt: skip
    (folder / RECORD).write_text(stored.model_dump_json(indent=1) + "\n", "utf-8")
    return stored


def read_stored(folder: Path) -> Stored | None:
    """The description of a result; None where it is missing or its files are not those that it describes."""
    try:
        stored = Stored.model_validate_json((folder / RECORD).read_bytes())
        sizes = {name: (folder / name).stat().st_size for name in stored.files}
    except (OSError, ValidationError):
        return None
    return stored if all(sizes[name] == size for name, (size, _) in stored.files.items()) else None


def check_stored(folder: Path) -> Stored:
    """Read a result and compare every file with its hash.

    Raises:
        InputError: missing or changed.
    """
    stored = read_stored(folder)
    if stored is None:
        raise InputError(f"{folder} holds no complete result; compute it again")
    for name, (_, digest) in stored.files.items():
        if sha256_file(folder / name) != digest:
            raise InputError(f"{folder / name} was changed; remove the folder and compute it again")
    return stored


def read_json(path: Path) -> Any:
    """A JSON file of a result."""
    return json.loads(path.read_text("utf-8"))
