"""train: a clean model from random weights."""

from __future__ import annotations

from quantinel.attacks.clean import CLEAN
from quantinel.bench.methods import configure
from quantinel.bench.stages.attack import train_victim
from quantinel.bench.stages.job import Job


def run(job: Job) -> None:
    """Write the clean model directory ``model``."""
    train_victim(job, CLEAN, configure(CLEAN.config, job.config["settings"], "training", schemes=()))
