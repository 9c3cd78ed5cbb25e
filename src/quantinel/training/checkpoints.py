"""The state of an unfinished run in one safetensors file: numbers only, written whole or not at all.

The file holds the running phase (weights, optimiser, randomness, order of the images) and, for every finished
phase, the weights and the randomness that it ended with. So a run that is repeated skips what is finished, finds
the network as that phase left it, and goes on in the middle of the running phase.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
from torch import Tensor

from quantinel.errors import InputError, UsageError
from quantinel.files import write_file

_FORMAT = "quantinel-checkpoint-1"
State = dict[str, Tensor]


@dataclass
class Checkpoint:
    """The state of one run.

    Attributes:
        path: its file; None keeps nothing.
        identity: hash of everything that decides the result.
        finished: by phase, the state that it ended with.
        phase: the phase that was interrupted; "" for none.
        step: steps done in it.
        state: its state.
    """

    path: Path | None
    identity: str
    finished: dict[str, State] = field(default_factory=dict)
    phase: str = ""
    step: int = 0
    state: State = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path | None, identity: str) -> Checkpoint:
        """Read the file, or begin a new one where there is none.

        Raises:
            UsageError: it belongs to a run with other options, data or weights.
            InputError: it is damaged.
        """
        checkpoint = cls(path, identity)
        if path is None or not path.exists():
            return checkpoint
        try:
            with safetensors.safe_open(path, "pt") as stream:
                about = dict(stream.metadata() or {})
                tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            if about.get("format") != _FORMAT:
                raise ValueError("another format")
            checkpoint.phase, checkpoint.step = about["phase"], int(about["step"])
            checkpoint.finished = {name: {} for name in json.loads(about["finished"])}
        except Exception as error:  # the library raises its own errors, and a damaged header any
            raise InputError(f"the checkpoint {path} is damaged; delete it to begin anew") from error
        if about.get("identity") != identity:
            raise UsageError(
                f"the checkpoint {path} belongs to a run with other options, data, weights or device; repeat that run, "
                "or delete the file to begin anew"
            )
        for name, tensor in tensors.items():
            owner, _, rest = name.partition("|")
            (checkpoint.state if not owner else checkpoint.finished[owner])[rest] = tensor
        return checkpoint

    def keep(self, phase: str, step: int, state: State) -> None:
        """Remember the state after ``step`` steps of ``phase``, and write the file."""
        self.phase, self.step, self.state = phase, step, state
        self._write()

    def finish(self, phase: str, state: State) -> None:
        """Remember that ``phase`` ended with ``state``, and write the file."""
        self.finished[phase] = state
        self.phase, self.step, self.state = "", 0, {}
        self._write()

    def remove(self) -> None:
        """Delete the file: the run is over."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.path is None:
            return
        parts = {"": self.state, **self.finished}
        tensors = {
            f"{owner}|{name}": tensor.detach().cpu().contiguous()
            for owner, state in parts.items()
            for name, tensor in state.items()
        }
        about = {
            "format": _FORMAT,
            "identity": self.identity,
            "phase": self.phase,
            "step": str(self.step),
            "finished": json.dumps(list(self.finished)),
        }
        write_file(self.path, safetensors.torch.save(tensors, about))


def under(state: State, prefix: str) -> State:
    """The entries below ``prefix.``, without it."""
    return {name.removeprefix(f"{prefix}."): tensor for name, tensor in state.items() if name.startswith(f"{prefix}.")}
