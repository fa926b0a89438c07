"""The attribution rules, one file per idea of the papers. Importing the package fills the registry."""

from onnxlift.rules import convolution, elementwise, linear, maximum, normalize, pooling, product, shape, stop

__all__ = ["convolution", "elementwise", "linear", "maximum", "normalize", "pooling", "product", "shape", "stop"]
