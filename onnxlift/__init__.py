"""onnxlift: rewrite any ONNX model into one that also computes DeepLIFT contributions."""

from onnxlift import references
from onnxlift.errors import DataError, ModelError, OnnxliftError, OptionError, RuleError
from onnxlift.explanation import Explanation
from onnxlift.plan import Choice, Plan
from onnxlift.rewrite import rewrite, rewrite_file
from onnxlift.runtime import CompletenessWarning, Explainer

__all__ = [
    "Choice",
    "CompletenessWarning",
    "DataError",
    "Explainer",
    "Explanation",
    "ModelError",
    "OnnxliftError",
    "OptionError",
    "Plan",
    "RuleError",
    "references",
    "rewrite",
    "rewrite_file",
]
