"""Convolutions: every geometry, static and dynamic sizes, and what the explainer's file contains."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift.rules.convolution import FEW_CHANNELS

MANY = FEW_CHANNELS  # input channels at which stride 1 becomes a convolution
LETTERS = "HWD"


def model(op: str, attributes: str, x: tuple[int, ...], w: tuple[int, ...], sizes: str = "", dtype: str = "float"):  # type: ignore[no-untyped-def]
    """`y = op(x, w, b)` for samples of shape `x`; `sizes` in place of the input's shape."""
    rng = np.random.default_rng(1)
    kind = np.float16 if dtype == "float16" else np.float32
    outputs = w[1] * int(attributes.split("group = ")[1].split(",")[0]) if "Transpose" in op and "group" in attributes else w["Transpose" in op]
    weights = {"w": rng.standard_normal(w).astype(kind), "b": rng.standard_normal(outputs).astype(kind)}
    sizes = sizes or ", ".join(["N", *map(str, x)])
    out = ", ".join(["N", str(outputs), *(f"O{axis}" for axis in x[1:])])
    return laws.model(f"g ({dtype}[{sizes}] x) => ({dtype}[{out}] y) {{ y = {op} <{attributes}> (x, w, b) }}", **weights)
