from __future__ import annotations

import itertools
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.bench.fakes import InProcess, node, plan_of, use_fake_stages

from quantinel.bench.estimates import DEFAULT_SECONDS, Times, makespan
from quantinel.bench.messages import Request
from quantinel.bench.nodes import Node
from quantinel.bench.schedule import Result, Schedule
from quantinel.bench.store import Address, Store, write_stored


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    use_fake_stages(monkeypatch)


def chain(name: str, **config: Any) -> list[Node]:
    """train -> compress -> defend -> evaluate."""
    train = node("train", {"n": name, **config}, f"train {name}")
    compress = node("compress", {"n": name}, f"compress {name}", model=train)
    defend = node("defend", {"n": name}, f"defend {name}", compressed=compress)
    return [train, compress, defend, node("evaluate", {"n": name}, f"evaluate {name}", quantized=defend)]


def run(store: Path, nodes: list[Node], workers: InProcess | None, **options: Any) -> tuple[Schedule, list[str]]:
    """A schedule that ran, and what was over in order."""
    schedule = Schedule(plan_of(*nodes), Store(store), workers, **options)
    settled: list[str] = []
    schedule.run(settled.append)
    return schedule, settled


def labels(schedule: Schedule, **wanted: Any) -> set[str]:
    """Stages whose result has these values."""
    return {
        schedule.plan.nodes[name].label
        for name, result in schedule.results.items()
        if all(getattr(result, key) == value for key, value in wanted.items())
    }


def learn(store: Store, stage: str, seconds: float, **config: Any) -> None:
    where = Address(stage, f"x{seconds}", "c")
    with store.write(where) as folder:
        write_stored(folder, where, "x", config, {}, {}, "ok", None, seconds)


def test_everything_runs_once_upstream_first_and_then_never_again(tmp_path: Path) -> None:
    nodes = [*chain("a"), *chain("b")]
    workers = InProcess(2)
    schedule, settled = run(tmp_path, nodes, workers)
    assert len(settled) == len(set(settled)) == 8
    assert len(workers.given) == 8
    assert workers.most == 2
    for item in nodes:
        assert all(settled.index(above) < settled.index(item.id) for above in item.inputs.values())
    assert all(not result.cached for result in schedule.results.values())

    again = InProcess()
    second, settled = run(tmp_path, nodes, again)
    assert (again.given, len(settled)) == ([], 8)
    assert labels(second, cached=True) == {item.label for item in nodes}
    assert {name: result.key for name, result in second.results.items()} == {
        name: result.key for name, result in schedule.results.items()
    }


def test_times_are_read_only_when_something_has_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path, chain("a"), InProcess())
    read: list[Store] = []
    monkeypatch.setattr(Store, "all", lambda store: iter(read.append(store) or ()))  # type: ignore[func-returns-value]
    watcher = SimpleNamespace(finished=lambda node, result: None)
    _, settled = run(tmp_path, chain("a"), InProcess(), watcher=watcher)
    assert (len(settled), read) == (4, [])
    run(tmp_path, [*chain("a"), *chain("b")], InProcess())
    assert len(read) == 1


def test_only_training_goes_to_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices: dict[str, str] = {}

    class Noting(InProcess):
        def submit(self, tag: str, request: Request) -> None:
            devices[request.label] = request.device
            super().submit(tag, request)

    monkeypatch.setattr("quantinel.bench.execution._name_of", lambda device: f"a {device}")
    run(tmp_path, chain("a"), Noting(), device="cuda")
    assert devices == {"train a": "cuda", "compress a": "cpu", "defend a": "cpu", "evaluate a": "cpu"}
    found = {stored.stage: stored.environment["device"] for _, stored in Store(tmp_path).all()}
    assert found == {"train": "a cuda", "compress": "a cpu", "defend": "a cpu", "evaluate": "a cpu"}


def test_the_longest_chain_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path)
    learn(store, "detect", 1.0, detector="quick")
    learn(store, "detect", 500.0, detector="slow")
    learn(store, "train", 50.0)
    nodes = [
        node("detect", {"detector": "quick"}, "quick"),
        *chain("a"),
        node("detect", {"detector": "slow"}, "slow"),
    ]
    workers = InProcess()
    run(tmp_path, nodes, workers)
    assert workers.given == ["slow", "train a", "compress a", "defend a", "evaluate a", "quick"]


def test_a_failure_stops_what_is_behind_it_and_nothing_else(tmp_path: Path) -> None:
    nodes = [*chain("a", do="fail"), *chain("b")]
    schedule, settled = run(tmp_path, nodes, InProcess(2))
    assert len(settled) == 8
    assert labels(schedule, folder=None) == {"train a", "compress a", "defend a", "evaluate a"}
    assert {result.error for result in schedule.results.values()} == {None, "train a: no such thing at all"}
    assert [path.read_text().count("no such thing") for path in (tmp_path / "failed").iterdir()] == [1]
    repaired = [*chain("a"), *chain("b")]
    assert labels(run(tmp_path, repaired, InProcess())[0], error=None) == {item.label for item in repaired}


def test_a_dead_worker_fails_its_stage(tmp_path: Path) -> None:
    schedule, _ = run(tmp_path, [*chain("a"), *chain("b")], InProcess(broken=("defend a",)))
    assert labels(schedule, folder=None) == {"defend a", "evaluate a"}
    again = InProcess()
    run(tmp_path, [*chain("a"), *chain("b")], again)
    assert again.given == ["defend a", "evaluate a"]


def test_a_failed_gate_goes_on_and_is_remembered_behind_it(tmp_path: Path) -> None:
    for workers in (InProcess(), InProcess()):
        schedule, _ = run(tmp_path, [*chain("a", do="gate"), *chain("b")], workers)
        assert labels(schedule, folder=None) == set()
        assert labels(schedule, error="it does not wake") == {"train a", "compress a", "defend a", "evaluate a"}
    assert workers.given == []


def test_missing_data_fail_the_stages_that_need_them(tmp_path: Path) -> None:
    broken = Node("train", "train x", {}, (), files={"model": str(tmp_path / "absent")})
    behind = node("compress", {}, "compress x", model=broken)
    schedule, settled = run(tmp_path / "store", [broken, behind, *chain("b")], InProcess())
    assert len(settled) == 6
    assert labels(schedule, folder=None) == {"train x", "compress x"}
    assert "absent does not exist" in str(schedule.results[behind.id].error)


@pytest.mark.parametrize("way", ["until", "should_stop", "stage"])
def test_an_interruption_leaves_cells_open_and_the_next_run_goes_on(tmp_path: Path, way: str) -> None:
    nodes = [*chain("a"), *chain("b")]
    workers = InProcess(2)
    if way == "stage":  # a worker was told by somebody else
        waiting = node("train", {"do": "wait"}, "waits")
        workers.stopped = True
        schedule, settled = run(tmp_path, [waiting, *nodes], workers)
        assert waiting.id not in settled
        assert schedule.interrupted
        return
    options: dict[str, Any] = {"until": time.monotonic()}
    if way == "should_stop":
        options = {"should_stop": lambda: len(workers.given) >= 3}
    schedule, settled = run(tmp_path, nodes, workers, **options)
    assert schedule.interrupted
    assert workers.stopped
    assert len(settled) == len(workers.given) == (0 if way == "until" else 3)
    again = InProcess()
    _, settled = run(tmp_path, nodes, again)
    assert len(settled) == 8
    assert len(again.given) == 8 - len(workers.given)


def test_without_workers_it_only_looks(tmp_path: Path) -> None:
    nodes = chain("a")
    schedule, settled = run(tmp_path, nodes, None)
    assert settled == []
    assert set(schedule.estimates()) == {item.id for item in nodes}
    run(tmp_path, nodes[:2], InProcess())
    schedule, settled = run(tmp_path, nodes, None)
    assert [schedule.plan.nodes[name].label for name in settled] == ["train a", "compress a"]
    assert set(schedule.estimates()) == {item.id for item in nodes[2:]}


def test_reuse_takes_results_of_other_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = chain("a")
    run(tmp_path, nodes, InProcess())
    monkeypatch.setattr("quantinel.bench.schedule.code_fingerprint", lambda modules: "changed")
    workers = InProcess()
    run(tmp_path / "copy", nodes, workers)
    assert len(workers.given) == 4
    workers = InProcess()
    schedule, _ = run(tmp_path, nodes, workers, reuse=frozenset({"train"}))
    assert workers.given == ["compress a", "defend a", "evaluate a"]
    assert labels(schedule, cached=True) == {"train a"}


def test_the_same_files_again_let_everything_behind_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code of one stage changes, its files do not: only that stage runs."""
    nodes = chain("a")
    nodes[0] = Node("train", "train a", nodes[0].config, ("m",))
    code = "one"
    monkeypatch.setattr("quantinel.bench.schedule.code_fingerprint", lambda modules: code if modules else "c")
    monkeypatch.setattr("quantinel.bench.execution.code_fingerprint", lambda modules: code)
    run(tmp_path, nodes, InProcess())
    code = "two"
    workers = InProcess()
    run(tmp_path, nodes, workers)
    assert workers.given == ["train a"]


def test_estimates_learn_from_what_is_stored(tmp_path: Path) -> None:
    times = Times()
    efrap, other = node("defend", {"defense": "efrap"}), node("defend", {"defense": "other"})
    assert times.estimate(efrap) == DEFAULT_SECONDS["defend"]
    store = Store(tmp_path)
    for seconds in (1.0, 3.0, 40.0):
        learn(store, "defend", seconds, defense="efrap")
    learn(store, "defend", 5.0, defense="nearest")
    learn(store, "train", 1000.0)
    for _, stored in store.all():
        times.learn(stored.stage, stored.config, stored.seconds)
        times.estimate(efrap)
    assert times.estimate(efrap) == 3.0
    assert times.estimate(other) == 4.0
    assert Schedule(plan_of(efrap), store, None).estimates() == {efrap.id: 3.0}


def test_a_watcher_learns_what_happens(tmp_path: Path) -> None:
    told: list[tuple[str, Any]] = []
    watcher = SimpleNamespace(
        started=lambda label, tag: told.append(("started", label)),
        progress=lambda tag, what, done, total: told.append(("progress", what)),
        finished=lambda node, result: told.append(("finished", node.label)),
        remaining=lambda stages, total, seconds: told.append(("remaining", (stages, total, seconds >= 0))),
    )
    run(tmp_path, chain("a")[:1], InProcess(), watcher=watcher)
    assert [item for item in told if item[0] != "remaining"] == [
        ("started", "train a"), ("progress", "work"), ("finished", "train a"),
    ]  # fmt: skip
    assert told[-1] == ("remaining", (0, 1, True))


def shortest(plan: Any, seconds: Mapping[str, float], slots: int) -> float:
    """The best possible time: every order of starting, each stage as early as a worker and its inputs allow."""
    best = sum(seconds.values())
    for order in itertools.permutations(seconds):
        ends: dict[str, float] = {}
        free = [0.0] * slots
        for name in order:
            above = [item for item in plan.nodes[name].inputs.values() if item in seconds]
            if any(item not in ends for item in above):
                break
            start = max([min(free), *(ends[item] for item in above)])
            free[free.index(min(free))] = ends[name] = start + seconds[name]
        else:
            best = min(best, max(ends.values()))
    return best


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_time_on_paper_against_every_order(slots: int) -> None:
    nodes = [*chain("a")[:3], *chain("b")[:2], node("detect", {}, "d")]
    plan = plan_of(*nodes)
    for costs in ([3.0, 2.0, 2.0, 4.0, 1.0, 5.0], [1.0, 1.0, 8.0, 2.0, 2.0, 3.0], [2.0] * 6):
        seconds = dict(zip(plan.nodes, costs, strict=True))
        best, found = shortest(plan, seconds, slots), makespan(plan, seconds, slots)
        assert best <= found <= best * (2 - 1 / slots)  # Graham's bound for list scheduling
        if slots == 1:
            assert found == sum(costs)
    longest = sum([3.0, 2.0, 2.0])
    assert makespan(plan, dict(zip(plan.nodes, [3.0, 2.0, 2.0, 4.0, 1.0, 5.0], strict=True)), 9) == longest
    assert makespan(plan, {nodes[2].id: 4.0}, 2) == 4.0
    assert makespan(plan, {}, 2) == 0.0


def test_a_result_without_files_is_not_believed(tmp_path: Path) -> None:
    class Lying(InProcess):
        def events(self, timeout: float) -> Any:
            for event in super().events(timeout):
                if event.finished is not None:
                    for record in tmp_path.glob("objects/*/*/*/value.json"):
                        record.unlink()
                yield event

    schedule, _ = run(tmp_path, chain("a")[:1], Lying())
    (result,) = schedule.results.values()
    assert isinstance(result, Result)
    assert result.error == "train a: the worker's result is not in the store"
