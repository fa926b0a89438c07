"""Operators without a rule of their own, replaced by others while a model is brought to normal form.

A *lowering* is a function from a `Call` (one node) to the tensors that take the place of its outputs. It is written
with symbolic tensors, as rules are, and computes what ONNX Runtime's kernel computes. Standard operators with a
function body need none: their body takes their place. Importing the package fills the table.
"""

import onnxlift.lowering.attention
import onnxlift.lowering.contrib
import onnxlift.lowering.fused
import onnxlift.lowering.fused_norms
import onnxlift.lowering.grouped
import onnxlift.lowering.quantised
import onnxlift.lowering.quantised_contrib
import onnxlift.lowering.quantised_weights
import onnxlift.lowering.recurrent
import onnxlift.lowering.standard  # noqa: F401
from onnxlift.lowering.table import MICROSOFT, Call, Lowerer, lowering

__all__ = ["MICROSOFT", "Call", "Lowerer", "lowering"]
