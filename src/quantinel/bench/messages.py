"""What goes to a worker and comes back: plain data, without the libraries that compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from quantinel.bench.images import Images
from quantinel.bench.store import Address
from quantinel.plugins import Plugin

Outcome = Literal["ok", "gate_failed", "failed", "interrupted"]


@dataclass(frozen=True)
class Request:
    """A stage with its address: everything that a worker needs, and nothing that it shares with the sender.

    Attributes:
        where: address of the result.
        label: for people.
        config: options of the node, ``threads`` among them.
        folders: role -> upstream result, or external model, on the worker's disk.
        images: role -> images to load.
        sources: role -> fingerprint of external files and images.
        inputs: role -> digest of upstream results.
        store: root of the store.
        device: of this stage.
        modules: whose code the address names; the worker must have the same.
        plugins: files of methods that the worker has to load first.
    """

    where: Address
    label: str
    config: dict[str, Any]
    folders: dict[str, str]
    images: dict[str, Images]
    sources: dict[str, str]
    inputs: dict[str, str]
    store: str
    device: str = "cpu"
    modules: tuple[str, ...] = ()
    plugins: tuple[Plugin, ...] = ()


@dataclass(frozen=True)
class Finished:
    """How a stage ended.

    Attributes:
        outcome: "failed" leaves nothing in the store but a log.
        error: one line.
        seconds: wall time.
        log: text of the log of a failure.
    """

    outcome: Outcome
    error: str | None = None
    seconds: float = 0.0
    log: str | None = None
