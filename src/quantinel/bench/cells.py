"""The cells of a suite: every combination that it asks for, each with an identity of its own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from quantinel.attacks import ATTACKS
from quantinel.attacks.clean import CLEAN
from quantinel.attacks.protocol import compressors_of
from quantinel.bench.defenses import builder, chosen_defense, defense_names
from quantinel.bench.deployment import Deployment, parse_deployment
from quantinel.bench.methods import attack_config, configure, known
from quantinel.bench.suite import Cells, Method, Suite
from quantinel.data.bundled import BUNDLED_IMAGES
from quantinel.data.triggers import TRIGGERS, is_json, trigger_from_dict, trigger_from_text
from quantinel.detectors import DETECTORS
from quantinel.errors import QuantinelError, UsageError
from quantinel.model.loading import BUNDLED, bundled_model
from quantinel.model.victim import read_manifest
from quantinel.model.zoo import ARCHITECTURES
from quantinel.quantization.pruning import pruning_from_dict
from quantinel.quantization.scheme import QuantScheme

FLOAT = "float"
NONE = "none"
_LABEL = re.compile(r"[A-Za-z0-9._+-]+")


@dataclass(frozen=True, order=True)
class Cell:
    """One figure of a suite, named by the suite's own labels.

    Attributes:
        model, attack, defense: labels; attack and defense may be "none".
        scheme: canonical name of the grid, of the pruning, or of both; or "float".
        detector: label, for cells that score a model instead of measuring it.
        calibration: data whose images calibrate.
        own_data: whether that is the model's own data.
        seed: of attack, calibration draw and defense.
    """

    model: str
    attack: str
    scheme: str
    defense: str
    detector: str | None
    calibration: str
    own_data: bool
    seed: int

    @property
    def calibrated(self) -> str:
        """The scheme; a foreign calibration set is named behind it."""
        return self.scheme if self.own_data else f"{self.scheme}@{self.calibration}"

    @property
    def id(self) -> str:
        """``model/attack/scheme/defense/sSEED``, the scheme as in `calibrated`."""
        return "/".join((self.model, self.attack, self.calibrated, self.detector or self.defense, f"s{self.seed}"))

    @property
    def float_cell(self) -> Cell:
        """The uncompressed model of this cell."""
        return dataclasses.replace(self, scheme=FLOAT, defense=NONE, detector=None)

    @property
    def group(self) -> tuple[str, str, int]:
        """Cells of one group share a trained model."""
        return self.model, self.attack, self.seed


def expand(suite: Suite, root: Path | None = None) -> list[Cell]:
    """All cells, each once, in the order of the suite; the float model of every group comes first.

    Args:
        suite: its names and options are checked here.
        root: data root; needed for "own" schemes of victims that lie there.

    Raises:
        UsageError: a name or option that does not exist, or a scheme that cannot be resolved.
        InputError: a victim directory that cannot be read.
    """
    check_methods(suite)
    cells: dict[Cell, None] = {}
    for block in suite.cells:
        for cell in _block(suite, block, root):
            cells[cell] = None
    return list(cells)


def _block(suite: Suite, block: Cells, root: Path | None) -> Iterator[Cell]:
    for model in _names(suite, block.models, suite.models, "model"):
        for attack in _names(suite, block.attacks, (NONE, *suite.attacks, *ATTACKS), "attack"):
            for seed in block.seeds or suite.run.seeds:
                yield from _of_model(suite, block, model, attack, seed, root)


def _of_model(suite: Suite, block: Cells, model: str, attack: str, seed: int, root: Path | None) -> Iterator[Cell]:
    own = suite.models[model].data
    yield Cell(model, attack, FLOAT, NONE, None, own, True, seed)
    defenses = _names(suite, block.defenses, (NONE, *suite.defenses, *defense_names()), "defense")
    detectors = _names(suite, block.detectors, (*suite.detectors, *DETECTORS), "detector")
    for name in _names(suite, block.schemes, None, "scheme"):
        deployment = own_deployment(suite, model, attack, root) if name == "own" else parse_deployment(name)
        scheme = deployment.name
        for data in _names(suite, block.calibration, suite.data, "data") or [own]:
            for defense in defenses:
                _check_defense(suite, deployment, defense)
                yield Cell(model, attack, scheme, defense, None, data, data == own, seed)
            for detector in detectors:
                deployment.check(None, detector)
                yield Cell(model, attack, scheme, NONE, detector, data, data == own, seed)


def _check_defense(suite: Suite, deployment: Deployment, label: str) -> None:
    chosen = chosen_defense(suite, label)
    deployment.check(label, None, None if chosen is None else chosen.kind)
    if chosen is None or (deployment.grid is not None and deployment.fold_batch_norm):
        return
    method = configure(chosen.build, chosen.method.settings, f"defenses.{label}")
    if chosen.kind == "repair" and method.through != "float":
        why = (
            f"and {deployment.name} has none; quantize behind it ({deployment.name}+int8)"
            if deployment.grid is None
            else f"with BatchNorm folded, and {deployment.name} does not fold it; name the grid alone"
        )
        raise UsageError(f"defenses.{label} trains through the deployment grid, {why}, or leave out through")


def _names(
    suite: Suite, names: Sequence[str], allowed: Iterable[str] | None, what: str, within: tuple[str, ...] = ()
) -> list[str]:
    """Names with groups written out, each known."""
    result: list[str] = []
    for name in names:
        if name.startswith("@"):
            group = known(name[1:], suite.groups, "group")
            if group in within:
                raise UsageError(f"groups.{group} contains itself; take @{group} out of groups.{within[-1]}")
            result += _names(suite, suite.groups[group], allowed, what, (*within, group))
        else:
            result.append(name if allowed is None else _method(name, list(allowed), what))
    return list(dict.fromkeys(result))


def _method(name: str, names: Collection[str], what: str) -> str:
    """`known`, with a hint where the name may be one of a plugin that was not given."""
    try:
        return known(name, names, what)
    except UsageError as error:
        if what not in ("attack", "defense", "detector") or "did you mean" in str(error):
            raise
        raise UsageError(f"{error}; if it is your own, give its file with --plugin before the verb") from error


def own_deployment(suite: Suite, model: str, attack: str, root: Path | None = None) -> Deployment:
    """The first grid or pruning that an attack or a victim directory is armed for.

    Raises:
        UsageError: neither names one.
    """
    if attack != NONE:
        entry = suite.attacks.get(attack)
        if entry is not None and entry.schemes:
            return parse_deployment(entry.schemes[0])
        method, settings = (attack, {}) if entry is None else (entry.method, entry.settings)
        armed = compressors_of(configure(ATTACKS[method].config, settings, f"attacks.{attack}"))
        if armed:
            return parse_deployment(armed[0].name)
    elif suite.models[model].victim is not None:
        manifest = read_manifest(victim_folder(suite, model, root))
        if manifest.schemes:
            return Deployment(None, QuantScheme(**manifest.schemes[0]))
        pruners = [dict(entry) for entry in manifest.compressors if entry.get("kind") == "pruner"]
        if pruners:
            return Deployment(pruning_from_dict(pruners[0]), None)
    raise UsageError(f'{model} with attack {attack} is armed for no scheme; name one instead of "own"')


def victim_folder(suite: Suite, model: str, root: Path | None) -> Path:
    """Folder of a victim directory that the suite names."""
    source = suite.models[model].victim
    assert source is not None
    if source.startswith(BUNDLED):
        return bundled_model(source)
    return Path(located(source, root, f"models.{model}"))


def entries_of(suite: Suite, cell: Cell) -> dict[str, Method | None]:
    """What the suite's tables say of a cell's attack, defense and detector; None where its label is not in them."""
    return {
        "attack": suite.attacks.get(cell.attack),
        "defense": suite.defenses.get(cell.defense),
        "detector": suite.detectors.get(cell.detector or ""),
    }


def methods_of(suite: Suite, cell: Cell) -> dict[str, Method]:
    """A cell's attack and defense ("none" too), and its detector if it has one; a name alone means its defaults."""
    labels = {"attack": cell.attack, "defense": cell.defense, "detector": cell.detector}
    entries = entries_of(suite, cell)
    return {kind: entries[kind] or Method(method=label) for kind, label in labels.items() if label is not None}


def located(source: str, root: Path | None, where: str) -> str:
    """``{root}`` replaced by the data root.

    Raises:
        UsageError: the source needs a root and there is none.
    """
    if "{root}" not in source:
        return source
    if root is None:
        raise UsageError(f"{where} is {source}; say where the data lies with --data-root DIR (or QUANTINEL_DATA)")
    return source.replace("{root}", str(root))


def check_methods(suite: Suite) -> None:
    """Every name and option of a suite exists, whether a cell uses it or not.

    Raises:
        UsageError: one does not.
    """
    for table in ("models", "attacks", "defenses", "detectors", "data"):
        for label in getattr(suite, table):
            if label in (NONE, FLOAT, "own") or not _LABEL.fullmatch(label):
                raise UsageError(
                    f"{table}.{label}: a label holds letters, digits, '.', '_', '+' and '-', and is not "
                    f"{NONE}, {FLOAT} or own; choose another"
                )
    for label in {*suite.defenses, *defense_names()} & {*suite.detectors, *DETECTORS}:
        raise UsageError(f"{label} is a defense and a detector; cells could not be told apart, rename one")
    for label, data in suite.data.items():
        for field, source in (("test", data.test), ("calibration", data.calibration), ("train", data.train)):
            if source is not None and source.startswith(BUNDLED):
                known(source, BUNDLED_IMAGES, f"data.{label}.{field}:")
    for label, model in suite.models.items():
        known(model.data, suite.data, f"data of models.{label}:")
        if model.architecture is not None:
            known(model.architecture, ARCHITECTURES, f"architecture of models.{label}:")
        if model.trigger is not None:
            _checked_trigger(model.trigger, f"models.{label}")
        if model.training is not None:
            configure(CLEAN.config, model.training, f"models.{label}.training", schemes=())
    for label, attack in suite.attacks.items():
        _no_shadow(label, attack.method, ATTACKS, "attacks")
        registered = ATTACKS[_method(attack.method, ATTACKS, "attack")]
        config = attack_config(registered.config, attack.settings, attack.schemes, f"attacks.{label}")
        if hasattr(config, "trigger"):
            _checked_trigger(config.trigger, f"attacks.{label}")
        if attack.trigger_of is not None:
            _check_lender(suite, label, registered.takes_trigger)
    for label, defense in suite.defenses.items():
        _no_shadow(label, defense.method, defense_names(), "defenses")
        _, build = builder(_method(defense.method, defense_names(), "defense"))
        configure(build, defense.settings, f"defenses.{label}")
    for label, detector in suite.detectors.items():
        _no_shadow(label, detector.method, DETECTORS, "detectors")
        configure(
            DETECTORS[_method(detector.method, DETECTORS, "detector")].config, detector.settings, f"detectors.{label}"
        )
    for published in suite.published:
        if not published.figures:
            raise UsageError(f"published: {published.source} gives no figure; add cda, asr or ta")


def _check_lender(suite: Suite, label: str, takes_trigger: bool) -> None:
    lender = suite.attacks[label].trigger_of
    assert lender is not None
    if not takes_trigger:
        raise UsageError(f"attacks.{label}: {suite.attacks[label].method} takes no trigger; remove trigger_of")
    known(lender.model, suite.models, f"trigger_of of attacks.{label}: model")
    _method(lender.attack, (*suite.attacks, *ATTACKS), "attack")
    if lender.attack in suite.attacks and suite.attacks[lender.attack].trigger_of is not None:
        raise UsageError(f"attacks.{label}: {lender.attack} borrows its trigger itself; name the attack that makes it")


def _checked_trigger(described: str | dict[str, Any], where: str) -> None:
    """A name, or a JSON form as text or as a table."""
    if isinstance(described, str) and not is_json(described):
        known(described, TRIGGERS, f"trigger of {where}:")
        return
    try:
        _ = trigger_from_text(described) if isinstance(described, str) else trigger_from_dict(described)
    except QuantinelError as error:
        raise UsageError(f"{where}.trigger: {str(error).removeprefix('trigger: ')}") from error


def _no_shadow(label: str, method: str, registry: Collection[str], table: str) -> None:
    if label in registry and label != method:
        raise UsageError(f"{table}.{label} is called like a registered method but is {method}; choose another label")
