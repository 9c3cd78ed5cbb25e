from __future__ import annotations

from pathlib import Path

import pytest
from tests.bench.fakes import HEAD, SMALL, write_suite

from quantinel.bench.cells import expand
from quantinel.bench.published import check_published
from quantinel.bench.suite_files import BUNDLED, find_suite, load_suite, suite_names
from quantinel.errors import InputError, QuantinelError, UsageError


def check(folder: Path, text: str) -> None:
    """All that happens before any work."""
    suite = write_suite(folder, text)
    check_published(suite, expand(suite))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("limit = 50", "limits = 50", r"run\.limits: unknown; did you mean 'limit'"),
        ("limit = 50", 'limit = "50"', r"run\.limit: .*integer"),
        ("limit = 50", "limit = true", r"run\.limit: .*integer"),
        ("limit = 50", "limit = 0", r"run\.limit: .*greater"),
        ("limit = 50", 'backend = "tpu"', r"run\.backend: .*onnxruntime"),
        ("limit = 50", "seeds = []", r"run\.seeds: .*at least 1"),
        ("limit = 50", "seeds = [-1]", r"run\.seeds\.0: .*greater"),
        ('title = "Fake"', 'titel = "Fake"', r"title: .*equired; titel: unknown; did you mean 'title'"),
        ('title = "Fake"', 'title = "Fake"\nname = "x"', "remove 'name'"),
        ("[data.d]\ntest", "[data.d]\ntests", r"data\.d\.tests: unknown; did you mean 'test'"),
        (
            'victim = "bundled:victim_int8"',
            'victim = "bundled:victim_int8"\ntrigger = { kind = "patch" }\ntarget_class = 0',
            "brings its own trigger",
        ),
        ('data = "d"', 'dta = "d"', r"models\.v\.dta: unknown; did you mean 'data'"),
        ('data = "d"', 'data = "dd"', "unknown data of models.v: 'dd'; did you mean 'd'"),
        ('"bundled:victim_int8"', '"bundled:victim_int9"', "bundled:victim_int9"),
        ('"vgg_small"', '"vgg_smal"', "architecture of models.fresh: 'vgg_smal'; did you mean 'vgg_small'"),
        ("epochs = 1", "epoch = 1", r"models\.fresh\.training has no option 'epoch'; did you mean 'epochs'"),
        ("epochs = 1", 'epochs = "many"', r"models\.fresh\.training: epochs is 'many'"),
        ('"pq-backdoor"', '"pq-backdor"', "unknown attack 'pq-backdor'; did you mean 'pq-backdoor'"),
        ("plant_steps = 4", "plant_step = 4", r"attacks\.short has no option 'plant_step'; did you mean 'plant_steps'"),
        ("plant_steps = 4", "plant_steps = 4.5", r"attacks\.short: plant_steps is 4\.5"),
        ('schemes = ["int4"]', 'scheme = ["int4"]', r"attacks\.short\.scheme: unknown; did you mean 'schemes'"),
        ('schemes = ["int4"]', 'schemes = ["int3.5"]', "int3.5"),
        ('"efrap-released"', '"efrap-relased"', "unknown defense 'efrap-relased'; did you mean 'efrap-released'"),
        ("iterations = 5", "iteration = 5", r"defenses\.quick has no option 'iteration'; did you mean 'iterations'"),
        ("iterations = 5", "iterations = -5", r"defenses\.quick: "),
        ("[defenses.quick]", "[defenses.nearest]", r"defenses\.nearest is called like a registered method"),
        ("[defenses.quick]", '[defenses."a/b"]', r"defenses\.a/b: a label holds"),
        ("[attacks.short]", "[attacks.none]", r"attacks\.none: a label holds"),
        ("[defenses.quick]", "[defenses.weight-residuals]", "weight-residuals is a defense and a detector"),
        ('models = "v"', 'models = "w"', "unknown model 'w'"),
        ('models = "v"', 'models = "v"\nattacks = "shrt"', "unknown attack 'shrt'; did you mean 'short'"),
        ('models = "v"', 'models = "v"\ncalibration = "othr"', "unknown data 'othr'; did you mean 'other'"),
        ('defenses = "nearest"', 'defenses = "neares"', "unknown defense 'neares'; did you mean 'nearest'"),
        ('defenses = "nearest"', 'detectors = "weight-residual"', "unknown detector .*; did .* 'weight-residuals'"),
        ('defenses = "nearest"', 'defense = "nearest"', r"cells\.0\.defense: unknown; did you mean 'defenses'"),
        ('defenses = "nearest"', 'defenses = "@all"', "unknown group 'all'; none exists"),
        ('schemes = "own"', 'schemes = "int88x"', "int88x"),
        ('schemes = "own"', "", r"cells\.0: defenses and detectors need schemes"),
        ('defenses = "nearest"', "", r"cells\.0: schemes and calibration need defenses or detectors"),
        ('schemes = "own"', "schemes = [1]", r"cells\.0\.schemes\.0: .*string"),
    ],
)  # fmt: skip
def test_what_means_nothing_is_an_error_before_any_work(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert SMALL.count(old)
    with pytest.raises(QuantinelError, match=message):
        check(tmp_path, SMALL.replace(old, new, 1))


def test_the_suite_that_the_mistakes_are_made_in_is_right(tmp_path: Path) -> None:
    check(tmp_path, SMALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[models.x]\ndata = "d"\n', "exactly one of victim, weights and training"),
        ('[models.x]\ndata = "d"\nvictim = "a"\nweights = "b"\n', "exactly one of victim, weights and training"),
        ('[models.x]\ndata = "d"\nweights = "b"\n', "need an architecture"),
        ('[models.x]\ndata = "d"\nvictim = "a"\ntarget_class = 0\n', "trigger and target_class belong together"),
        (
            '[models.x]\ndata = "d"\nweights = "a"\narchitecture = "resnet20"\ntarget_class = 0\n'
            'trigger = { kind = "pach" }\n',
            r"models\.x\.trigger: .*pach",
        ),
        ('[detectors.x]\nmethod = "weight-residuals"\nsettings = { placebo = 1 }\n', "detectors.x has no option"),
        ('[detectors.x]\nmethod = "weight-residual"\n', "unknown detector 'weight-residual'"),
        ('[[published]]\nsource = "s"\ntolerance = 1.0\n', "published: s gives no figure"),
        ('[[published]]\nsource = "s"\ncda = 1.0\n', r"published\.0\.tolerance: .*required"),
        ('[[published]]\nsource = "s"\ncdaa = 1.0\ntolerance = 1.0\n', r"published\.0\.cdaa: unknown; .*'cda'"),
        ('[[published]]\nsource = "s"\ndefense = "efrap"\ncda = 1.0\ntolerance = 1.0\n', "no cell has defense efrap"),
        ("[groups]\na = ['@b']\nb = ['@a']\n[[cells]]\nmodels = '@a'\n", "groups.a contains itself"),
        ("[run2]\n", "run2: unknown; did you mean 'run'"),
        ('include = "x.toml"\n', "include is a list"),
    ],
)
def test_other_mistakes(tmp_path: Path, text: str, message: str) -> None:
    whole = text + SMALL if text.startswith("include") else SMALL + text
    with pytest.raises(QuantinelError, match=message):
        check(tmp_path, whole)


def test_an_attack_without_schemes_takes_none(tmp_path: Path) -> None:
    from quantinel.attacks import ATTACKS

    for name, attack in ATTACKS.items():
        text = SMALL + f'[attacks.x]\nmethod = "{name}"\nschemes = ["int8"]\n'
        if hasattr(attack.config(), "schemes"):
            check(tmp_path, text)
        else:
            with pytest.raises(UsageError, match=r"attacks\.x takes no schemes"):
                check(tmp_path, text)


def test_includes_share_tables_and_must_not_clash(tmp_path: Path) -> None:
    (tmp_path / "_shared.toml").write_text('[defenses.slow]\nmethod = "efrap"\n[groups]\nall = ["slow", "nearest"]\n')
    text = 'include = ["_shared.toml"]\n' + SMALL.replace('"nearest"', '"@all"')
    suite = write_suite(tmp_path, text)
    assert [cell.defense for cell in expand(suite)] == ["none", "slow", "nearest"]
    (tmp_path / "_shared.toml").write_text('[defenses.quick]\nmethod = "efrap"\n')
    with pytest.raises(InputError, match=r"defenses\.quick is defined here and in _shared\.toml"):
        write_suite(tmp_path, 'include = ["_shared.toml"]\n' + SMALL)
    (tmp_path / "_shared.toml").write_text("[run]\nlimit = 1\n")
    with pytest.raises(InputError, match="'run' cannot be included"):
        write_suite(tmp_path, 'include = ["_shared.toml"]\n' + SMALL)
    (tmp_path / "_shared.toml").write_text("models = 3\n")
    with pytest.raises(InputError, match="models is a table"):
        write_suite(tmp_path, 'include = ["_shared.toml"]\n' + SMALL)


def test_files_that_are_no_suites(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing\.toml cannot be read"):
        load_suite(tmp_path / "missing.toml")
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not TOML"):
        load_suite(tmp_path / "x.toml")
    with pytest.raises(InputError, match="is not TOML"):
        write_suite(tmp_path, "a = [")


def test_suites_are_found_by_name(tmp_path: Path) -> None:
    write_suite(tmp_path, SMALL, "mine")
    (tmp_path / "_shared.toml").write_text("")
    assert suite_names(tmp_path) == sorted(["mine", *suite_names(None)])
    assert find_suite("mine", tmp_path) == tmp_path / "mine.toml"
    assert find_suite("smoke", tmp_path) == BUNDLED / "smoke.toml"
    with pytest.raises(UsageError, match=r"unknown suite 'mime'.*mine"):
        find_suite("mime", tmp_path)


def test_only_suites_that_name_the_root_need_it(tmp_path: Path) -> None:
    assert not write_suite(tmp_path, SMALL).uses_root
    assert write_suite(tmp_path, HEAD.replace("bundled:test", "{root}/x", 1) + '[[cells]]\nmodels = "v"').uses_root


def test_committed_suites_are_right() -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "suites"
    for path in (*folder.glob("[!_]*.toml"), *BUNDLED.glob("[!_]*.toml")):
        suite = load_suite(path)
        check_published(suite, expand(suite))


def test_suites_gather_the_cells_of_others(tmp_path: Path) -> None:
    for name, defense in (("a", "nearest"), ("b", "efrap")):
        text = SMALL.replace('defenses = "nearest"', f'defenses = "{defense}"')
        (tmp_path / f"{name}.toml").write_text(text, "utf-8")
    whole = tmp_path / "whole.toml"
    whole.write_text('title = "All"\nsuites = ["a", "b"]\n', "utf-8")
    cells = [cell.id for cell in expand(load_suite(whole))]
    single = [cell.id for name in "ab" for cell in expand(load_suite(tmp_path / f"{name}.toml"))]
    assert cells == list(dict.fromkeys(single))
    (tmp_path / "b.toml").write_text(SMALL.replace("bundled:test", "bundled:calibration"), "utf-8")
    with pytest.raises(InputError, match=r"data\.\w+ of the suite b means something else here"):
        load_suite(whole)
    (tmp_path / "b.toml").write_text('title = "B"\nsuites = ["a"]\n', "utf-8")
    with pytest.raises(InputError, match="b gathers suites itself"):
        load_suite(whole)
    whole.write_text('title = "All"\nsuites = "a"\n', "utf-8")
    with pytest.raises(InputError, match="suites is a list of names"):
        load_suite(whole)
