"""onnxlift: rewrite any ONNX model into one that also computes DeepLIFT contributions."""

from onnxlift.errors import DataError, ModelError, OnnxliftError, OptionError, RuleError
from onnxlift.plan import Choice, Plan
from onnxlift.rewrite import rewrite, rewrite_file

__all__ = [
    "Choice",
    "DataError",
    "ModelError",
    "OnnxliftError",
    "OptionError",
    "Plan",
    "RuleError",
    "rewrite",
    "rewrite_file",
]
