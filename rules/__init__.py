"""The attribution rules, one file per idea of the papers. Importing the package fills the registry."""

from onnxlift.rules import elementwise, linear, maximum, product, shape, stop

__all__ = ["elementwise", "linear", "maximum", "product", "shape", "stop"]
