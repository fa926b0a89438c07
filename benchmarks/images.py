"""Image classifiers beside their own forward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from forward import FORWARD, Variant, beside_forward, feed, rewritten
from networks import export, made, resnet18, small_cnn, vgg16
from operators import profile
from results import Result, ratio
from timing import Array, interleaved, runs
from torch import nn

import onnxlift

IMAGE = (3, 224, 224)


def noise(*shape: int) -> Array:
    """Seeded normal numbers, float32."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def measure_resnet18(folder: Path) -> Result:
    return _classifier(resnet18, folder / "resnet18.onnx", noise(8, *IMAGE), 2.1, 3.0)


def measure_vgg16(folder: Path) -> Result:
    return _classifier(vgg16, folder / "vgg16.onnx", noise(4, *IMAGE), 2.1, None)


def _classifier(
    build: Callable[[], nn.Module], path: Path, x: Array, baked_goal: float | None, paired_goal: float | None
) -> Result:
    samples = torch.from_numpy(x)
    export(made(build, samples), samples, path)
    variants = [
        Variant("zeros, baked", None, baked_goal, {"target": 0, "reference": "zeros"}),
        Variant("paired", np.zeros_like(x), paired_goal, {"target": 0}),
    ]
    return beside_forward(path, x, x, variants)


def measure_references(folder: Path) -> Result:
    """64 samples with 20 shared references: cost of a pair over that of a sample with its own reference."""
    samples, count = 64, 20
    x = noise(samples + count, 1, 28, 28)
    x, references = x[:samples], x[samples:]
    given = torch.from_numpy(x)
    model = export(made(small_cnn, given), given, folder / "small_cnn.onnx")
    explainer = onnxlift.Explainer(model, target=0, reference="shared", progress=False)
    one, many = feed(x, noise(*x.shape)[::-1].copy()), feed(x, references)
    actions = {
        FORWARD: runs(model, {"x": x}),
        "paired": runs(rewritten(model, target=0), one),
        "shared": runs(rewritten(model, target=0, reference="shared"), many),
        "shared, Explainer": partial(explainer, many),
    }
    times = interleaved(actions)
    result = Result(
        [
            ratio(f"{name}: a pair over a paired sample", times, (name, "paired"), 0.5, 1 / count)
            for name in ("shared", "shared, Explainer")
        ]
    )
    result.rows.append(ratio("paired, over the model's forward", times, ("paired", FORWARD)))
    if any(line.reached is False for line in result.rows):
        result.operators["shared"] = profile(rewritten(model, target=0, reference="shared"), many)
    gap = explainer(many).relative_gap.max()
    result.notes.append(f"shared: the completeness gap is at most {gap:.1e} of the difference.")
    return result
