from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, EFRAPReleased, Nearest, rounding_method
from quantinel.defenses.efrap_objective import flip_costs
from quantinel.errors import UsageError
from quantinel.model.graph import FloatGraph, Layer
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.ranges import weight_scales
from quantinel.quantization.reconstruction import Chain, LayerProblem, choose_codes
from quantinel.quantization.rounding import nearest_codes, rounding_cell
from quantinel.quantization.scheme import QuantScheme, parse_scheme


def mean_error(graph: FloatGraph, images: ImageSet, method: EFRAP | Nearest) -> float:
    model, _ = choose_codes(graph, calibrate(graph, images, parse_scheme("int4")), method)
    return float((model.simulate()(images.as_float()) - graph(images.as_float())).square().mean())


def test_reconstruction_brings_outputs_closer_to_float(odd_graph: FloatGraph, images: ImageSet) -> None:
    nearest = mean_error(odd_graph, images, Nearest())
    assert mean_error(odd_graph, images, EFRAP(flip_weight=0.0)) < 0.6 * nearest


def test_layer_errors_fall(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    _, outcomes = choose_codes(odd_graph, ranges, EFRAP(flip_weight=0.0, damping=0.0))
    for outcome in outcomes:
        assert outcome.error_nearest is not None
        assert outcome.error_chosen is not None
        assert outcome.error_chosen <= outcome.error_nearest * (1 + 1e-3) + 1e-9


def test_flip_weight_moves_codes_away_from_nearest(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int8"))
    shares = []
    for weight in (0.0, 1.0, 100.0):
        model, _ = choose_codes(odd_graph, ranges, EFRAP(flip_weight=weight))
        nearest, _ = choose_codes(odd_graph, ranges, Nearest())
        total = sum(codes.numel() for codes in model.codes.values())
        shares.append(sum(int((model.codes[k] != nearest.codes[k]).sum()) for k in model.codes) / total)
    assert shares[0] < shares[1] < shares[2]
    assert shares[2] > 0.8


def test_flip_only_flips_everything_that_can(odd_graph: FloatGraph, images: ImageSet) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int8"))
    model, _ = choose_codes(odd_graph, ranges, EFRAP(activation_weight=0.0))
    for layer in model.layers.values():
        weight = odd_graph.weight(layer.layer)
        cell = rounding_cell(weight, layer.scale, model.scheme)
        nearest = nearest_codes(weight, layer.scale, model.scheme)
        costly = cell.free & (cell.error > 0)
        assert (layer.codes[costly] != nearest[costly]).all()


def isolated(weight: torch.Tensor, step: float) -> LayerProblem:
    """A layer whose output does not depend on its weight: only the flip and binary terms act."""
    scheme = QuantScheme(weight_bits=8)
    scale = torch.full((weight.shape[0],), step)
    chain = Chain(torch.zeros(4, 1), torch.zeros(4, 1), torch.zeros(4, 1), lambda x, w: x + 0 * w.sum(), 1)
    layer = Layer("isolated", "isolated", "linear", "w", None, 1)
    return LayerProblem(layer, weight, scale, rounding_cell(weight, scale, scheme), scheme, 0, None, chain)


@pytest.mark.parametrize("step", [0.005, 0.01, 0.02])
def test_released_flip_rule(step: float) -> None:
    """Specification of the defenses, 1.3: an isolated weight flips iff its fraction exceeds 0.5 - 12.5 s."""
    fractions = torch.linspace(0.27, 0.49, 45).reshape(1, -1)
    problem = isolated((fractions + 3) * step, step)
    codes = EFRAPReleased(iterations=600, learning_rate=0.015, batch_size=1).choose(problem)
    flipped = codes[0] == 4
    predicted = fractions[0] > 0.5 - 12.5 * step
    assert (flipped == predicted).float().mean() > 0.95


def test_a_training_that_diverges_is_an_error() -> None:
    """Regression: NaN is not at least 0, so every weight was rounded down, silently."""
    problem = isolated(torch.linspace(0.1, 0.9, 9).reshape(1, -1), 0.01)
    zeros = torch.zeros(4, 1)
    broken = Chain(zeros, zeros, zeros, lambda x, w: x + torch.inf * w.sum(), 1)
    with pytest.raises(UsageError, match="layer isolated diverged; lower learning_rate"):
        EFRAPReleased(iterations=3).choose(dataclasses.replace(problem, chain=broken))


def test_soft_weight_starts_at_the_float_weight() -> None:
    weight = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scale = weight_scales(weight, QuantScheme())
    cell = rounding_cell(weight, scale, QuantScheme())
    soft = scale[:, None] * (cell.floor + torch.sigmoid(torch.logit(cell.fraction.clamp(1e-6, 1 - 1e-6))))
    torch.testing.assert_close(soft, weight, atol=1e-5 * float(scale.max()), rtol=0)


def test_released_and_closed_form_agree_on_reconstruction(odd_graph: FloatGraph, images: ImageSet) -> None:
    """Without the flip term both minimise the same error; each must beat nearest rounding clearly."""
    ranges = calibrate(odd_graph, images, parse_scheme("int4-weight-only"))
    released = EFRAPReleased(iterations=300, learning_rate=0.02, flip_weight=0.0, binary_weight=1e-7)
    _, by_adam = choose_codes(odd_graph, ranges, released)
    _, closed = choose_codes(odd_graph, ranges, EFRAP(flip_weight=0.0, damping=0.0))

    def total(outcomes: object) -> tuple[float, float]:
        rows = list(outcomes)  # type: ignore[call-overload]
        return math.fsum(row.error_nearest for row in rows), math.fsum(row.error_chosen for row in rows)

    assert total(by_adam)[1] < total(by_adam)[0]
    assert total(closed)[1] <= 1.05 * total(by_adam)[1]


def test_neuron_costs_weigh_channels_by_their_error_norm(odd_graph: FloatGraph, images: ImageSet) -> None:
    seen: list[LayerProblem] = []

    @dataclasses.dataclass(frozen=True)
    class Spy(EFRAP):
        def choose(self, problem: LayerProblem) -> torch.Tensor:
            seen.append(problem)
            return super().choose(problem)

    choose_codes(odd_graph, calibrate(odd_graph, images, parse_scheme("int8")), Spy())
    problem = seen[0]
    plain, neuron = flip_costs(problem, "step"), flip_costs(problem, "neuron")
    ratio = (neuron / plain.clamp_min(1e-20))[plain > 0]
    assert ratio.std() > 0
    assert 0.5 < float(neuron.sum() / plain.sum()) < 2.0


def test_unknown_method() -> None:
    with pytest.raises(UsageError, match="choose one of"):
        rounding_method("magic")


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (EFRAP, {"sweeps": -5}),
        (EFRAP, {"flip_weight": float("nan")}),
        (EFRAP, {"flip_error": "magic"}),
        (EFRAPReleased, {"batch_size": 0}),
        (EFRAPReleased, {"normalization": "none"}),
    ],
)
def test_bad_options_are_refused(method: type[EFRAP] | type[EFRAPReleased], options: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        method(**options)  # type: ignore[arg-type]
