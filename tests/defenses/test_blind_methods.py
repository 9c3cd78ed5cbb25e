"""Methods that look at weights alone: their flip rules are exact (specification of the defenses, 4.1 and 4.2)."""

from __future__ import annotations

import pytest
import torch
from tests.defenses.support import problem

from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, Gaussian, Nearest, QVec, RandomFlips, Stochastic
from quantinel.errors import UsageError
from quantinel.model.graph import FloatGraph
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import parse_scheme


def uniform(rows: int = 20, columns: int = 1000) -> torch.Tensor:
    """Weights with uniform residuals, inside of the grid."""
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(5)) * 10 - 5


@pytest.mark.parametrize("strength", [0.25, 0.5, 1.0, 2.0])
def test_qvec_flips_the_largest_errors(strength: float) -> None:
    made = problem(uniform())
    codes, nearest = QVec(strength).choose(made), Nearest().choose(made)
    off = made.steps_off()
    predicted = off > 1 / (2 * (1 + strength))
    clear = (off - 1 / (2 * (1 + strength))).abs() > 1e-3
    assert torch.equal((codes != nearest)[clear], predicted[clear])
    assert float((codes != nearest).float().mean()) == pytest.approx(strength / (1 + strength), abs=0.01)
    flipped = torch.where(made.cell.nearest_is_ceil, made.cell.floor, made.cell.ceil)
    assert torch.equal(codes[codes != nearest].float(), flipped[codes != nearest])


def test_qvec_without_strength_is_nearest() -> None:
    made = problem(uniform())
    assert torch.equal(QVec(0.0).choose(made), Nearest().choose(made))


def test_stochastic_rounds_up_as_often_as_the_fraction_says() -> None:
    fraction = torch.tensor([[0.1], [0.25], [0.5], [0.9], [0.0]])
    made = problem(((fraction + 3) * 0.1).expand(5, 20_000).contiguous())
    up = (Stochastic().choose(made) == 4).float().mean(dim=1)
    torch.testing.assert_close(up, fraction[:, 0], atol=0.015, rtol=0)


def test_random_choices_differ_between_layers_runs_and_seeds_and_repeat() -> None:
    def drawn(seed: int = 0, **more: int) -> torch.Tensor:
        return Stochastic(seed=seed).choose(problem(uniform(), **more))  # type: ignore[arg-type]

    assert torch.equal(drawn(), drawn())
    for other in (drawn(seed=1), drawn(index=1), drawn(seed=0, index=2)):
        assert not torch.equal(drawn(), other)
    runs = [Stochastic().choose(problem(uniform(), seed=seed)) for seed in (0, 1)]
    assert not torch.equal(*runs)


@pytest.mark.parametrize("fraction", [0.0, 0.037, 0.5, 1.0])
def test_random_flips_are_counted(fraction: float) -> None:
    made = problem(uniform())
    codes, nearest = RandomFlips(fraction=fraction).choose(made), Nearest().choose(made)
    free = int(made.cell.free.sum())
    assert int((codes != nearest).sum()) == min(free, round(fraction * codes.numel()))


def test_random_flips_ignore_the_error() -> None:
    made = problem(uniform())
    flipped = RandomFlips(fraction=0.4).choose(made) != Nearest().choose(made)
    off = made.steps_off()
    assert float(off[flipped].mean()) == pytest.approx(float(off[~flipped].mean()), abs=0.01)


def test_random_flips_match_another_method_layer_by_layer(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    _, guided = choose_codes(odd_graph, ranges, EFRAP())
    _, control = choose_codes(odd_graph, ranges, RandomFlips(as_many_as="efrap"))
    assert [row.changed for row in control] == pytest.approx([row.changed for row in guided], abs=1e-6)
    with pytest.raises(UsageError, match="one for each"):
        choose_codes(odd_graph, ranges, RandomFlips(fractions=(0.1,)))
    with pytest.raises(UsageError, match="unknown rounding"):
        RandomFlips(as_many_as="guesses")
    with pytest.raises(UsageError, match="leave fraction and fractions out"):
        RandomFlips(as_many_as="efrap", fraction=0.5)


def test_what_a_control_matches_runs_visibly_and_can_be_stopped(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    seen: list[tuple[str, int, int]] = []
    choose_codes(odd_graph, ranges, RandomFlips(as_many_as="efrap"), progress=lambda *step: seen.append(step))
    layers = len(odd_graph.layers)
    assert seen == 2 * [("round", done + 1, layers) for done in range(layers)]


@pytest.mark.parametrize("unit", ["weight", "step"])
def test_gaussian_noise_flips_as_its_distribution_says(unit: str) -> None:
    """A weight u steps off the grid moves to another code with probability Phi(-(0.5 - u) / sigma) + the far side."""
    made = problem(torch.full((50, 4000), 0.35 + 0.02), step=0.1)
    sigma = 0.03 if unit == "weight" else 0.3
    codes = Gaussian(sigma=sigma, unit=unit).choose(made)  # type: ignore[arg-type]
    normal = torch.distributions.Normal(0.0, 0.3)
    stays = float(normal.cdf(torch.tensor(0.8)) - normal.cdf(torch.tensor(-0.2)))
    assert float((codes == 4).float().mean()) == pytest.approx(stays, abs=0.01)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (QVec, {"strength": -1.0}),
        (Gaussian, {"sigma": float("nan")}),
        (Gaussian, {"unit": "percent"}),
        (Stochastic, {"seed": -1}),
        (RandomFlips, {"fraction": 1.5}),
        (RandomFlips, {"fractions": (0.5, -0.1)}),
    ],
)
def test_bad_options_are_refused(method: type[QVec], options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options)).removesuffix("s")):
        method(**options)  # type: ignore[arg-type]
