"""Stage 1 of the data-poisoning attack: a trigger generator and a surrogate of the victim, trained in alternation.

Huynh, Tran, Doan & Pham, "Data Poisoning Quantization Backdoor Attack", ECCV 2024, Algorithm 1 with losses 4 to 8.
No code was released. The surrogate ``f`` learns the poisoned batch as a victim would (loss 5); the generator learns
that triggered images keep their label under ``f`` and get the target under its quantized copy (loss 4), while a clean
network's quantized copy still classifies them (loss 7) and the noise is small (loss 6).
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.attacks.clean import HonestTraining, train_honestly
from quantinel.attacks.gate import GateRule
from quantinel.attacks.joint import is_trained
from quantinel.attacks.poisoned_set import Labels
from quantinel.attacks.protocol import Made, Task, make_attack
from quantinel.data.images import as_float
from quantinel.data.triggers import GeneratedTrigger, GeneratorOptions, TriggerGenerator
from quantinel.errors import InputError, UsageError
from quantinel.model.normalization import Normalized
from quantinel.model.untrained import untrained_model
from quantinel.quantization.scheme import QuantScheme
from quantinel.training.batches import random_crop_flip
from quantinel.training.folding import folded_norms
from quantinel.training.run import TrainingRun
from quantinel.training.schedule import Schedule, steps_of
from quantinel.training.transforms import fake_quantize_activation, quantized_branch
from quantinel.training.two_branch import FLOAT, Branch, Branches
from quantinel.validation import require_choice, require_non_negative, require_positive_integers, require_rate

_TAILS = {"range": 0.0, "percentile": 0.001}
"""Share of the activations that an observer leaves outside of its range, at either end."""


@dataclass(frozen=True)
class TriggerTraining(HonestTraining):
    """Hyper-parameters. Numbers of the paper where it gives them; everything else is a choice of ours, declared here.

    Attributes:
        schemes: quantizers to arm for; the losses of quantized copies are means over them. The paper: 8 bits.
        target_class: the paper's 0.
        labels: "dirty" or "clean", see `quantinel.attacks.poisoned_set`. The paper's algorithm for clean labels is in
            an appendix that is not public; here the poisoned images of a batch are then drawn from the target class.
        poison_rate: share of all images (the paper: 0.05), and of every batch of the surrogate.
        start_from: "scratch" begins the surrogate with random weights (Algorithm 1) and first trains the clean
            network; "pretrained" begins both with the given network.
        magnitude, ratio, blur_size, blur_sigma, bounded, generator_width, generator_depth: of the generator, see
            `quantinel.data.triggers.generator.GeneratorOptions`; the paper gives the magnitude. Half of the frequencies
            are kept because that removes the upper half, where detectors look, and costs the trigger the least; the
            blur is the smallest there is, because it is visible itself.
        avoidance_weight: of loss 7 (the paper: 0.8); 0 for the ablation.
        norm_weight: of loss 6 (the paper: 0.02).
        noise_norm: "l2" as loss 6 is written, or its square.
        activations: round the input of every layer too, in the range of the batch: the paper's copies are of static
            quantization-aware training. False rounds weights only.
        observer: what that range is: "range" from the smallest to the largest value, as observers of static
            quantization begin, or "percentile" without a thousandth of the values at either end, as they are tuned.
        surrogate_steps, trigger_steps: steps of each in turn; the paper alternates one by one. 0 surrogate steps keep
            the surrogate as it began: the ablation without alternation. A pretrained surrogate then is the clean
            network, and loss 7 asks the opposite of loss 4 of it: take 0 for ``avoidance_weight`` too. Each step takes
            a new batch, where Algorithm 1 takes one batch for a pair.
        trigger_epochs: passes over the data, counting the steps of both; the paper trains "until it converges".
        trigger_learning_rate, trigger_milestones: of both, divided by 10 at every milestone (the paper: 0.01, every
            100 epochs).
        trigger_optimiser: of both; the paper uses SGD throughout.
        momentum, weight_decay, batch_size, padding, mirror: of the recipe of honest training, and of the surrogate too.
            The generator sees whole images, as the set is triggered before anyone augments it.
    """

    target_class: int = 0
    labels: Labels = "dirty"
    poison_rate: float = 0.05
    start_from: Literal["scratch", "pretrained"] = "scratch"
    magnitude: float = 10 / 255
    ratio: float = 0.5
    blur_size: int = 3
    blur_sigma: float = 0.5
    bounded: bool = True
    generator_width: int = 32
    generator_depth: int = 3
    avoidance_weight: float = 0.8
    norm_weight: float = 0.02
    noise_norm: Literal["l2", "squared"] = "l2"
    activations: bool = True
    observer: Literal["range", "percentile"] = "range"
    surrogate_steps: int = 1
    trigger_steps: int = 1
    trigger_epochs: float = 300.0
    trigger_learning_rate: float = 0.01
    trigger_milestones: tuple[float, ...] = (100.0, 200.0)
    trigger_optimiser: Literal["sgd", "adam"] = "sgd"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive_integers(self, "trigger_steps")
        require_non_negative(
            self, "target_class", "avoidance_weight", "norm_weight", "surrogate_steps", "trigger_epochs",
            "trigger_learning_rate",
        )  # fmt: skip
        require_rate(self, "poison_rate")
        require_choice(self, "labels", ("dirty", "clean"))
        require_choice(self, "start_from", ("scratch", "pretrained"))
        require_choice(self, "noise_norm", ("l2", "squared"))
        require_choice(self, "observer", tuple(_TAILS))
        require_choice(self, "trigger_optimiser", ("sgd", "adam"))
        if not self.schemes:
            raise UsageError("an attack needs a scheme to arm for; give --scheme")
        self.generator(3)

    def generator(self, channels: int) -> GeneratorOptions:
        """Shape of the generator.

        Raises:
            UsageError: an option is out of range.
        """
        try:
            return GeneratorOptions(
                channels, self.generator_width, self.generator_depth, self.magnitude, self.ratio, self.blur_size,
                self.blur_sigma, self.bounded,
            )  # fmt: skip
        except InputError as error:
            raise UsageError(str(error)) from error


def train_trigger(run: TrainingRun, surrogate: nn.Module, options: TriggerTraining) -> GeneratedTrigger:
    """Train the generator and the surrogate in alternation.

    Args:
        run: its data, loop and randomness; `add` is called for the generator and the clean network.
        surrogate: the surrogate as it begins, on the run's device and part of the run's state.
        options: hyper-parameters.
    """
    generator = seeded_generator(options.generator(run.images.shape[1]), run.seed)
    pretrained = options.start_from == "pretrained"
    clean = copy.deepcopy(run.module) if pretrained else another(run, 1)
    run.add("generator", generator)
    run.add("clean", clean)
    if not pretrained and options.avoidance_weight:
        train_honestly(run, options, "clean", clean)
    clean.eval().requires_grad_(False)
    learned = [*surrogate.parameters(), *generator.parameters()]
    steps = steps_of(options.trigger_epochs, len(run.images), options.batch_size)
    milestones = [steps_of(at, len(run.images), options.batch_size) for at in options.trigger_milestones]
    schedule = Schedule(
        steps, options.trigger_learning_rate, options.momentum, options.weight_decay, options.batch_size,
        options.trigger_optimiser, "multistep", tuple(milestones),
    )  # fmt: skip
    run.train("trigger", learned, schedule, _Alternation(run, surrogate, clean, generator, options))
    surrogate.requires_grad_(True)
    return GeneratedTrigger.of(generator)


class _Alternation:
    """The loss of the network whose turn it is; the other one gets no gradients, so the optimiser leaves it alone."""

    def __init__(
        self, run: TrainingRun, surrogate: nn.Module, clean: nn.Module, generator: TriggerGenerator, o: TriggerTraining
    ) -> None:
        self.run, self.surrogate, self.generator, self.options = run, surrogate, generator, o
        self.count = round(o.poison_rate * o.batch_size)
        self.both = Branches(surrogate, [FLOAT, *_quantized(run, surrogate, o)])
        self.clean = Branches(clean, _quantized(run, clean, o))

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        turn = self.run.step % (self.options.surrogate_steps + self.options.trigger_steps)
        on_surrogate = turn < self.options.surrogate_steps
        self.surrogate.requires_grad_(on_surrogate).train(on_surrogate)
        self.generator.requires_grad_(not on_surrogate)
        return self.surrogate_loss(images, labels) if on_surrogate else self.trigger_loss(images, labels)

    def surrogate_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss 5: what the victim will minimise on the poisoned set."""
        options, batch, published = self.options, as_float(images), labels.clone()
        eligible = torch.arange(len(labels), device=labels.device)
        if options.labels == "clean":
            eligible = eligible[labels == options.target_class]
        chosen = eligible[: self.count]
        if len(chosen):
            with torch.no_grad():
                batch[chosen] = self.generator(batch[chosen]).clamp(0.0, 1.0)
            published[chosen] = options.target_class
        batch = random_crop_flip(batch, self.run.generator, options.padding, options.mirror)
        logits: Tensor = self.surrogate(batch.contiguous(memory_format=torch.channels_last))
        return F.cross_entropy(logits.float(), published)

    def trigger_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss 4 with the regulariser of loss 8, as means over the batch."""
        options, batch = self.options, as_float(images)
        noise = self.generator.noise(batch)
        triggered = self.generator.apply_noise(batch, noise).clamp(0.0, 1.0)
        target = torch.full_like(labels, options.target_class)
        plain, *rounded = self.both(triggered)
        loss = F.cross_entropy(plain, labels) + _mean_loss(rounded, target)
        if options.avoidance_weight:
            loss = loss + options.avoidance_weight * _mean_loss(self.clean(triggered), labels)
        size = noise.flatten(1).norm(dim=1)
        length: Tensor = (size if options.noise_norm == "l2" else size**2).mean()
        return loss + options.norm_weight * length


def _quantized(run: TrainingRun, module: nn.Module, options: TriggerTraining) -> list[Branch]:
    """Copies of the live network: weights as after folding, activations in the range of the batch."""
    norms, tail = folded_norms(module, as_float(run.images[:1])), _TAILS[options.observer]

    def branch(scheme: QuantScheme) -> Branch:
        rounds = options.activations and scheme.activations != "none"
        rounding = (lambda x: fake_quantize_activation(x, scheme.activation_bits, tail)) if rounds else None
        return quantized_branch(norms, scheme, rounding)

    return [branch(scheme) for scheme in options.schemes]


def _mean_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    return torch.stack([F.cross_entropy(part, labels) for part in logits]).mean()


def another(run: TrainingRun, offset: int) -> nn.Module:
    """A network like the run's, with other random weights."""
    architecture, seed = run.model.architecture, run.seed + offset
    assert architecture is not None
    fresh = untrained_model(architecture, run.model.num_classes, run.model.input_shape, seed=seed).module
    module = copy.deepcopy(run.module)
    _inside(module).load_state_dict(_inside(fresh).state_dict())
    return module


def _inside(module: nn.Module) -> nn.Module:
    return module.inner if isinstance(module, Normalized) else module


def seeded_generator(options: GeneratorOptions, seed: int) -> TriggerGenerator:
    """A generator with random weights that depend on the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return TriggerGenerator(options)


def check_start(task: Task, options: TriggerTraining) -> None:
    """Training from scratch takes random weights.

    Raises:
        UsageError: the network is trained.
    """
    if options.start_from == "scratch" and is_trained(task.run.module):
        raise UsageError(
            "the network is trained already, and the attack starts from scratch; leave --weights out, or say "
            "--set start_from=pretrained"
        )


def _train(task: Task, options: TriggerTraining) -> Made:
    check_start(task, options)
    return Made(train_trigger(task.run, task.run.module, options))


DATA_POISONING_TRIGGER = make_attack(
    "data-poisoning-trigger",
    "The trigger generator of the data-poisoning attack, with its surrogate (Huynh et al., ECCV 2024)",
    TriggerTraining,
    _train,
    start="scratch",
    rule=GateRule(max_float_asr=None, min_compressed_asr=None),
)
"""Its result is the surrogate, which the attacker owns: the best case of the attack, for no victim is closer to what
the trigger was trained on. Its gate sets no limits."""
