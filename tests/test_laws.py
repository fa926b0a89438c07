"""The laws, parametrised from the registry: no rule of any operator can be forgotten, nor any flag be wrong.

A pair of an operator and a rule gets the operator's model in `MODELS` and a plan that names the pair. What a rule
computes, and every geometry and corner of an operator, is for the tables of tests/rules/.
"""

from __future__ import annotations

import re

import laws
import numpy as np
import onnx
import pytest

import onnxlift
import onnxlift.rules
from onnxlift import Choice, Plan, registry
from onnxlift.metadata import description

Arrays = dict[str, np.ndarray]

RULES = [pytest.param(rule, id=f"{rule.op}-{rule.name}") for rule in registry.rules()]
N = 12
RNG = np.random.default_rng(17)

FLOATS: dict[str, tuple[int | str, ...]] = {
    "x": ("N", 4, 6),
    "row": ("N", 1, 6),
    "columns": ("N", 6, 2),
    "flat": ("N", 6),
    "image": ("N", 4, 2, 3),
    "pair": ("N", 2),
    "matrix": (4, 6),
    "kernel": (4, 2, 3),
    "bias": (4,),
    "shift": (6,),
    "two": (2,),
    "updates": ("N", 4, 2),
    "theta": ("N", 2, 3),
    "grid": ("N", 2, 3, 2),
    "squares": ("N", 3, 3),
    "weights": (2, 4, 1, 2),
    "offsets": ("N", 4, 2, 2),
    "factor": ("N", 2, 2, 2),
    "frames": ("N", 8, 1),
    "window": (4,),
    "boxes": (5, 4),
}
"""The shapes of the attributed inputs of `MODELS`, by name."""

INDICES = {
    "position": RNG.integers(0, 4, (N, 1)),
    "places": RNG.integers(0, 6, (N, 4, 2)),
    "labels": RNG.integers(0, 4, (N, 6)),
    "lengths": RNG.integers(1, 5, (N,)),
}
"""Inputs that carry no importance; one row a sample."""

CONSTANTS = {
    "axis": np.int64(2),
    "axes": np.int64([1]),
    "begins": np.int64([1, -3]),
    "ends": np.int64([3, 99]),
    "along": np.int64([1, 2]),
    "borders": np.int64([0, 1, 0, 0, 0, 2]),
    "sizes": np.int64([-1, 2, 12]),
    "wide": np.int64([1, 4, 6]),
    "repeats": np.int64([1, 2, 3]),
    "three": np.int64([3]),
    "indices": np.int64([0, 3, 3, -1]),
    "spots": np.int64([[0, 1], [2, -1], [0, 1], [3, 3]]),
    "kept": np.array([True, False, True, True]),
    "always": np.array(True),
    "extents": np.int64([3, 9]),
    "depth": np.int64(4),
    "factors": np.float32([1, 1, 2, 0.7]),
    "mask": RNG.random((4, 6)) > 0.5,
    "low": np.float32(-1),
    "high": np.float32(0.7),
    "power": np.float32(2.5),
    "like": np.eye(2, dtype=np.float32),
    "slopes": np.linspace(-0.5, 1.5, 6, dtype=np.float32),
    "ceiling": np.linspace(-1, 1, 6, dtype=np.float32),
    "scale": np.float32([1, -2, 0.5, 3]),
    "scales": np.float32([1, -2, 0.5, 3, 1.5, -1]),
    "offset": np.float32([1, 2, 3, 4]),
    "mean": np.float32([0, 1, 0.5, -1]),
    "variance": np.float32([1, 0.1, 2, 0.01]),
    "canvas": np.int64([N, 1, 2, 3]),
    "whole": np.int64([3, 4]),
    "block": np.int64([2, 2]),
    "length": np.int64(7),
    "stride": np.int64(2),
    "owners": np.int64([0, 3, 3, 11, 5]),
    "regions": np.float32([[0, 0, 0, 2, 1], [3, 1, 0, 1, 1], [3, -1, 0, 4, 0], [11, 9, 9, 9, 9], [5, 0, 1, 1, 1]]),
    "unpooled": np.arange(N * 48).reshape(N, 4, 12)[..., ::2] + RNG.integers(0, 2, (N, 4, 6)),
}

MODELS = {
    "*": "y = Mod <fmod = 1> (x, row)",
    "Abs": "y = Abs (x)",
    "Acos": "y = Acos (x)",
    "Acosh": "y = Acosh (x)",
    "Add": "y = Add (x, row)",
    "AffineGrid": "y = AffineGrid (theta, canvas)",
    "Asin": "y = Asin (x)",
    "Asinh": "y = Asinh (x)",
    "Atan": "y = Atan (x)",
    "Atanh": "y = Atanh (x)",
    "AveragePool": "y = AveragePool <kernel_shape = [3], strides = [2], pads = [1, 0]> (x)",
    "BatchNormalization": "y = BatchNormalization (x, scale, offset, mean, variance)",
    "Binarizer": "y = ai.onnx.ml.Binarizer <threshold = 0.3> (flat)",
    "Cast": "y = Cast <to = 11> (x)",
    "CastLike": "u = com.microsoft.Inverse (like) y = CastLike (x, u)",  # where u has a known type it is a Cast
    "Ceil": "y = Ceil (x)",
    "Celu": "y = Celu <alpha = 2.0> (x)",
    "CenterCropPad": "y = CenterCropPad <axes = [1, 2]> (x, extents)",
    "Clip": "y = Clip (x, low, high)",
    "Col2Im": "y = Col2Im (x, whole, block)",
    "Compress": "y = Compress <axis = 1> (x, kept)",
    "Concat": "y = Concat <axis = 1> (x, row)",
    "Conv": "y = Conv <group = 2, strides = [2], pads = [1, 0]> (x, kernel, bias)",
    "ConvTranspose": "y = ConvTranspose <group = 2, strides = [2], pads = [1, 0]> (x, kernel, bias)",
    "Cos": "y = Cos (x)",
    "Cosh": "y = Cosh (x)",
    "CumSum": "y = CumSum <exclusive = 1> (x, axis)",
    "DFT": "y = DFT <onesided = 1> (frames, length)",
    "DeformConv": "y = DeformConv <strides = [1, 1]> (image, weights, offsets, two, factor)",
    "DepthToSpace": 'y = DepthToSpace <blocksize = 2, mode = "CRD"> (image)',
    "Det": "y = Det (squares)",
    "Div": "y = Div (x, row)",
    "Dropout": "y = Dropout (x)",
    "Einsum": 'y = Einsum <equation = "nij,njk,nlj->nki"> (x, columns, row)',
    "Elu": "y = Elu <alpha = 0.5> (x)",
    "Erf": "y = Erf (x)",
    "Exp": "y = Exp (x)",
    "Expand": "y = Expand (row, wide)",
    "FeatureVectorizer": "y = ai.onnx.ml.FeatureVectorizer <inputdimensions = [4, 3]> (flat, pair)",
    "Flatten": "y = Flatten (x)",
    "Floor": "y = Floor (x)",
    "Gather": "y = Gather <axis = 2> (x, indices)",
    "GatherElements": "y = GatherElements <axis = 2> (x, places)",
    "GatherND": "y = GatherND <batch_dims = 1> (x, position)",
    "Gelu": "y = Gelu (x)",
    "Gemm": "y = Gemm <transB = 1, alpha = -0.5, beta = 2.0> (flat, matrix, bias)",
    "GlobalAveragePool": "y = GlobalAveragePool (x)",
    "GlobalLpPool": "y = GlobalLpPool <p = 3> (x)",
    "GlobalMaxPool": "y = GlobalMaxPool (x)",
    "GridSample": 'y = GridSample <mode = "cubic"> (image, grid)',
    "GroupNormalization": "y = GroupNormalization <num_groups = 2> (x, scale, bias)",
    "HardSigmoid": "y = HardSigmoid (x)",
    "HardSwish": "y = HardSwish (x)",
    "Hardmax": "y = Hardmax (x)",
    "Identity": "y = Identity (x)",
    "If": (
        "most = ReduceMax <keepdims = 0> (labels) mixed = Less (most, depth) y = If (mixed) "
        "<then_branch = yes () => (float[N, 4, 6] a) { a1 = Mul (x, row) a2 = Tanh (a1) a = Add (a2, x) }, "
        "else_branch = no () => (float[N, 4, 6] b) { b = Neg (x) }>"
    ),
    "Imputer": "y = ai.onnx.ml.Imputer <imputed_value_floats = [1.5], replaced_value_float = 1.0> (flat)",
    "InstanceNormalization": "y = InstanceNormalization (x, scale, bias)",
    "LRN": "y = LRN <size = 3, alpha = 0.9> (image)",
    "LayerNormalization": "y = LayerNormalization (x, scales, shift)",
    "LeakyRelu": "y = LeakyRelu <alpha = 0.3> (x)",
    "LinearClassifier": (
        "label, y = ai.onnx.ml.LinearClassifier <classlabels_ints = [0, 1], intercepts = [0.1, 0.2], "
        'coefficients = [1.0, 2.0, -1.0, 0.5], post_transform = "SOFTMAX"> (pair)'
    ),
    "LinearRegressor": "y = ai.onnx.ml.LinearRegressor <targets = 2, coefficients = [1.0, 2.0, -1.0, 0.5]> (pair)",
    "Log": "y = Log (x)",
    "LogSoftmax": "y = LogSoftmax (x)",
    "LpNormalization": "y = LpNormalization (x)",
    "LpPool": "y = LpPool <kernel_shape = [3], strides = [2], pads = [1, 0]> (x)",
    "Loop": (
        "y = Loop <body = each (int64 i, bool go, float[N, 4, 6] h) => (bool on, float[N, 4, 6] h2) "
        "{ h1 = Mul (h, row) s = Add (h1, x) h2 = Tanh (s) on = Identity (go) }> (length, always, x)"
    ),
    "MatMul": "y = MatMul (x, columns)",
    "Max": "y = Max (x, ceiling, row)",
    "MaxPool": "y = MaxPool <kernel_shape = [3], strides = [2]> (x)",
    "MaxRoiPool": "y = MaxRoiPool <pooled_shape = [2, 1]> (image, regions)",
    "MaxUnpool": "y = MaxUnpool <kernel_shape = [2], strides = [2]> (x, unpooled)",
    "Mean": "y = Mean (x, row, x)",
    "MeanVarianceNormalization": "y = MeanVarianceNormalization <axes = [1, 2]> (x)",
    "Min": "y = Min (x, ceiling, row)",
    "Mish": "y = Mish (x)",
    "Mod": "y = Mod <fmod = 1> (x, row)",
    "Mul": "y = Mul (x, row)",
    "Neg": "y = Neg (x)",
    "NegativeLogLikelihoodLoss": 'y = NegativeLogLikelihoodLoss <reduction = "none"> (x, labels, bias)',
    "Normalizer": 'y = ai.onnx.ml.Normalizer <norm = "MAX"> (flat)',
    "OneHot": "y = OneHot <axis = 1> (labels, depth, two)",
    "PRelu": "y = PRelu (x, slopes)",
    "Pad": "y = Pad (x, borders)",
    "Pow": "y = Pow (x, power)",
    "Reciprocal": "y = Reciprocal (x)",
    "ReduceL1": "y = ReduceL1 (x, axes)",
    "ReduceL2": "y = ReduceL2 (x, along)",
    "ReduceLogSum": "y = ReduceLogSum <keepdims = 0> (x, axes)",
    "ReduceLogSumExp": "y = ReduceLogSumExp (x, along)",
    "ReduceMax": "y = ReduceMax (x, along)",
    "ReduceMean": "y = ReduceMean <keepdims = 0> (x, along)",
    "ReduceMin": "y = ReduceMin (x, axes)",
    "ReduceProd": "y = ReduceProd (x, axes)",
    "ReduceSum": "y = ReduceSum <keepdims = 0> (x, axes)",
    "ReduceSumSquare": "y = ReduceSumSquare (x, axes)",
    "Relu": "y = Relu (x)",
    "Reshape": "y = Reshape (x, sizes)",
    "Resize": 'y = Resize <mode = "cubic"> (image, , factors)',
    "ReverseSequence": "y = ReverseSequence <batch_axis = 0, time_axis = 1> (x, lengths)",
    "RoiAlign": "y = RoiAlign <output_height = 2, output_width = 1, sampling_ratio = 2> (image, boxes, owners)",
    "Round": "y = Round (x)",
    "STFT": "y = STFT <onesided = 1> (frames, stride, window)",
    "SVMRegressor": (
        "y = ai.onnx.ml.SVMRegressor <n_supports = 2, support_vectors = [0.5, 1.0, -1.0, 0.2], rho = [0.1], "
        'coefficients = [1.0, -0.5], kernel_type = "RBF", kernel_params = [0.3, 0.0, 0.0]> (pair)'
    ),
    "Scaler": "y = ai.onnx.ml.Scaler <scale = [1.5, -2.0], offset = [0.5, 1.0]> (pair)",
    "Scan": (
        "last, y = Scan <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], "
        "body = each (float[N, 6] h, float[N, 6] one) => (float[N, 6] h2, float[N, 6] seen) "
        "{ h1 = Mul (h, one) s = Add (h1, shift) h2 = Tanh (s) seen = Mul (h2, one) }> (flat, x)"
    ),
    "ScatterElements": 'y = ScatterElements <axis = 2, reduction = "mul"> (x, places, updates)',
    "ScatterND": 'y = ScatterND <reduction = "max"> (matrix, spots, bias)',
    "Selu": "y = Selu (x)",
    "Shrink": "y = Shrink <lambd = 0.7, bias = 0.2> (x)",
    "Sigmoid": "y = Sigmoid (x)",
    "Sign": "y = Sign (x)",
    "Sin": "y = Sin (x)",
    "Sinh": "y = Sinh (x)",
    "Slice": "y = Slice (x, begins, ends, along)",
    "Softmax": "y = Softmax (x)",
    "SoftmaxCrossEntropyLoss": 'y, logs = SoftmaxCrossEntropyLoss <reduction = "none"> (x, labels)',
    "Softplus": "y = Softplus (x)",
    "Softsign": "y = Softsign (x)",
    "SpaceToDepth": "u = Unsqueeze (x, axes) y = SpaceToDepth <blocksize = 2> (u)",
    "Split": "y, rest = Split <axis = 1, num_outputs = 2> (x)",
    "Sqrt": "y = Sqrt (x)",
    "Squeeze": "y = Squeeze (row, axes)",
    "Sub": "y = Sub (row, x)",
    "Sum": "y = Sum (x, row, x)",
    "Tan": "y = Tan (x)",
    "Tanh": "y = Tanh (x)",
    "ThresholdedRelu": "y = ThresholdedRelu <alpha = 0.4> (x)",
    "Tile": "y = Tile (x, repeats)",
    "TopK": "y, ranked = TopK <axis = 1> (x, three)",
    "Transpose": "y = Transpose <perm = [0, 2, 1]> (x)",
    "Trilu": "y = Trilu (x)",
    "Unsqueeze": "y = Unsqueeze (x, axes)",
    "Where": "y = Where (mask, x, row)",
}
"""Operator -> a model whose last node it is, the only one as a rule; inputs and constants by their names above."""

OUTPUTS = {
    "Cast": "double",
    "CastLike": "float[N, 4, 6]",
    "FeatureVectorizer": "float[N, 7]",
}
"""Their type where it is not float, and their shape where nothing else tells it."""

DOMAINS = {
    **dict.fromkeys(("Asin", "Acos", "Atanh"), (-0.9, 0.9)),
    **dict.fromkeys(("Log", "Sqrt", "Reciprocal", "Pow", "Div", "Mod", "ReduceLogSum", "*"), (0.3, 4.0)),
    "Acosh": (1.2, 4.0),
    "ReduceLogSumExp": (-6.0, -2.0),
    "Tan": (-1.2, 1.2),
}
"""Where the inputs of an operator live; elsewhere between -3 and 3."""


def model_of(op: str) -> onnx.ModelProto:
    """The operator's model, with the inputs and constants that it names."""
    assert op in MODELS, f"operator {op} has no model in tests/test_laws.py: add one to MODELS"
    body, kind = MODELS[op], OUTPUTS.get(op, "float")
    names = dict.fromkeys(re.findall(r"\w+", re.sub("<.*?>", "", body)))
    inputs = [f"float[{', '.join(map(str, FLOATS[name]))}] {name}" for name in names if name in FLOATS]
    indices = {name: ("N", *INDICES[name].shape[1:]) for name in names if name in INDICES}
    inputs += [f"int64[{', '.join(map(str, shape))}] {name}" for name, shape in indices.items()]
    constants = {name: np.asarray(CONSTANTS[name]) for name in names if name in CONSTANTS}
    model = laws.model(f"g ({', '.join(inputs)}) => ({kind} y) <{kind} y> {{ {body} }}", **constants)
    for value in (*model.graph.output, *model.graph.value_info):
        if "[" not in kind:
            value.type.tensor_type.ClearField("shape")  # without one the parser makes it a scalar
    model.opset_import.extend(onnx.helper.make_opsetid(domain, 1) for domain in ("ai.onnx.ml", "com.microsoft"))
    return model


def data(op: str, model: onnx.ModelProto) -> tuple[Arrays, Arrays, Arrays]:
    """x, r and the inputs without importance; some places of r are those of x, or near them.

    In the first sample x = r, and in the second the differences sum to 0. Signed parts are there also where x = r:
    laws.check_signed makes every input the sum of two that change.
    """
    rng, (low, high) = np.random.default_rng(23), DOMAINS.get(op, (-3.0, 3.0))
    names = [value.name for value in model.graph.input]
    x, r = {}, {}
    for name in names:
        if name in FLOATS:
            shape = [N if size == "N" else size for size in FLOATS[name]]
            x[name], far = rng.uniform(low, high, (2, *shape)).astype(np.float32)
            x[name][1::2] = (x[name][1::2] + np.float32((low + high) / 2)) / 2  # so that r has maxima of its own
            near = np.clip(x[name] + np.float32(1e-3), low, high)
            which = rng.choice(3, shape, p=[0.5, 0.4, 0.1])
            r[name] = np.choose(which, (x[name], far, near))
            if FLOATS[name][0] == "N":
                r[name][:2] = x[name][0], x[name][1, ..., ::-1]
    return x, r, {name: INDICES[name] for name in names if name in INDICES}


def plan_of(rule: registry.Rule, model: onnx.ModelProto) -> Plan:
    """The rule for the model's last node, whatever its operator is."""
    return Plan([Choice(rule.name, op=model.graph.node[-1].op_type)])


def explain(rule: registry.Rule, model: onnx.ModelProto, x: Arrays, r: Arrays, others: Arrays) -> Arrays:
    """Contributions and multipliers of all attributed inputs, for random multipliers of y; by this very rule."""
    explainer = onnxlift.rewrite(
        model,
        inputs=list(x),
        target="weights",
        plan=plan_of(rule, model),
        pre_activation=False,
        emit=("contributions", "multipliers"),
    )
    about = description(explainer)
    assert about is not None
    assert about["rules"][model.graph.node[-1].op_type] == rule.name
    y = laws.run(model, {**x, **others})["y"]
    weights = np.random.default_rng(29).standard_normal(y.shape).astype(y.dtype)
    references = {f"{name}_reference": value for name, value in r.items()}
    return laws.run(explainer, {**x, **references, **others, "target_weights": weights})


@pytest.mark.parametrize("rule", RULES)
def test_conservation(rule: registry.Rule) -> None:
    """With m+ apart from m-, for all inputs together and for each alone; a rule said not to conserve does not."""
    model = model_of(rule.op)
    x, r, others = data(rule.op, model)
    if not rule.conserves:
        got = explain(rule, model, x, r, others)
        assert abs(got["completeness_gap"]).max() > 0.01 * sum(abs(got[f"{name}_contributions"]).sum() for name in x)
        return
    for names in [list(x), *([name] for name in x if len(x) > 1)]:
        rest = {name: value for name, value in x.items() if name not in names}
        attributed = {name: x[name] for name in names}
        laws.check_signed(model, attributed, r, others={**others, **rest}, plan=plan_of(rule, model))


@pytest.mark.parametrize("rule", RULES)
def test_limit(rule: registry.Rule) -> None:
    """At x = r, kinks and ties included: finite multipliers, and nothing is contributed."""
    model = model_of(rule.op)
    x, _, others = data(rule.op, model)
    low, high = DOMAINS.get(rule.op, (-3.0, 3.0))
    for value in x.values():
        value.flat[::2] = np.clip(np.round(value.flat[::2]), low, high)
    got = explain(rule, model, x, x, others)
    for name in x:
        assert np.isfinite(got[f"{name}_multipliers"]).all()
        assert not got[f"{name}_contributions"].any()
    assert not got["completeness_gap"].any()


def test_every_operator_has_a_model_and_every_model_an_operator() -> None:
    assert set(MODELS) == {rule.op for rule in registry.rules()}
    assert {op: node_type for op in MODELS if (node_type := model_of(op).graph.node[-1].op_type) != op} == {"*": "Mod"}
