"""Everything that onnxlift refuses, as one family of exceptions.

A message is one paragraph: what is wrong, where (node, tensor, file), and what to do about it.
The command line prints it and exits with status 2; nobody sees a traceback for a bad model or a wrong name.
"""

from __future__ import annotations

from collections.abc import Iterable


class OnnxliftError(Exception):
    """Base class: whatever onnxlift itself refuses."""


class ModelError(OnnxliftError):
    """The model file cannot be read, is not valid ONNX, or lacks its external data."""


class OptionError(OnnxliftError):
    """An argument does not fit the model: an unknown name, a target out of range, a wrong reference."""


class RuleError(OnnxliftError):
    """Importance would have to pass through nodes that no rule covers; the message names all of them."""


class DataError(OnnxliftError):
    """The arrays to explain do not fit the explainer: shape, dtype, missing name, NaN."""


class Unsupported(Exception):
    """A rule exists for an operator but not for this node; says why. Never seen outside: a RuleError lists them all."""


def listed(names: Iterable[object]) -> str:
    """Names for a message: 'a', 'b'."""
    return ", ".join(map(repr, names))


def shown(dims: Iterable[object]) -> str:
    """A shape or an index for a message: [batch, 3, ?]."""
    return "[" + ", ".join("?" if dim is None else str(dim) for dim in dims) + "]"
