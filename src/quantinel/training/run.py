"""The one training loop: every attack trains in phases of it.

An attack supplies a loss for a batch of images and labels, and optionally a projection that runs after each optimiser
step. The data set lies on the device as one tensor; batches are indexed from it, with no loader in between.

A `TrainingRun` is repeatable and resumable: all randomness comes from its own generator and from a fork of torch's
(for dropout), and both are part of the checkpoint. An interrupted and resumed run gives the bits of an uninterrupted
one on the same device with the same number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantinel.data.images import ImageSet, as_float
from quantinel.errors import GateError, Interrupted, UsageError
from quantinel.model.loading import LoadedModel
from quantinel.training.batches import Order
from quantinel.training.checkpoints import Checkpoint, State, under
from quantinel.training.mixed_precision import autocast
from quantinel.training.runtime import Runtime
from quantinel.training.schedule import Schedule

Loss = Callable[[Tensor, Tensor], Tensor]
"""``loss(images, labels)``: uint8 (B, C, H, W) and int64 (B,), on the device -> scalar."""

_STEPS_BETWEEN_LOSSES = 10
"""On a GPU the loss is read this often: reading it waits for the device."""


Scores = tuple[float, ...]
"""What a selection measured once."""


def highest(measured: Sequence[Scores]) -> list[int]:
    """The latest of the highest scores, alone: what came before it can never be chosen again."""
    return [max(range(len(measured)), key=lambda index: (measured[index], index))]


@dataclass(frozen=True)
class Selection:
    """Which weights of a phase are kept: those of the highest score, the latest among equals, or another rule's.

    Attributes:
        every: steps between two scores; the last step is always scored.
        score: measures the network as it is; must not change it, its mode or the run's randomness.
        rank: of all that is still kept, in the order of the steps, the indices that a later step could still make the
            choice, the present choice first. The others are forgotten.
    """

    every: int
    score: Callable[[], float | Scores]
    rank: Callable[[Sequence[Scores]], list[int]] = highest


class TrainingRun:
    """One network, its training data and its randomness.

    Args:
        model: the network to train; its module is moved to the device and changed.
        data: labelled training images.
        seed: of order, augmentation and dropout.
        runtime: device, checkpoint, stopping, progress.
        about: what else decides the result (name and options of the attack); a checkpoint of a run with another
            ``about``, data, seed or start is refused.

    Attributes:
        module: in channels-last memory, on the device.
        device: where it is.
        generator: source of all randomness outside of dropout.
        images, labels: the data on the device, uint8 (N, C, H, W) and int64 (N,).
        step: number of the running step in its phase, from 0, for losses that change with time.

    Raises:
        UsageError: unlabelled data, an unknown device, or the checkpoint of another run.
    """

    def __init__(
        self,
        model: LoadedModel,
        data: ImageSet,
        *,
        seed: int = 0,
        runtime: Runtime | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        if data.labels is None:
            raise UsageError("the attack trains on labels; give labelled data with --data and --test")
        self.model, self.seed, self.step = model, seed, 0
        self.runtime = Runtime() if runtime is None else runtime
        self.device = self.runtime.torch_device()
        self.checkpoint = Checkpoint(None, "")
        if self.runtime.checkpoint is not None:
            identity = _identity(model.module, data, seed, self.device, about or {})
            self.checkpoint = Checkpoint.open(self.runtime.checkpoint, identity)
        self.module: nn.Module = model.module.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images, self.labels = data.images.to(self.device), data.labels.to(self.device)
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._parts: dict[str, nn.Module] = {"model": self.module}

    def add(self, name: str, module: nn.Module) -> None:
        """Make another module part of the state: a trigger generator, learnable coefficients.

        It is moved to the device, saved and restored with the network, and not written to the victim. Call it at the
        start of the attack, with weights that depend on the seed only.
        """
        self._parts[name] = module.to(self.device)

    def weights(self) -> dict[str, nn.Parameter]:
        """The parameters that quantizers round: (O, I) and (O, I, ...), by name."""
        return {name: weight for name, weight in self.module.named_parameters() if weight.ndim in (2, 4)}

    def logits(self, *batches: Tensor, mixed_precision: bool = False) -> Tensor:
        """Logits (sum of N, K) float32 of float batches (N, C, H, W), run as one batch.

        Args:
            batches: images in [0, 1] on the device.
            mixed_precision: run in bfloat16, where the processor computes it. It blurs 8-bit cells: not for repairs.
        """
        batch = torch.cat(batches) if len(batches) > 1 else batches[0]
        with self.autocast(mixed_precision):
            logits: Tensor = self.module(batch.contiguous(memory_format=torch.channels_last))
        return logits.float()

    def autocast(self, enabled: bool) -> torch.autocast:
        """Context of bfloat16 autocast on this device, for losses that run the network themselves."""
        return autocast(self.device, enabled)

    @contextlib.contextmanager
    def isolated(self) -> Iterator[None]:
        """Train inside: a fork of torch's global randomness, seeded, and deterministic kernels without TF32.

        The global state is as before afterwards, and the module back on the CPU in evaluation mode.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), exact_kernels():
                torch.manual_seed(self.seed)
                yield
        finally:
            self.module.to("cpu").eval()

    def train(
        self,
        phase: str,
        parameters: Iterable[nn.Parameter],
        schedule: Schedule,
        loss: Loss,
        *,
        project: Callable[[], None] | None = None,
        selection: Selection | None = None,
    ) -> None:
        """Run one phase, or what is left of it.

        A phase that the checkpoint knows as finished is skipped: the network is as it was at its end. What an attack
        does between two phases is simply repeated, so it must depend on nothing but the network and the generator.

        Args:
            phase: name, once per run; ``progress`` receives it.
            parameters: what the optimiser may change.
            schedule: optimiser, steps, learning rate, batch size.
            loss: maps a batch to a scalar.
            project: called after each step without gradients, to return to the feasible set.
            selection: which weights to end with; None for the last ones.

        Raises:
            Interrupted: ``runtime.should_stop`` asked for it; the checkpoint is written.
            GateError: the loss is no longer finite.
        """
        if phase in self.checkpoint.finished:
            self._restore(self.checkpoint.finished[phase])
            return
        optimiser = schedule.build(parameters)
        order = Order.begin(len(self.images), self.generator)
        kept: list[State] = []  # of a selection, the choice first
        first = 0
        if phase == self.checkpoint.phase:
            first, state = self.checkpoint.step, self.checkpoint.state
            self._restore(state)
            _restore_optimiser(optimiser, under(state, "optimiser"))
            order.left, kept = state["order"].to(self.device), _numbered(under(state, "kept"))
        written, value = time.monotonic(), math.nan

        def keep(step: int) -> None:
            chosen = {f"kept.{i}.{name}": tensor for i, entry in enumerate(kept) for name, tensor in entry.items()}
            state = {**self._state(), **_optimiser_state(optimiser), "order": order.left, **chosen}
            self.checkpoint.keep(phase, step, state)

        for step in range(first, schedule.steps):
            self.step = step
            for group in optimiser.param_groups:
                group["lr"] = schedule.rate(step)
            chosen = order.take(schedule.batch_size)
            result = loss(self.images[chosen], self.labels[chosen])
            optimiser.zero_grad(set_to_none=True)
            result.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            if project is not None:
                with torch.no_grad():
                    project()
            done = step + 1
            if self.device.type == "cpu" or done % _STEPS_BETWEEN_LOSSES == 0 or done == schedule.steps:
                value = _finite(float(result.detach()), phase, done)
            if selection is not None and (done % selection.every == 0 or done == schedule.steps):
                kept = self._keep(kept, selection, done)
            if self.runtime.progress is not None:
                self.runtime.progress(phase, done, schedule.steps, value)
            if self.runtime.should_stop is not None and self.runtime.should_stop():
                keep(done)
                raise Interrupted(self._stopped(phase, done, schedule.steps))
            if self.checkpoint.path is not None and time.monotonic() - written >= self.runtime.checkpoint_seconds:
                keep(done)
                written = time.monotonic()
        if kept:
            self._load(kept[0])
        if self.checkpoint.path is not None:
            self.checkpoint.finish(phase, self._state())

    def _stopped(self, phase: str, done: int, steps: int) -> str:
        kept = "run the same command again to go on" if self.checkpoint.path else "no checkpoint was asked for"
        return f"stopped in phase {phase} after {done} of {steps} steps; {kept}"

    def _keep(self, kept: list[State], selection: Selection, step: int) -> list[State]:
        """Measure the network as it is, and forget what can no longer be chosen."""
        measured = selection.score()
        scores = torch.tensor(measured if isinstance(measured, tuple) else (measured,), dtype=torch.float64)
        new = {"step": torch.tensor(step), "scores": scores, **self._copy()}
        entries = sorted([*kept, new], key=lambda entry: int(entry["step"]))
        return [entries[i] for i in selection.rank([tuple(entry["scores"].tolist()) for entry in entries])]

    def _copy(self) -> State:
        """Weights of all parts."""
        return {
            f"{part}.{name}": tensor.detach().clone()
            for part, module in self._parts.items()
            for name, tensor in module.state_dict().items()
        }

    def _load(self, state: State) -> None:
        for part, module in self._parts.items():
            module.load_state_dict(under(state, part))

    def _state(self) -> State:
        """Weights and randomness."""
        state = self._copy()
        state |= {"generator": self.generator.get_state(), "torch": torch.get_rng_state()}
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        return state

    def _restore(self, state: State) -> None:
        self._load(state)
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)


def exact_kernels() -> contextlib.AbstractContextManager[None]:
    """On a GPU: convolutions in full float32 and in the same order every time. TF32 would blur an 8-bit cell."""
    flags: contextlib.AbstractContextManager[None] = torch.backends.cudnn.flags(
        enabled=True, benchmark=False, deterministic=True, allow_tf32=False
    )
    return flags


def _finite(value: float, phase: str, step: int) -> float:
    if not math.isfinite(value):
        raise GateError(f"the loss of phase {phase} is {value} at step {step}; lower its learning rate")
    return value


def _identity(module: nn.Module, data: ImageSet, seed: int, device: torch.device, about: dict[str, Any]) -> str:
    weights = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        weights.update(name.encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    said = json.dumps(about, sort_keys=True, default=_plain)
    return hashlib.sha256(
        "\n".join([said, data.sha256(), weights.hexdigest(), str(seed), device.type]).encode()
    ).hexdigest()


def _plain(value: Any) -> Any:
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else str(value)


def _numbered(state: State) -> list[State]:
    """The entries of "0.name", "1.name", ... in the order of their numbers."""
    numbers = sorted({int(name.partition(".")[0]) for name in state})
    return [under(state, str(number)) for number in numbers]


def _optimiser_state(optimiser: torch.optim.Optimizer) -> State:
    return {
        f"optimiser.{index}.{key}": torch.as_tensor(value)
        for index, entries in optimiser.state_dict()["state"].items()
        for key, value in entries.items()
        if value is not None
    }


def _restore_optimiser(optimiser: torch.optim.Optimizer, state: State) -> None:
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = tensor
    optimiser.load_state_dict({"state": entries, "param_groups": optimiser.state_dict()["param_groups"]})


@torch.inference_mode()
def predictions(module: nn.Module, images: Tensor, batch_size: int = 250) -> Tensor:
    """Predicted classes (N,) of uint8 ``images`` (N, C, H, W), on the CPU; the module takes float32 in [0, 1].

    The network runs where its weights are.
    """
    device = next((tensor.device for tensor in module.state_dict().values()), torch.device("cpu"))
    parts = []
    for start in range(0, len(images), batch_size):
        batch = as_float(images[start : start + batch_size].to(device))
        parts.append(module(batch.contiguous(memory_format=torch.channels_last)).argmax(1).cpu())
    return torch.cat(parts)
