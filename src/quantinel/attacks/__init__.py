"""Published attacks, by name: they exist so that defenses can be measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quantinel.attacks.pq_backdoor import PQBackdoor, plant_pq_backdoor
from quantinel.errors import UsageError

__all__ = ["ATTACKS", "Attack", "PQBackdoor", "attack_named"]


@dataclass(frozen=True)
class Attack:
    """A registered attack.

    Attributes:
        name: as on the command line.
        summary: one line, with the paper.
        config: frozen dataclass of hyper-parameters.
        run: makes a victim directory; see `plant_pq_backdoor` for the arguments.
    """

    name: str
    summary: str
    config: type[Any]
    run: Callable[..., Any]


ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        Attack(
            "pq-backdoor",
            "PQ backdoor (Ma et al., TDSC 2023), PyTorch form: plant, then repair inside the rounding cells",
            PQBackdoor,
            plant_pq_backdoor,
        ),
    )
}


def attack_named(name: str) -> Attack:
    """Look an attack up.

    Raises:
        UsageError: unknown name.
    """
    if name not in ATTACKS:
        raise UsageError(f"unknown attack {name!r}; choose one of {', '.join(ATTACKS)}")
    return ATTACKS[name]
