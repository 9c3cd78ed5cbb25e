"""GPTQ: the closed form of its compensation, and what it is worth."""

from __future__ import annotations

import pytest
import torch
from tests.defenses.support import correlated, moments_of, output_error, problem

from quantinel.data.images import ImageSet
from quantinel.defenses import EFRAP, GPTQ, Nearest
from quantinel.defenses.gptq import compensate
from quantinel.errors import UsageError
from quantinel.model.graph import FloatGraph
from quantinel.quantization import statistics
from quantinel.quantization.calibration import calibrate
from quantinel.quantization.moments import DenseMoments
from quantinel.quantization.reconstruction import choose_codes
from quantinel.quantization.scheme import QuantScheme, parse_scheme
from quantinel.quantization.statistics import InputStatistics

X = correlated(400, 150)
W = torch.randn(6, 150, generator=torch.Generator().manual_seed(1))


def test_each_column_is_compensated_by_the_least_squares_solution() -> None:
    """After rounding column j the free columns must solve their least-squares problem given all rounded ones."""
    gram = (X.T @ X / len(X)).double()[None, :12, :12] + 0.01 * torch.eye(12)
    weight, scale, scheme = W[None, :, :12].double(), torch.full((1, 6, 1), 0.3).double(), QuantScheme(weight_bits=4)
    codes = compensate(weight, gram, scale, scheme)
    current = weight.clone()
    for j in range(12):
        expected = torch.round(current[..., j] / 0.3).clamp(-7, 7)
        assert torch.equal(codes[..., j], expected)
        current[..., j] = expected * 0.3
        done, free = slice(0, j + 1), slice(j + 1, 12)
        error = current[..., done] - weight[..., done]
        current[..., free] = weight[..., free] - torch.linalg.solve(
            gram[:, free, free], (error @ gram[:, done, free]).transpose(1, 2)
        ).transpose(1, 2)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = problem(W, step=0.3, bits=4, statistics=moments_of(X, W))
    whole = GPTQ().choose(made)
    monkeypatch.setattr("quantinel.defenses.gptq._BLOCK", 7)
    assert torch.equal(GPTQ().choose(made), whole)


@pytest.mark.parametrize("order", ["given", "activations"])
def test_it_beats_nearest_rounding_and_comes_near_coordinate_descent(order: str) -> None:
    made = problem(W, step=0.3, bits=4, statistics=moments_of(X, W))
    nearest, closed, found = (
        output_error(X, W, method.choose(made), 0.3)
        for method in (Nearest(), EFRAP(flip_weight=0.0), GPTQ(order=order))  # type: ignore[arg-type]
    )
    assert found < 0.5 * nearest
    assert found < 6 * closed  # greedy, and one pass


def test_the_float_target_undoes_errors_of_earlier_layers() -> None:
    made = problem(W, step=0.3, bits=8, statistics=moments_of(X, W, drift=0.1))
    own = output_error(X, W, GPTQ().choose(made), 0.3, drift=0.1)
    float_target = output_error(X, W, GPTQ(target="float", damping=1e-4).choose(made), 0.3, drift=0.1)
    assert float_target < 0.3 * own


def test_inputs_that_are_never_seen_keep_nearest_codes() -> None:
    x = X.clone()
    x[:, 40:60] = 0
    made = problem(W, step=0.3, bits=4, statistics=moments_of(x, W))
    assert torch.equal(GPTQ().choose(made)[:, 40:60], Nearest().choose(made)[:, 40:60])


def test_groups_are_independent() -> None:
    halves = [X[:, :70], X[:, 70:140]]
    gram = torch.stack([half.T @ half / len(X) for half in halves])
    weight = torch.cat([W[:3, :70], W[3:, :70]])
    together = problem(weight, 0.3, 4, statistics=InputStatistics(DenseMoments(gram=gram), 0.0, 1.0, len(X)))
    codes = GPTQ().choose(together)
    for part, half in enumerate(halves):
        rows = weight[3 * part : 3 * part + 3]
        alone = GPTQ().choose(problem(rows, 0.3, 4, statistics=moments_of(half, rows)))
        assert torch.equal(codes[3 * part : 3 * part + 3], alone)


def test_wide_layers_are_compensated_in_chunks(
    odd_graph: FloatGraph, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = calibrate(odd_graph, images, parse_scheme("int4"))
    monkeypatch.setattr(statistics, "WIDEST", 10)
    monkeypatch.setattr("quantinel.defenses.gptq.WIDEST", 10)
    _, outcomes = choose_codes(odd_graph, ranges, GPTQ())
    total = [sum(getattr(row, name) for row in outcomes) for name in ("error_chosen", "error_nearest")]
    assert total[0] < total[1]


@pytest.mark.parametrize("width", [40, 75])
def test_the_float_target_undoes_an_error_once_however_many_chunks_there_are(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = problem(W, step=0.1, bits=8, statistics=moments_of(X, W, drift=0.1))
    method = GPTQ(target="float", damping=1e-3)
    nearest, whole = (output_error(X, W, each.choose(made), 0.1, drift=0.1) for each in (Nearest(), method))
    monkeypatch.setattr("quantinel.defenses.gptq.WIDEST", width)
    chunked = output_error(X, W, method.choose(made), 0.1, drift=0.1)
    assert chunked < 0.2 * nearest
    assert chunked < 3 * whole


@pytest.mark.parametrize("target", ["own", "float"])
def test_moments_that_cannot_be_inverted_are_an_error_that_says_what_to_do(target: str) -> None:
    few = torch.cat([X[:20], X[:20]], dim=1)  # 20 vectors, and every input twice
    weight = torch.cat([W, W], dim=1)
    made = problem(weight, step=0.3, statistics=moments_of(few, weight))
    with pytest.raises(UsageError, match="raise damping"):
        GPTQ(target=target, damping=0.0).choose(made)  # type: ignore[arg-type]
