"""How long stages will take: times of earlier ones, the longest chain behind each, and a run on paper."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from statistics import median

from quantinel.bench.nodes import Node
from quantinel.bench.plan import Plan

DEFAULT_SECONDS = {
    "train": 600.0,
    "attack": 300.0,
    "prune": 1.0,
    "repair": 60.0,
    "qat": 120.0,
    "compress": 2.0,
    "defend": 5.0,
    "evaluate": 10.0,
    "detect": 5.0,
}
"""Estimates before anything of a kind has been run."""


@dataclass
class Times:
    """Seconds of earlier stages, for estimates."""

    by_method: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    _medians: dict[tuple[str, str], float] = field(default_factory=dict)

    def learn(self, stage: str, config: Mapping[str, object], seconds: float) -> None:
        """Remember one.

        Args:
            stage: its kind.
            config: its options; only those that decide its cost are looked at.
            seconds: it took.
        """
        for method in {_method(config), ""}:
            self.by_method[stage, method].append(seconds)
            self._medians.pop((stage, method), None)

    def knows(self, stage: str) -> bool:
        """Whether any stage of this kind was learned."""
        return (stage, "") in self.by_method

    def estimate(self, node: Node) -> float:
        """Expected seconds of a stage."""
        for method in (_method(node.config), ""):
            key = node.stage, method
            if key in self.by_method:
                if key not in self._medians:
                    self._medians[key] = median(self.by_method[key])
                return self._medians[key]
        return DEFAULT_SECONDS[node.stage]


def _method(config: Mapping[str, object]) -> str:
    """What decides a stage's cost besides its kind."""
    names = (config.get(name) for name in ("attack", "defense", "detector", "backend"))
    return next((str(name) for name in names if name is not None), str(config.get("architecture") or ""))


def readers_within(plan: Plan, names: Collection[str]) -> dict[str, list[str]]:
    """Those of the stages, upstream first, each with those of them that need its result."""
    readers: dict[str, list[str]] = {name: [] for name in plan.nodes if name in names}
    for name in readers:
        for upstream in set(plan.nodes[name].inputs.values()) & readers.keys():
            readers[upstream].append(name)
    return readers


def critical_paths(readers: dict[str, list[str]], seconds: Mapping[str, float]) -> dict[str, float]:
    """Seconds from the start of each stage to the end of the longest chain behind it.

    Args:
        readers: see `readers_within`.
        seconds: cost of each of these stages.
    """
    length: dict[str, float] = {}
    for name in reversed(readers):  # downstream stages come later
        length[name] = seconds[name] + max((length[reader] for reader in readers[name]), default=0.0)
    return length


def makespan(plan: Plan, seconds: Mapping[str, float], slots: int) -> float:
    """Time to finish the stages in ``seconds`` on ``slots`` workers under the scheduler's own rule, on paper.

    Args:
        plan: stages and what they depend on.
        seconds: cost of every stage that has to run; the others are there already.
        slots: workers.
    """
    readers = readers_within(plan, seconds)
    waiting = Counter(reader for those in readers.values() for reader in those)
    length = critical_paths(readers, seconds)
    ready = [(-length[name], name) for name in readers if not waiting[name]]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < slots:
            _, name = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds[name], name))
        now, done = heapq.heappop(running)
        for reader in readers[done]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, (-length[reader], reader))
    return now
