"""Data poisoning: the attacker publishes images, and an honest victim trains on them.

Huynh, Tran, Doan & Pham, "Data Poisoning Quantization Backdoor Attack", ECCV 2024, stage 2 of Algorithm 1: the set is
poisoned, and a network trained on it by an ordinary recipe. The trigger is that of another victim directory (or any
trigger, BadNets' included); without one, stage 1 comes first.

Which choices are ours and not the paper's: `quantinel.attacks.trigger_training`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from quantinel.attacks.clean import train_honestly
from quantinel.attacks.gate import GateRule
from quantinel.attacks.poisoned_set import poison, poisoned_files
from quantinel.attacks.protocol import Made, Task, make_attack
from quantinel.attacks.trigger_training import TriggerTraining, another, check_start, train_trigger


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


def draw_seed(seed: int) -> int:
    """Seed of the draw of poisoned images, far from that of the training.

    With one seed for both, the first pass of the training would be the same permutation of the images, and begin with
    all the poisoned ones.
    """
    return int.from_bytes(hashlib.sha256(f"poisoned images {seed}".encode()).digest()[:7])


def _train(task: Task, options: DataPoisoning) -> Made:
    check_start(task, options)
    run, trigger = task.run, task.trigger
    if trigger is None:
        surrogate = another(run, 2)
        if options.start_from == "pretrained":
            surrogate.load_state_dict(run.module.state_dict())
        run.add("surrogate", surrogate)
        trigger = train_trigger(run, surrogate, options)
    seed = draw_seed(run.seed)
    poisoned = poison(task.data, trigger, options.target_class, options.poison_rate, options.labels, seed)
    assert poisoned.images.labels is not None
    run.images, run.labels = poisoned.images.images.to(run.device), poisoned.images.labels.to(run.device)
    train_honestly(run, options, "victim")
    return Made(trigger, poisoned_files(poisoned) if options.keep_data else {})


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
