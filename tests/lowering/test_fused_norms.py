"""Fused normalisations: what ONNX Runtime's kernels compute, or NumPy where the CPU provider has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import Array, Case, check, f, half, one


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


# --- normalisations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("beta", [True, False])
@pytest.mark.parametrize("skip", [(2, 3, 8), (1, 3, 8), (3, 8)])
def test_skip_layer_normalization(skip: tuple[int, ...], beta: bool, bias: bool) -> None:
    inputs = {"x": f(2, 3, 8), "s": f(*skip), "g": f(8), "b": f(8) if beta else None, "c": f(8) if bias else None}
    check(
        Case(
            "SkipLayerNormalization",
            inputs,
            ["x", "s"] if len(skip) == 3 and skip[0] == 2 else ["x"],
            {"epsilon": 1e-3},
            outputs=["y", "", "", "sum"],
            dims={"x": ["batch", "length"], "s": ["batch", "length"] if skip == (2, 3, 8) else []},
        )
    )


def test_half_precision() -> None:
    x, scale = {"x": f(2, 3, 8), "s": f(2, 3, 8)}, {"g": f(8)}
    sums = ["y", "", "", "sum"]
    check(half(Case("SkipLayerNormalization", {**x, **scale, "b": f(8)}, ["x", "s"], outputs=sums)))
    check(half(Case("SkipSimplifiedLayerNormalization", {**x, **scale}, ["x", "s"], outputs=sums)))
    check(half(Case("SimplifiedLayerNormalization", {"x": x["x"], **scale}, ["x"], domain="", opset=21)))
    check(half(one("GatedRMSNorm", (2, 3, 8), (4,), (2, 3, 8))))


@pytest.mark.parametrize("bias", [True, False])
def test_skip_simplified_layer_normalization(bias: bool) -> None:
    inputs = {"x": f(2, 3, 8), "s": f(2, 3, 8), "g": f(8), **({"c": f(8)} if bias else {})}
    check(Case("SkipSimplifiedLayerNormalization", inputs, ["x", "s"], outputs=["y", "", "", "sum"]))


@pytest.mark.parametrize("attributes", [{}, {"axis": 1, "epsilon": 1e-2}, {"axis": -1, "stash_type": 1}])
def test_simplified_layer_normalization(attributes: dict[str, Any]) -> None:
    scale = f(3, 8) if attributes.get("axis") == 1 else f(8)
    case = Case("SimplifiedLayerNormalization", {"x": f(2, 3, 8), "g": scale}, ["x"], attributes, domain="", opset=21)
    check(case)


def group_norm(x: Array, g: Array, b: Array, groups: int, epsilon: float, activation: int, last: int = 1) -> Array:
    x = np.moveaxis(x, -1, 1) if last else x
    z = x.reshape(x.shape[0], groups, -1)
    z = (z - z.mean(2, keepdims=True)) / np.sqrt(z.var(2, keepdims=True) + epsilon)
    y = z.reshape(x.shape) * g[:, None, None] + b[:, None, None]
    y = y * sigmoid(y) if activation else y
    return np.moveaxis(y, 1, -1) if last else y


@pytest.mark.parametrize("activation", [0, 1])
@pytest.mark.parametrize("last", [0, 1])
def test_group_norm(activation: int, last: int) -> None:
    attributes = {"groups": 2, "activation": activation, "epsilon": 1e-2, "channels_last": last}

    def expected(x: Array, g: Array, b: Array, **_: Any) -> Array:
        return group_norm(x, g, b, 2, 1e-2, activation, last)

    x = (2, 5, 5, 6) if last else (2, 6, 5, 5)
    check(one("GroupNorm", x, (6,), (6,), attributes=attributes, expected=expected))


@pytest.mark.parametrize("skip", [(2, 5, 5, 6), (2, 1, 1, 6), (2, 6)])
def test_skip_group_norm(skip: tuple[int, ...]) -> None:
    inputs = {"x": f(2, 5, 5, 6), "g": f(6), "b": f(6), "s": f(*skip), "c": f(6)}

    def expected(x: Array, g: Array, b: Array, s: Array, c: Array, **_: Any) -> list[Array]:
        total = x + (s[:, None, None] if s.ndim == 2 else s) + c
        return [group_norm(total, g, b, 3, 1e-5, 1), total]

    attributes = {"groups": 3, "activation": 1}
    check(Case("SkipGroupNorm", inputs, ["x", "s"], attributes, outputs=["y", "sum"], expected=expected))


@pytest.mark.parametrize("activation", ["silu", "sigmoid"])
def test_gated_rms_norm(activation: str) -> None:
    inputs = {"x": f(2, 3, 8), "s": f(4), "g": f(2, 3, 8)}
    dims = {"x": ["batch"], "g": ["batch"]}
    check(Case("GatedRMSNorm", inputs, ["x", "g"], {"activation": activation}, dims=dims))


BRANCHES = {
    "grouped": ((2, 3, 4), (4,), {}),
    "grouped, scales of each": ((2, 3, 4), (3, 4), {}),
    "grouped, scales in one vector": ((2, 3, 4), (12,), {}),
    "flat": ((2, 5, 12), (4,), {"num_branches": 3}),
    "flat, scales in one vector": ((2, 5, 12), (12,), {"num_branches": 3, "epsilon": 1e-2}),
    "no scale": ((2, 3, 4), None, {}),
}


@pytest.mark.parametrize(("x", "scale", "attributes"), BRANCHES.values(), ids=BRANCHES)
def test_branchwise_rms_norm(x: tuple[int, ...], scale: tuple[int, ...] | None, attributes: dict[str, Any]) -> None:
    check(one("BranchwiseRMSNorm", x, *([scale] if scale else []), attributes=attributes))


# --- embeddings ------------------------------------------------------------------------------------------------------

IDS = np.array([[1, 2, 0], [3, 2, 1]], np.int32)
MASK = np.array([[1, 1, 0], [1, 1, 1]], np.int32)


def embedding(**changes: Array | None) -> dict[str, Array | None]:
    inputs = {
        "ids": IDS,
        "segments": IDS % 2,
        "words": f(5, 4),
        "positions": f(6, 4),
        "segment_table": f(2, 4),
        "g": f(4),
        "b": f(4),
        "mask": None,
        "position_ids": None,
    }
    return inputs | changes


EMBEDDINGS = {
    "segments": embedding(),
    "no segments": embedding(segments=None, segment_table=None),
    "mask": embedding(mask=MASK),
    "position ids": embedding(position_ids=IDS + 1),
    "shared position ids": embedding(position_ids=IDS[:1] + 1),
}


@pytest.mark.parametrize("inputs", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_embed_layer_normalization(inputs: dict[str, Array | None]) -> None:
    """Attributed to the tables: there is no other float input."""
    names = [name for name in ("words", "positions", "segment_table") if inputs[name] is not None]
    fed = [name for name in ("ids", "segments", "mask") if inputs[name] is not None]
    symbols = {name: ["batch", "length"] for name in fed}
    check(Case("EmbedLayerNormalization", inputs, names, outputs=["y", "count", "sum"], fed=fed, dims=symbols))
