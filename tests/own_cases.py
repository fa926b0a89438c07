"""Models of operators that no node test of the onnx package explains, in the form of those tests.

These operators have tests there, if at all, in which importance cannot flow: of sequences that leave the model, of a
constant, of a shape that varies. Models are in ONNX's text syntax; floats are drawn, other inputs are given.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx
from node_tests import Case

GIVEN = {"kept": np.array(True), "ids": np.int64([0, 3, 1])}
"""Inputs that hold no floats, by name."""

FOREST = (
    "nodes_treeids = [0, 0, 0], nodes_nodeids = [0, 1, 2], nodes_featureids = [1, 0, 0], "
    'nodes_values = [0.1, 0.0, 0.0], nodes_modes = ["BRANCH_LEQ", "LEAF", "LEAF"], '
    "nodes_truenodeids = [1, 0, 0], nodes_falsenodeids = [2, 0, 0]"
)

TEXTS = {
    "Cast": "(float[2, 3] x) => (double[2, 3] y) { y = Cast <to = 11> (x) }",
    "CastLike": "(float[2, 3] x, float16[1] like) => (float16[2, 3] y) { y = CastLike (x, like) }",
    "ConcatFromSequence": "(float[2, 3] a, float[2, 1] b) => (float[2, 4] y) { s = SequenceConstruct (a, b) "
    "y = ConcatFromSequence <axis = 1> (s) }",
    "GlobalLpPool": "(float[2, 3, 4, 5] x) => (float[2, 3, 1, 1] y) { y = GlobalLpPool <p = 3> (x) }",
    "If": "(float[2, 3] x, bool kept) => (float[2, 3] y) { y = If (kept) <then_branch = then () => (float[2, 3] a) "
    "{ a = Tanh (x) }, else_branch = other () => (float[2, 3] b) { b = Neg (x) }> }",
    "MaxRoiPool": "(float[1, 2, 6, 6] x) => (float[2, 2, 2, 2] y) <float[2, 5] r = {0, 0, 0, 3, 3, 0, 2, 1, 5, 4}> "
    "{ y = MaxRoiPool <pooled_shape = [2, 2]> (x, r) }",
    "Optional": "(float[2, 3] x) => (float[2, 3] y) { o = Optional (x) y = OptionalGetElement (o) }",
    "OptionalGetElement": "(float[2, 3] x) => (float[2, 3] y) { o = OptionalGetElement (x) y = Tanh (o) }",
    "Range": "(float start) => (float[3] y) <float step = {0.5}> { three = Constant <value_float = 1.5> () "
    "limit = Add (start, three) y = Range (start, limit, step) }",
    "RoiAlign": "(float[1, 2, 6, 6] x) => (float[2, 2, 3, 3] y) <float[2, 4] r = {0, 0, 3.5, 3, 2, 1, 5, 4.2}, "
    "int64[2] b = {0, 0}> { y = RoiAlign <output_height = 3, output_width = 3, sampling_ratio = 2> (x, r, b) }",
    "SequenceAt": "(float[2, 3] a, float[2, 3] b) => (float[2, 3] y) { s = SequenceConstruct (a, b) "
    "i = Constant <value_int = 1> () c = SequenceAt (s, i) y = Mul (a, c) }",
    "SequenceConstruct": "(float[2, 3] a, float[2, 3] b) => (float[2, 2, 3] y) { s = SequenceConstruct (a, b) "
    "y = ConcatFromSequence <axis = 1, new_axis = 1> (s) }",
    "SequenceErase": "(float[2, 3] a, float[2, 3] b) => (float[2, 3] y) { s = SequenceConstruct (a, b, a) "
    "i = Constant <value_int = 0> () e = SequenceErase (s, i) y = SequenceAt (e, i) }",
    "SequenceInsert": "(float[2, 3] a, float[2, 3] b) => (float[2, 6] y) { e = SequenceEmpty () "
    "s = SequenceInsert (e, a) t = SequenceInsert (s, b) y = ConcatFromSequence <axis = 1> (t) }",
    "SequenceMap": "(float[2, 3] a, float[2, 3] b) => (float[2, 6] y) { s = SequenceConstruct (a, b) "
    "t = SequenceMap (s) <body = each (float[2, 3] u) => (float[2, 3] v) { v = Tanh (u) }> "
    "y = ConcatFromSequence <axis = 1> (t) }",
    "SplitToSequence": "(float[2, 6] x) => (float[2, 2] y) { n = Constant <value_int = 2> () "
    "s = SplitToSequence <axis = 1> (x, n) i = Constant <value_int = 1> () y = SequenceAt (s, i) }",
    "SwiGLU": "(float[2, 6] a, float[2, 6] b) => (float[2, 6] y) { y = SwiGLU <alpha = 1.5> (a, b) }",
    "Trilu": "(float[2, 3, 4] x) => (float[2, 3, 4] y) { y = Trilu <upper = 0> (x) }",
    "Upsample": "(float[1, 2, 3, 4] x) => (float[1, 2, 6, 8] y) <float[4] f = {1, 1, 2, 2}> "
    '{ y = Upsample <mode = "linear"> (x, f) }',
    "ai.onnx.ml.ArrayFeatureExtractor": "(float[2, 5] x, int64[3] ids) => (float[2, 3] y) "
    "{ y = ai.onnx.ml.ArrayFeatureExtractor (x, ids) }",
    "ai.onnx.ml.Binarizer": "(float[2, 3] x) => (float[2, 3] y) { y = ai.onnx.ml.Binarizer <threshold = 0.1> (x) }",
    "ai.onnx.ml.FeatureVectorizer": "(float[2, 3] a, float[2, 1] b) => (float[2, 4] y) "
    "{ y = ai.onnx.ml.FeatureVectorizer <inputdimensions = [3, 1]> (a, b) }",
    "ai.onnx.ml.Imputer": "(float[2, 3] x) => (float[2, 3] y) "
    "{ y = ai.onnx.ml.Imputer <imputed_value_floats = [0.5], replaced_value_float = 0.0> (x) }",
    "ai.onnx.ml.LinearClassifier": "(float[2, 3] x) => (int64[2] c, float[2, 2] y) { c, y = "
    "ai.onnx.ml.LinearClassifier <coefficients = [1.0, -2.0, 0.5, 0.3, 1.2, -0.7], intercepts = [0.1, -0.2], "
    'classlabels_ints = [0, 1], post_transform = "SOFTMAX"> (x) }',
    "ai.onnx.ml.LinearRegressor": "(float[2, 3] x) => (float[2, 1] y) { y = ai.onnx.ml.LinearRegressor "
    "<coefficients = [1.0, -2.0, 0.5], intercepts = [0.25]> (x) }",
    "ai.onnx.ml.Normalizer": '(float[2, 3] x) => (float[2, 3] y) { y = ai.onnx.ml.Normalizer <norm = "L2"> (x) }',
    "ai.onnx.ml.SVMRegressor": "(float[2, 3] x) => (float[2, 1] y) { y = ai.onnx.ml.SVMRegressor <coefficients = [1.0, "
    '-0.5], kernel_params = [0.3, 0.0, 3.0], kernel_type = "RBF", n_supports = 2, rho = [0.2], '
    "support_vectors = [0.1, 0.2, 0.3, -1.0, 0.5, 0.7]> (x) }",
    "ai.onnx.ml.SVMClassifier": "(float[2, 3] x) => (int64[2] c, float[2, 2] y) { c, y = ai.onnx.ml.SVMClassifier "
    '<classlabels_ints = [0, 1], coefficients = [1.0, -0.5], kernel_params = [0.3, 0.0, 3.0], kernel_type = "RBF", '
    "rho = [0.2], support_vectors = [0.1, 0.2, 0.3, -1.0, 0.5, 0.7], vectors_per_class = [1, 1]> (x) }",
    "ai.onnx.ml.Scaler": "(float[2, 3] x) => (float[2, 3] y) "
    "{ y = ai.onnx.ml.Scaler <offset = [0.5, 1.0, 1.5], scale = [2.0, 1.0, -3.0]> (x) }",
    "ai.onnx.ml.TreeEnsembleClassifier": "(float[2, 3] x) => (int64[2] c, float[2, 2] y) { c, y = "
    f"ai.onnx.ml.TreeEnsembleClassifier <{FOREST}, class_ids = [0, 1], class_nodeids = [1, 2], class_treeids = [0, 0], "
    "class_weights = [0.75, -1.5], classlabels_int64s = [0, 1]> (x) }",
    "ai.onnx.ml.TreeEnsembleRegressor": "(float[2, 3] x) => (float[2, 1] y) { y = "
    f"ai.onnx.ml.TreeEnsembleRegressor <{FOREST}, n_targets = 1, target_ids = [0, 0], target_nodeids = [1, 2], "
    "target_treeids = [0, 0], target_weights = [0.75, -1.5]> (x) }",
    "ai.onnx.preview.FlexAttention": "(float[1, 2, 3, 4] q, float[1, 2, 5, 4] k, float[1, 2, 5, 4] v) => "
    "(float[1, 2, 3, 4] y) { y = ai.onnx.preview.FlexAttention (q, k, v) }",
}
"""Operator -> the graph."""

OPSETS = {"SwiGLU": 28, "Upsample": 9}
"""Where it is not 21."""


@functools.cache
def own_cases() -> dict[str, Case]:
    """The models above as cases, by name; part "own"."""
    return {f"own_{operator}": _case(operator) for operator in TEXTS}


def _case(operator: str) -> Case:
    opset = OPSETS.get(operator, 21)
    imports = f'"" : {opset}, "ai.onnx.ml" : 3, "ai.onnx.preview" : 1'
    model = onnx.parser.parse_model(f"<ir_version: 10, opset_import: [{imports}]> g {TEXTS[operator]}")
    rng = np.random.default_rng(3)
    feeds = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        drawn = rng.standard_normal([dim.dim_value for dim in tensor.shape.dim]).astype(dtype)
        feeds[value.name] = np.asarray(GIVEN.get(value.name, drawn))
    return Case(f"own_{operator}", operator, "own", model, feeds)
