"""Networks on sequences beside their own forward: genomics, a transformer, an LSTM."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from forward import Variant, beside_forward
from images import noise
from networks import Encoder, Genomics, Recurrent, export, made
from results import Result
from timing import Array

import onnxlift

LENGTH = 2114
SAMPLES, SHUFFLES = 4, 20


def genome() -> tuple[Array, Array]:
    """One-hot sequences `[N, 4, L]` and their dinucleotide shuffles `[N, K, 4, L]`, float32."""
    letters = np.random.default_rng(0).integers(0, 4, (SAMPLES, LENGTH))
    x = np.eye(4, dtype=np.float32)[letters].transpose(0, 2, 1).copy()
    return x, onnxlift.references.dinuc_shuffle(x, SHUFFLES)


def genomics_network(x: Array, path: Path) -> Genomics:
    """The network, and its ONNX file with the outputs "profile" and "counts"."""
    given = torch.from_numpy(x)
    network = made(Genomics, given)
    export(network, given, path, ("profile", "counts"))
    assert isinstance(network, Genomics)
    return network


def measure_genomics(folder: Path) -> Result:
    x, references = genome()
    path = folder / "genomics.onnx"
    genomics_network(x, path)
    every = np.concatenate([x, references.reshape(-1, *x.shape[1:])])
    options = {"output": "counts", "reference": "grouped"}
    return beside_forward(path, x, every, [Variant("grouped", references, 2.5, options)])


def measure_bert(folder: Path) -> Result:
    x = noise(8, 128, 256)
    given = torch.from_numpy(x)
    path = export(made(Encoder, given), given, folder / "bert.onnx")
    return beside_forward(path, x, x, [Variant("paired", np.zeros_like(x), 3.6, {"target": 0})])


def measure_lstm(folder: Path) -> Result:
    x = noise(16, 100, 64)
    given = torch.from_numpy(x)
    path = export(made(Recurrent, given), given, folder / "lstm.onnx")
    return beside_forward(path, x, x, [Variant("paired", np.zeros_like(x), 8, {})])
