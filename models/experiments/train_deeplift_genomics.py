"""Train deeplift_genomics.onnx, the network of DeepLIFT 4.2. Needs PyTorch and onnxscript.

Run: python models/experiments/train_deeplift_genomics.py
"""

from __future__ import annotations

import numpy as np
import torch
from genomics import GENOMIC, HERE, deeplift_counts, deeplift_labels, load_motifs, one_hot, simulate
from torch import nn
from train_liftpad_genomics import Data, export, train

SEQUENCES = 20_000


class Mean(nn.Module):
    """Global average pooling, `[N, C, L]` to `[N, C]`."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(dim=2)


def build() -> nn.Module:
    """Two convolutions of 50 filters of width 11, the mean over all places, a dense layer of 50, three outputs."""
    layers = [nn.Conv1d(4, 50, 11), nn.ReLU(), nn.Conv1d(50, 50, 11), nn.ReLU(), Mean()]
    return nn.Sequential(*layers, nn.Linear(50, 50), nn.ReLU(), nn.Dropout(0.5), nn.Linear(50, 3))


def simulated(seed: int, n: int) -> Data:
    """x `[n, 4, LENGTH]`, y `[n, 3]`."""
    rng = np.random.default_rng(seed)
    counts = deeplift_counts(rng, n)
    bases = simulate(rng, counts, load_motifs(), GENOMIC).bases
    return torch.from_numpy(one_hot(bases)), torch.from_numpy(deeplift_labels(counts).astype(np.float32))


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = simulated(1, SEQUENCES)
    net = build()
    train(net, data, simulated(2, 2000), epochs=30, rate=0.003)
    export(net, data[0], HERE / "deeplift_genomics.onnx")


if __name__ == "__main__":
    main()
