"""The slow, plain emission: every rule in its first form, nothing shared and nothing brought together.

What makes an explainer fast must not change what it computes; `emission()` switches all of it off, so that a test can
compare.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from onnxlift import tensor, through
from onnxlift.functions import absolute, clip, maximum
from onnxlift.rows import RowEmitter
from onnxlift.rules import convolution, elementwise, max_pool, operands, pooling
from onnxlift.site import Value
from onnxlift.staged import Staged
from onnxlift.tensor import Emitter, Tensor, limits


@contextmanager
def emission() -> Iterator[None]:
    """Inside, `onnxlift.rewrite` emits the plain graph."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("onnxlift.rewrite"), "fuse", lambda graph, chooser, kept: False)
        patch.setattr(tensor, "scaled", lambda x, factor: x.emitter.op("Mul", x, x.emitter.constant(factor, x.dtype)))
        for module in (elementwise, operands):
            patch.setattr(module, "relu_slope", _relu_slope)
        patch.setattr(max_pool, "_spans", lambda site: None)
        patch.setattr(pooling, "are_tiles", lambda spans: False)
        patch.setattr(convolution, "_prefers_convolution", lambda weight, group: False)
        patch.setattr(RowEmitter, "ops", Emitter.ops)  # samples and references are repeated before they meet
        patch.setattr(Staged, "_ahead", lambda *arguments: None)  # every iteration computes its own
        patch.setattr(Staged, "_reordered", lambda staged, a, b: [a, b])
        patch.setattr(through, "_products", lambda port: [])
        yield


def _relu_slope(x: Value) -> Tensor:
    return clip(maximum(x.x, x.r) / maximum(absolute(x.x - x.r), limits(x.x).smallest), 0, 1)
