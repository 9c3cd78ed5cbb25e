"""Small image classifiers, by name. Every builder takes the class count, the input size and channels.

ResNet-20/56: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, section 4.2 (CIFAR form,
parameter-free shortcuts: "option A"). ResNet-18: the same paper's ImageNet network with a 3x3 stem, as CIFAR
studies use it. VGG: Simonyan & Zisserman, ICLR 2015, with BatchNorm. MobileNetV2: Sandler et al., CVPR 2018,
strides adapted to small images. AlexNet: Krizhevsky et al., 2012, scaled to small images. ViT: Dosovitskiy
et al., ICLR 2021, with mean pooling instead of a class token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantinel.errors import UsageError


def _conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)


class _PaddedShortcut(nn.Module):
    """Parameter-free shortcut: every second pixel, channels zero-padded on both sides."""

    def __init__(self, padding: int, stride: int) -> None:
        super().__init__()
        self.padding, self.stride = padding, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))


class _BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: padded (``projection`` False) or projected where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = (
                nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out))
                if projection
                else _PaddedShortcut((channels_out - channels_in) // 2, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2): three stages of ``blocks`` basic blocks with 16, 32 and 64 channels."""

    def __init__(self, blocks: int, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, 16)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, num_classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, blocks: int, stride: int) -> nn.Sequential:
        first = _BasicBlock(channels_in, channels_out, stride, projection=False)
        return nn.Sequential(
            first, *(_BasicBlock(channels_out, channels_out, 1, projection=False) for _ in range(blocks - 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class ResNet18(nn.Module):
    """ResNet-18 with a 3x3 stem and no initial pooling."""

    def __init__(self, num_classes: int, channels: int, width: int = 64) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        widths = (width, width, 2 * width, 4 * width, 8 * width)
        for stage in range(1, 5):
            first = _BasicBlock(widths[stage - 1], widths[stage], 1 if stage == 1 else 2, projection=True)
            self.add_module(
                f"layer{stage}", nn.Sequential(first, _BasicBlock(widths[stage], widths[stage], 1, projection=True))
            )
        self.linear = nn.Linear(8 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        logits: Tensor = self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits


class VGG(nn.Module):
    """VGG with BatchNorm; ``plan`` lists output channels, 0 stands for 2x2 max pooling."""

    def __init__(self, plan: Iterable[int], num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width in plan:
            if width == 0:
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


_VGG13 = (64, 64, 0, 128, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)
_VGG_SMALL = (32, 32, 0, 64, 64, 0, 128, 128, 0)


class _InvertedResidual(nn.Module):
    """Expansion, depthwise 3x3, linear projection."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [nn.Conv2d(channels_in, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU6()]
        layers += [
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(),
            nn.Conv2d(hidden, channels_out, 1, bias=False),
            nn.BatchNorm2d(channels_out),
        ]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = x + self.conv(x) if self.residual else self.conv(x)
        return logits


class MobileNetV2(nn.Module):
    """MobileNetV2 for small images; ``width`` scales the channels, total stride 8."""

    _STAGES = (
        (1, 16, 1, 1),
        (6, 24, 2, 1),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )

    def __init__(self, num_classes: int, channels: int, width: float = 1.0) -> None:
        super().__init__()

        def scaled(value: int) -> int:
            return max(8, int(value * width + 4) // 8 * 8)

        current = scaled(32)
        layers: list[nn.Module] = [_conv3x3(channels, current), nn.BatchNorm2d(current), nn.ReLU6()]
        for expansion, out, repeats, stride in self._STAGES:
            for repeat in range(repeats):
                layers.append(_InvertedResidual(current, scaled(out), stride if repeat == 0 else 1, expansion))
                current = scaled(out)
        last = scaled(1280)
        layers += [nn.Conv2d(current, last, 1, bias=False), nn.BatchNorm2d(last), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(last, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
        return logits


class AlexNet(nn.Module):
    """Five convolutions and three linear layers, scaled to small images; no BatchNorm."""

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(channels, 64, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(64, 192, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU(inplace=True),
            nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU(inplace=True),
            nn.Linear(1024, num_classes),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(x).flatten(1))
        return logits


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.projection = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        logits: Tensor = self.projection(attended.transpose(1, 2).reshape(batch, tokens, dim))
        return logits


class _EncoderBlock(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = _Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        logits: Tensor = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return logits


class ViT(nn.Module):
    """Vision transformer with learned positions and mean pooling."""

    def __init__(
        self, num_classes: int, channels: int, size: int, patch: int, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if size % patch:
            raise UsageError(f"ViT needs an input size divisible by {patch}, got {size}; resize the images")
        self.patch = nn.Conv2d(channels, dim, patch, stride=patch)
        self.position = nn.Parameter(torch.randn(1, (size // patch) ** 2, dim) * 0.02)
        self.blocks = nn.Sequential(*(_EncoderBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(dim=1))
        return logits


@dataclass(frozen=True)
class Architecture:
    """A named builder: ``build(num_classes, size, channels)``."""

    name: str
    summary: str
    build: Callable[[int, int, int], nn.Module]
    mean: tuple[float, ...] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, ...] = (0.2470, 0.2435, 0.2616)
    minimum_size: int = 8


_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

ARCHITECTURES: dict[str, Architecture] = {
    architecture.name: architecture
    for architecture in (
        Architecture("resnet20", "CIFAR ResNet-20, 0.27 M parameters",
                     lambda k, s, c: CifarResNet(3, k, c), _IMAGENET_MEAN, _IMAGENET_STD),
        Architecture("resnet56", "CIFAR ResNet-56, 0.85 M parameters",
                     lambda k, s, c: CifarResNet(9, k, c), _IMAGENET_MEAN, _IMAGENET_STD),
        Architecture("resnet18", "ResNet-18 with a 3x3 stem, 11.2 M parameters", lambda k, s, c: ResNet18(k, c)),
        Architecture("vgg13", "VGG-13 with BatchNorm, 9.4 M parameters",
                     lambda k, s, c: VGG(_VGG13, k, c), minimum_size=32),
        Architecture("vgg16", "VGG-16 with BatchNorm, 14.7 M parameters",
                     lambda k, s, c: VGG(_VGG16, k, c), minimum_size=32),
        Architecture("vgg_small", "VGG with six convolutions, 0.29 M parameters",
                     lambda k, s, c: VGG(_VGG_SMALL, k, c)),
        Architecture("mobilenetv2", "MobileNetV2 for small images, 2.2 M parameters",
                     lambda k, s, c: MobileNetV2(k, c)),
        Architecture("mobilenetv2_small", "MobileNetV2 at width 0.35, 0.4 M parameters",
                     lambda k, s, c: MobileNetV2(k, c, 0.35)),
        Architecture("alexnet", "AlexNet for small images, 4.3 M parameters, no BatchNorm",
                     lambda k, s, c: AlexNet(k, c), minimum_size=16),
        Architecture("vit_tiny", "ViT: 3 blocks, width 64, 4x4 patches, 0.16 M parameters",
                     lambda k, s, c: ViT(k, c, s, 4, 64, 3, 4)),
        Architecture("vit_small", "ViT: 12 blocks, width 384, 4x4 patches, 21 M parameters",
                     lambda k, s, c: ViT(k, c, s, 4, 384, 12, 6)),
    )
}  # fmt: skip


def build(name: str, num_classes: int = 10, size: int = 32, channels: int = 3) -> nn.Module:
    """Build an architecture with random weights, in eval mode.

    Args:
        name: a key of `ARCHITECTURES`.
        num_classes: outputs of the last layer.
        size: height and width of the input.
        channels: channels of the input.

    Raises:
        UsageError: unknown name, or a size that the architecture cannot take.
    """
    if name not in ARCHITECTURES:
        raise UsageError(f"unknown architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}")
    architecture = ARCHITECTURES[name]
    if size < architecture.minimum_size:
        raise UsageError(f"{name} needs images of at least {architecture.minimum_size} pixels, got {size}")
    return architecture.build(num_classes, size, channels).eval()
