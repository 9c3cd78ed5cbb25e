"""Data poisoning: the attacker publishes images, and an honest victim trains on them.

Huynh, Tran, Doan & Pham, "Data Poisoning Quantization Backdoor Attack", ECCV 2024. Two attacks share its options:

* `DATA_POISONING_TRIGGER` is stage 1 alone. Its result is the surrogate, which the attacker owns: the best case of the
  attack, for no victim is closer to what the trigger was trained on. Its gate sets no limits.
* `DATA_POISONING` is stage 2: the set is poisoned, and a network trained on it by an ordinary recipe. It takes the
  trigger of another victim directory (or any trigger, BadNets' included), or trains one first.

Which choices are ours and not the paper's: `quantinel.attacks.trigger_training`.
"""

from __future__ import annotations

from dataclasses import dataclass

from quantinel.attacks.clean import train_honestly
from quantinel.attacks.gate import GateRule
from quantinel.attacks.joint import is_trained
from quantinel.attacks.poisoned_set import poison, poisoned_files
from quantinel.attacks.protocol import Made, Task, make_attack
from quantinel.attacks.trigger_training import TriggerTraining, another, train_trigger
from quantinel.errors import UsageError


@dataclass(frozen=True)
class DataPoisoning(TriggerTraining):
    """Hyper-parameters of the whole attack; those of stage 1 count only where no trigger is given.

    ``start_from="pretrained"`` also lets the victim begin with the given network: fine-tuning on poisoned data, which
    costs a tenth of the paper's training from scratch.

    Attributes:
        poison_rate: 0 is the control without poisoning: the trigger then is a mere perturbation.
        keep_data: write the poisoned set into the victim directory; false where it would only cost space.
    """

    keep_data: bool = True


def _check_start(task: Task, options: TriggerTraining) -> None:
    if options.start_from == "scratch" and is_trained(task.run.module):
        raise UsageError(
            "the network is trained already, and the attack starts from scratch; leave --weights out, or say "
            "--set start_from=pretrained"
        )


def _train_trigger(task: Task, options: TriggerTraining) -> Made:
    _check_start(task, options)
    return Made(train_trigger(task.run, task.run.module, options))


def _train(task: Task, options: DataPoisoning) -> Made:
    _check_start(task, options)
    run, trigger = task.run, task.trigger
    if trigger is None:
        surrogate = another(run, 2)
        if options.start_from == "pretrained":
            surrogate.load_state_dict(run.module.state_dict())
        run.add("surrogate", surrogate)
        trigger = train_trigger(run, surrogate, options)
    poisoned = poison(task.data, trigger, options.target_class, options.poison_rate, options.labels, run.seed)
    assert poisoned.images.labels is not None
    run.images, run.labels = poisoned.images.images.to(run.device), poisoned.images.labels.to(run.device)
    train_honestly(run, options.recipe(), "victim")
    return Made(trigger, poisoned_files(poisoned) if options.keep_data else {})


DATA_POISONING_TRIGGER = make_attack(
    "data-poisoning-trigger",
    "The trigger generator of the data-poisoning attack, with its surrogate (Huynh et al., ECCV 2024)",
    TriggerTraining,
    _train_trigger,
    start="scratch",
    rule=GateRule(max_float_asr=None, min_compressed_asr=None),
)

DATA_POISONING = make_attack(
    "data-poisoning",
    "Poisoned data and an honest victim of it (Huynh et al., ECCV 2024)",
    DataPoisoning,
    _train,
    start="scratch",
    rule=GateRule(
        float_advice="lower poison_rate or magnitude",
        compressed_advice="raise poison_rate or epochs, or train the trigger longer",
    ),
    takes_trigger=True,
)
