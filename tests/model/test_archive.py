"""Reading .pt2 archives: what torch.export.save writes comes back equal."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.model.archive_files import SharedReLU, Tiny, Tokens, export
from torch import Tensor, nn
from torch.export import Dim

from quantinel.errors import InputError
from quantinel.model.archive import load_pt2, parse_pt2, read_file
from quantinel.model.graph import trace
from quantinel.model.zoo import ViT


@pytest.mark.parametrize(
    ("make", "batch", "options"),
    [
        pytest.param(SharedReLU, 1, {}, id="cnn-static-1"),
        pytest.param(SharedReLU, 4, {}, id="cnn-static-4"),
        pytest.param(SharedReLU, 2, {"dynamic_shapes": ({0: Dim("n", min=2, max=64)},)}, id="cnn-dynamic-min-2"),
        pytest.param(SharedReLU, 1, {"strict": True}, id="cnn-strict"),
        pytest.param(SharedReLU, 2, {"dynamic_shapes": ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},)}, id="cnn-any-size"),
        pytest.param(Tokens, 1, {}, id="tokens-static-1"),
        pytest.param(Tokens, 1, {"decompose": True}, id="tokens-core-aten"),
        pytest.param(lambda: ViT(7, 3, 16, 4, 16, 1, 4), 1, {}, id="vit-static-1"),
        pytest.param(lambda: ViT(7, 3, 16, 4, 16, 1, 4), 1, {"decompose": True}, id="vit-core-aten"),
        pytest.param(lambda: ViT(7, 3, 16, 4, 16, 1, 4), 2, {"dynamic_shapes": ({0: Dim.AUTO},)}, id="vit-dynamic"),
    ],
)
def test_round_trip(make: Callable[[], nn.Module], batch: int, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = make().eval()
    path = tmp_path / "model.pt2"
    path.write_bytes(export(original, torch.rand(batch, 3, 16, 16), **options))

    exported = load_pt2(path)

    assert exported.input_shape == (3, 16, 16)
    assert exported.batch_size == (None if "dynamic_shapes" in options else batch)
    assert not exported.module.training
    kept = dict(exported.module.state_dict()).items()
    assert all(torch.equal(tensor, original.state_dict()[name]) for name, tensor in kept if name != "gain")
    assert {name for name, _ in exported.module.named_parameters()} == {name for name, _ in original.named_parameters()}
    for size in (1, 2, 5):
        images = torch.rand(size, 3, 16, 16)
        before = images.clone()
        with torch.no_grad():
            torch.testing.assert_close(exported.module(images), original(images.clone()), rtol=1e-5, atol=1e-5)
        assert torch.equal(images, before), "the caller's images are not overwritten"


def test_batch_behind_the_tokens() -> None:
    """Regression: attention with the batch in the middle merges it behind the tokens, (T, N, C) to (T N, C)."""

    class Sequence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches = nn.Conv2d(3, 16, 4, 4)
            self.attention = nn.MultiheadAttention(16, 4)
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).permute(2, 0, 1)
            return self.head((x + self.attention(x, x, x)[0]).mean(0))

    original = Sequence().eval()
    module = parse_pt2(export(original, torch.rand(1, 3, 16, 16)), "model.pt2").module
    images = torch.rand(5, 3, 16, 16)
    torch.testing.assert_close(module(images), original(images), rtol=1e-4, atol=1e-5)


def test_float_noise_that_a_network_magnifies_does_not_look_like_a_mixed_batch() -> None:
    """Regression: an untrained deep network was refused with the advice to call model.eval()."""

    class Chaotic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x).mean((2, 3))
            for _ in range(12):
                x = torch.sin(9.0 * x)
            return self.head(x)

    original = Chaotic().eval()
    module = parse_pt2(export(original, torch.rand(1, 3, 16, 16)), "model.pt2").module
    assert module(torch.rand(2, 3, 16, 16)).shape == (2, 4)


def test_result_is_differentiable_and_can_be_exported_again(static: bytes) -> None:
    module = parse_pt2(static, "model.pt2").module
    module(torch.rand(2, 3, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())
    assert [layer.kind for layer in trace(module, (3, 4, 4)).layers] == ["linear"]


def test_agrees_with_torch_export_load_on_a_trusted_file(static: bytes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = torch.export.load(io.BytesIO(static)).module()
        images = torch.rand(1, 3, 4, 4)
        torch.testing.assert_close(parse_pt2(static, "model.pt2").module(images), reference(images), rtol=0, atol=0)


def test_shared_weights_stay_shared() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 3)
            self.second = nn.Linear(3, 3)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x.mean((2, 3))))

    module = parse_pt2(export(Tied().eval(), torch.rand(1, 3, 4, 4)), "model.pt2").module
    pointers = [parameter.data_ptr() for name, parameter in module.named_parameters() if "weight" in name]
    assert len(set(pointers)) == 1


def test_single_output_in_a_dictionary_is_fine() -> None:
    class Wrapped(Tiny):
        def forward(self, x: Tensor) -> Any:
            return {"logits": super().forward(x)}

    exported = parse_pt2(export(Wrapped().eval(), torch.rand(1, 3, 4, 4)), "model.pt2")
    assert exported.module(torch.rand(2, 3, 4, 4)).shape == (2, 3)


def test_read_file_limits_its_size(tmp_path: Path) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(11))
    with pytest.raises(InputError, match="limit of 10"):
        read_file(path, limit=10)
