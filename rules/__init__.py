"""The attribution rules, one file per idea of the papers. Importing the package fills the registry."""

from onnxlift.rules import (
    convolution,
    elementwise,
    gradient,
    linear,
    maximum,
    normalize,
    peers,
    pooling,
    product,
    proportional,
    reveal_cancel,
    shape,
    stop,
)

__all__ = [
    "convolution",
    "elementwise",
    "gradient",
    "linear",
    "maximum",
    "normalize",
    "peers",
    "pooling",
    "product",
    "proportional",
    "reveal_cancel",
    "shape",
    "stop",
]
