"""The networks that are measured: PyTorch modules with seeded random weights, and their export to ONNX.

No module is used twice in a forward pass, and every nonlinearity is a module, because captum, shap and tangermeme hook
modules and cannot explain these networks otherwise.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

SEED = 0


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (arXiv 1512.03385, figure 5)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18: [N, 3, 224, 224] to 1000 logits."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [BasicBlock(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000))


def vgg16() -> nn.Module:
    """VGG-16: [N, 3, 224, 224] to 1000 logits."""
    layers: list[nn.Module] = []
    width = 3
    for outputs, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(convolutions):
            layers += [nn.Conv2d(width, outputs, 3, padding=1), nn.ReLU()]
            width = outputs
        layers.append(nn.MaxPool2d(2))
    dense = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers, nn.Flatten(), *dense)


def small_cnn() -> nn.Module:
    """A digit classifier: [N, 1, 28, 28] to 10 logits."""
    convolutions = [nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(64 * 25, 128), nn.ReLU(), nn.Linear(128, 10))


class DilatedLayer(nn.Module):
    """x + relu(dilated convolution of x)."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.conv, self.relu = nn.Conv1d(width, width, 3, padding=dilation, dilation=dilation), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.relu(self.conv(x))


class Genomics(nn.Module):
    """After BPNet (Avsec et al. 2021): one-hot [N, 4, L] to a profile [N, 1, L] and a count logit [N, 1]."""

    def __init__(self, width: int = 64, layers: int = 8) -> None:
        super().__init__()
        dilated = [DilatedLayer(width, 2**i) for i in range(1, layers + 1)]
        self.trunk = nn.Sequential(nn.Conv1d(4, width, 21, padding=10), nn.ReLU(), *dilated)
        self.profile = nn.Conv1d(width, 1, 75, padding=37)
        self.counts = nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(width, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.trunk(x)
        return self.profile(found), self.counts(found)

    def count_network(self) -> nn.Module:
        """The count logit alone, as a network of the same modules."""
        return nn.Sequential(self.trunk, self.counts)


class Attention(nn.Module):
    """Self-attention of several heads on [N, S, width]."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.softmax, self.out = nn.Softmax(dim=-1), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self.split(project(x)) for project in (self.query, self.key, self.value))
        weights = self.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.size))
        return self.out((weights @ v).transpose(1, 2).flatten(2))

    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.heads, self.size)).transpose(1, 2)


class EncoderLayer(nn.Module):
    """A layer of BERT's encoder (arXiv 1810.04805): normalised behind each sum."""

    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attention, self.norm1 = Attention(width, heads), nn.LayerNorm(width)
        self.dense = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.dense(x))


class Encoder(nn.Module):
    """BERT's encoder on embeddings: [N, S, width] to 2 logits, read at the first position."""

    def __init__(self, layers: int = 4, width: int = 256, heads: int = 4, inner: int = 1024) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(EncoderLayer(width, heads, inner) for _ in range(layers)))
        self.head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x)[:, 0])


class Recurrent(nn.Module):
    """A two-layer LSTM on [N, S, 64]; a logit of its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(64, 256, 2, batch_first=True), nn.Linear(256, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def convolutions(depth: int, width: int) -> nn.Module:
    """`depth` 3x3 convolutions of `width` channels on [N, width, H, W], to one logit."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 1))


def dense(depth: int, width: int) -> nn.Module:
    """`depth` dense layers of `width` neurons, to one logit."""
    layers: list[nn.Module] = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def made(build: Callable[[], nn.Module], x: Tensor) -> nn.Module:
    """The network with seeded weights, ready to run; `x` is what its layers are calibrated on.

    Random weights let signals die out or explode. So every convolution and dense layer is scaled, one after the other,
    to outputs of mean square one, and batch normalisation takes the statistics of `x`.
    """
    torch.manual_seed(SEED)
    network = build().eval()
    hooks = [module.register_forward_hook(_scale) for module in network.modules()]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return network.requires_grad_(False)


def _scale(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
    if isinstance(module, nn.BatchNorm2d):
        values = inputs[0].transpose(0, 1).flatten(1)
        module.running_mean, module.running_var = values.mean(1), values.var(1)
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        size = output.square().mean().sqrt()
        module.weight /= size
        if module.bias is not None:
            module.bias /= size
    else:
        return None
    return module.forward(*inputs)


def export(network: nn.Module, x: Tensor, path: Path, outputs: Sequence[str] = ("y",)) -> Path:
    """Write the network as ONNX, opset 17, with input "x" and a batch axis of free size."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated, and LSTMs are said to depend on the batch
        torch.onnx.export(
            network,
            (x,),
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=["x"],
            output_names=list(outputs),
            dynamic_axes={name: {0: "N"} for name in ("x", *outputs)},
        )
    return path
