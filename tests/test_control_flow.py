"""If, Loop and Scan: contributions are those of the same computation written without them."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift import OptionError, RuleError, rewrite
from onnxlift.metadata import description

RNG = np.random.default_rng(3)
Arrays = dict[str, np.ndarray]


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def explain(
    model: onnx.ModelProto, x: Arrays, r: Arrays, others: Arrays | None = None, **options: object
) -> dict[str, np.ndarray]:
    """What an explainer computes with random weights as the target, after the checks that hold for every one."""
    given = {**x, **(others or {})}
    explainer = rewrite(model, target="weights", **options)
    onnx.checker.check_model(explainer, full_check=True)
    original = laws.run(model, given)
    y = original[(description(explainer) or {})["output"]]
    weights = np.random.default_rng(1).standard_normal(y.shape).astype(y.dtype)
    got = laws.run(
        explainer, {**given, **{f"{name}_reference": value for name, value in r.items()}, "target_weights": weights}
    )
    for name, value in original.items():
        np.testing.assert_array_equal(got[name], value)
    return got


def complete(got: dict[str, np.ndarray]) -> None:
    difference = got["target_output"] - got["target_reference"]
    assert np.abs(difference).max() > 1e-2
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=2e-5 * max(1, np.abs(difference).max()))


def same(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    names = [name for name in a if name.endswith("_contributions")]
    assert names
    for name in names:
        np.testing.assert_allclose(a[name], b[name], rtol=1e-4, atol=1e-5 * np.abs(b[name]).max())


CELL = """
    {p}hw = MatMul ({h}, w)
    {p}in = Add ({p}hw, {x})
    {p}gate = Sigmoid ({p}in)
    {p}new = Tanh ({p}in)
    {p}diff = Sub ({p}new, {h})
    {p}step = Mul ({p}gate, {p}diff)
    {h1} = Add ({h}, {p}step)
    {y} = Mul ({h1}, {p}gate)
"""
STEPS = 4
SHAPES = f"float[{STEPS}, N, 3] x, float[N, 3] h, float[3, 3] w"


def cell(prefix: str, h: str, x: str, h1: str, y: str) -> str:
    return CELL.format(p=prefix, h=h, x=x, h1=h1, y=y)


def unrolled(order: list[int]) -> onnx.ModelProto:
    """The cell in every step, in a row; outputs as the Scan has them."""
    pieces = ", ".join(f"s{k}" for k in range(STEPS))
    lines = [f"{pieces} = Split <axis = 0, num_outputs = {STEPS}> (x)"]
    state = "h"
    for k in order:
        lines += [f"x{k} = Squeeze (s{k}, zero)", cell(f"c{k}_", state, f"x{k}", f"h{k}", f"y{k}")]
        lines.append(f"u{k} = Unsqueeze (y{k}, zero)")
        state = f"h{k}"
    stacked = ", ".join(f"u{k}" for k in range(STEPS))
    lines += [f"ys = Concat <axis = 0> ({stacked})", f"last = Identity ({state})"]
    text = f"g ({SHAPES}) => (float[{STEPS}, N, 3] ys, float[N, 3] last) {{ {' '.join(lines)} }}"
    return laws.model(text, zero=np.int64([0]))


def scanned(attributes: str = "", shapes: str = SHAPES, after: str = "ys = Identity (yo)") -> onnx.ModelProto:
    body = cell("", "hi", "xi", "ho", "yi")
    text = f"""g ({shapes}) => (float[T, N, 3] ys, float[N, 3] last) {{
        last, yo = Scan <num_scan_inputs = 1, {attributes}
            body = b (float[N, 3] hi, float[N, 3] xi) => (float[N, 3] ho, float[N, 3] yi) {{ {body} }}> (h, x)
        {after}
    }}"""
    return laws.model(text)


def feeds() -> tuple[Arrays, Arrays]:
    x, r = ({"x": numbers(STEPS, 2, 3), "h": numbers(2, 3), "w": numbers(3, 3)} for _ in range(2))
    return x, r


@pytest.mark.parametrize("output", ["ys", "last"])
@pytest.mark.parametrize("backwards", [False, True])
def test_a_scan_is_its_steps_in_a_row(output: str, backwards: bool) -> None:
    directions = "scan_input_directions = [1], scan_output_directions = [1]," if backwards else ""
    x, r = feeds()
    order = list(range(STEPS))[:: -1 if backwards else 1]
    got = explain(scanned(directions), x, r, output=output)
    complete(got)
    same(got, explain(unrolled(order), x, r, output=output))


def test_a_scan_along_other_axes() -> None:
    x, r = feeds()
    moved = [{**values, "x": np.moveaxis(values["x"], 0, 2)} for values in (x, r)]
    model = scanned(
        "scan_input_axes = [2], scan_output_axes = [-1],",
        f"float[N, 3, {STEPS}] x, float[N, 3] h, float[3, 3] w",
        after="ys = Transpose <perm = [2, 0, 1]> (yo)",
    )
    got, expected = explain(model, *moved, output="ys"), explain(unrolled(list(range(STEPS))), x, r, output="ys")
    complete(got)
    np.testing.assert_allclose(np.moveaxis(got["x_contributions"], 2, 0), expected["x_contributions"], atol=1e-5)
    np.testing.assert_allclose(got["w_contributions"], expected["w_contributions"], atol=1e-5)


LOOP = """g (int64 T, float[N, 3] x, float[3, 3] w) => (float[N, 3] y, float[K, N, 3] ys) {{
    go = Constant <value = bool {{1}}> ()
    y, ys = Loop <body = b (int64 i, bool c, float[N, 3] h) => (bool c1, float[N, 3] h1, float[N, 3] o) {{
        hw = MatMul (h, w)
        f = Cast <to = 1> (i)
        scaled = Mul (hw, f)
        moved = Add (scaled, x)
        h1 = Tanh (moved)
        o = Mul (h1, h)
        {condition}
    }}> (T, go, x)
}}"""


def looped(condition: str = "c1 = Identity (c)") -> onnx.ModelProto:
    return laws.model(LOOP.format(condition=condition))


@pytest.mark.parametrize(("count", "output"), [(0, "y"), (1, "y"), (1, "ys"), (3, "y"), (3, "ys")])
def test_a_loop_is_its_iterations_in_a_row(count: int, output: str) -> None:
    lines, state = [], "x"
    for k in range(count):
        lines.append(
            f"m{k} = MatMul ({state}, w) s{k} = Mul (m{k}, f{k}) a{k} = Add (s{k}, x) h{k} = Tanh (a{k}) "
            f"o{k} = Mul (h{k}, {state}) u{k} = Unsqueeze (o{k}, zero)"
        )
        state = f"h{k}"
    stacked = f"ys = Concat <axis = 0> ({', '.join(f'u{k}' for k in range(count))})" if output == "ys" else ""
    outputs = "float[K, N, 3] ys" if output == "ys" else "float[N, 3] y"
    text = f"g (float[N, 3] x, float[3, 3] w) => ({outputs}) {{ {' '.join(lines)} y = Identity ({state}) {stacked} }}"
    row = laws.model(text, zero=np.int64([0]), **{f"f{k}": np.float32(k) for k in range(count)})
    x, r = ({"x": numbers(2, 3), "w": numbers(3, 3)} for _ in range(2))
    weights = numbers(2, 3) if output == "y" else numbers(count, 2, 3)
    feed = {**x, **{f"{k}_reference": v for k, v in r.items()}, "target_weights": weights}
    got = laws.run(rewrite(looped(), target="weights", output=output), {**feed, "T": np.array(count)})
    if count:
        expected = laws.run(rewrite(row, target="weights", output=output), feed)
        same(got, expected)
    complete(got)


def test_a_loop_that_runs_differently_at_the_reference_says_so() -> None:
    stops = """size = ReduceMax <keepdims = 0> (h1)
        low = Constant <value = float {0.5}> ()
        c1 = Less (size, low)"""
    model = looped(stops)
    explainer = rewrite(model, target="weights", inputs=["x"])
    assert "how often it runs depends" in " ".join((description(explainer) or {})["notes"])
    w = (0.3 * np.eye(3)).astype(np.float32)
    feed = {"T": np.array(5), "w": w, "target_weights": np.ones((1, 3), np.float32)}
    low, high = np.full((1, 3), 0.1, np.float32), np.full((1, 3), 2, np.float32)
    alike = laws.run(explainer, {**feed, "x": low, "x_reference": low / 2})
    np.testing.assert_allclose(alike["completeness_gap"], 0, atol=1e-6)
    other = laws.run(explainer, {**feed, "x": low, "x_reference": high})
    difference = other["target_output"] - other["target_reference"] - other["x_contributions"].sum()
    np.testing.assert_allclose(other["completeness_gap"].sum(), difference, atol=1e-6)
    assert np.isfinite(other["x_contributions"]).all()


BRANCHES = """g (float[N, 3] x, float[3, 3] w, bool c) => (float[N, 3] y) {
    x2 = Mul (x, x)
    y0 = If (c) <
        then_branch = t () => (float[N, 3] a) { m = MatMul (x2, w) a0 = Tanh (m) a = Mul (a0, x) },
        else_branch = e () => (float[N, 3] b) { m = Relu (x) b = Add (m, x2) }
    >
    y = Mul (y0, x)
}"""
STRAIGHT = {
    True: "x2 = Mul (x, x) m = MatMul (x2, w) a0 = Tanh (m) y0 = Mul (a0, x) y = Mul (y0, x)",
    False: "x2 = Mul (x, x) m = Relu (x) y0 = Add (m, x2) y = Mul (y0, x)",
}


@pytest.mark.parametrize("condition", [True, False])
def test_an_if_is_the_branch_that_it_takes(condition: bool) -> None:
    x, r = ({"x": numbers(4, 3), "w": numbers(3, 3)} for _ in range(2))
    got = explain(laws.model(BRANCHES), x, r, {"c": np.array(condition)})
    text = f"g (float[N, 3] x, float[3, 3] w) => (float[N, 3] y) {{ {STRAIGHT[condition]} }}"
    kept = ["x", "w"] if condition else ["x"]
    expected = explain(laws.model(text), x, {name: r[name] for name in kept}, inputs=kept)
    complete(got)
    for name in kept:
        np.testing.assert_allclose(got[f"{name}_contributions"], expected[f"{name}_contributions"], atol=1e-5)
    if not condition:
        assert not got["w_contributions"].any()


def test_an_if_on_a_constant_is_its_branch() -> None:
    model = laws.model(BRANCHES.replace(", bool c", ""), c=np.array(True))
    explainer = rewrite(model, target="weights")
    assert not any(node.op_type == "If" for node in explainer.graph.node)


def test_an_if_that_takes_another_branch_at_the_reference_says_so() -> None:
    text = """g (float[N, 3] x) => (float[N, 3] y) {
        s = ReduceSum <keepdims = 0> (x)
        zero = Constant <value = float {0}> ()
        c = Greater (s, zero)
        y = If (c) <then_branch = t () => (float[N, 3] a) { a = Mul (x, x) },
                    else_branch = e () => (float[N, 3] b) { b = Tanh (x) }>
    }"""
    explainer = rewrite(laws.model(text), target="weights")
    assert "which branch it takes" in (description(explainer) or {})["notes"][0]
    weights = np.ones((1, 3), np.float32)
    x, near, far = (np.float32([values]) for values in ([1, 2, 3], [2, 1, 1], [-1, -2, -1]))
    got = laws.run(explainer, {"x": x, "x_reference": near, "target_weights": weights})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)
    np.testing.assert_allclose(got["x_contributions"], x * x - near * near, rtol=1e-6)
    got = laws.run(explainer, {"x": x, "x_reference": far, "target_weights": weights})
    np.testing.assert_allclose(got["x_contributions"], x * x - far * far, rtol=1e-6)  # of the branch that x takes
    np.testing.assert_allclose(got["completeness_gap"], (far * far - np.tanh(far)).sum(), rtol=1e-5)


NESTED = """g (float[4, N, 3] x, float[N, 3] h, float[3, 3] w, bool c) => (float[N, 3] y) {
    y, ys = Scan <num_scan_inputs = 1, body = b (float[N, 3] hi, float[N, 3] xi) => (float[N, 3] ho, float[N, 3] yi) {
        two = Constant <value = int64 {2}> ()
        go = Constant <value = bool {1}> ()
        hl = Loop <body = l (int64 i, bool ci, float[N, 3] s) => (bool co, float[N, 3] so) {
            m = MatMul (s, w)
            sm = Add (m, xi)
            so = Tanh (sm)
            co = Identity (ci)
        }> (two, go, hi)
        ho = If (c) <then_branch = t () => (float[N, 3] a) { a = Mul (hl, xi) },
                     else_branch = e () => (float[N, 3] b1) { b1 = Sub (hl, hi) }>
        yi = Identity (ho)
    }> (h, x)
}"""


@pytest.mark.parametrize("condition", [True, False])
def test_bodies_inside_of_bodies(condition: bool) -> None:
    lines, state = [], "h"
    for k in range(4):
        lines += [f"x{k} = Squeeze (s{k}, zero)"]
        inner = state
        for i in range(2):
            lines.append(f"m{k}{i} = MatMul ({inner}, w) a{k}{i} = Add (m{k}{i}, x{k}) t{k}{i} = Tanh (a{k}{i})")
            inner = f"t{k}{i}"
        lines.append(f"h{k} = Mul ({inner}, x{k})" if condition else f"h{k} = Sub ({inner}, {state})")
        state = f"h{k}"
    split = "s0, s1, s2, s3 = Split <axis = 0, num_outputs = 4> (x)"
    shapes = "float[4, N, 3] x, float[N, 3] h, float[3, 3] w"
    text = f"g ({shapes}) => (float[N, 3] y) {{ {split} {' '.join(lines)} y = Identity ({state}) }}"
    x, r = feeds()
    got = explain(laws.model(NESTED), x, r, {"c": np.array(condition)})
    complete(got)
    same(got, explain(laws.model(text, zero=np.int64([0])), x, r))


def test_references_of_every_kind() -> None:
    x, r = feeds()
    model = scanned()
    nothing = {name: np.zeros_like(value) for name, value in r.items()}
    for spec, reference in (("zeros", nothing), (r, r)):
        explainer = rewrite(model, target="weights", output="ys", reference=spec)
        weights = np.random.default_rng(1).standard_normal((STEPS, 2, 3)).astype(np.float32)
        got = laws.run(explainer, {**x, "target_weights": weights})
        same(got, explain(model, x, reference, output="ys"))


def test_several_references_and_integrated_gradients_of_a_batch() -> None:
    body = cell("", "hi", "xi", "ho", "yi")
    text = f"""g (float[N, {STEPS}, 3] x) => (float[N, 3] y) {{
        xt = Transpose <perm = [1, 0, 2]> (x)
        first = Gather <axis = 1> (x, one)
        start = Mul (first, none)
        y, ys = Scan <num_scan_inputs = 1,
            body = b (float[N, 3] hi, float[N, 3] xi) => (float[N, 3] ho, float[N, 3] yi) {{ {body} }}> (start, xt)
    }}"""
    model = laws.model(text, w=numbers(3, 3), one=np.int64(0), none=np.float32(0.5))
    x, several = numbers(2, STEPS, 3), numbers(5, STEPS, 3)
    got = laws.run(rewrite(model, target=1, reference="shared"), {"x": x, "x_reference": several})
    pairs = [laws.run(rewrite(model, target=1), {"x": x, "x_reference": np.repeat(one[None], 2, 0)}) for one in several]
    expected = np.mean([pair["x_contributions"] for pair in pairs], axis=0)
    np.testing.assert_allclose(got["x_contributions"], expected, atol=1e-6)
    complete(got)
    path = rewrite(model, target=1, rule="integrated-gradients:200")
    got = laws.run(path, {"x": x, "x_reference": several[:2]})
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-4)
    gradient = rewrite(model, target=1, rule="gradient")
    step = 1e-3 * np.eye(STEPS * 3, dtype=np.float32)[4].reshape(1, STEPS, 3)
    slope = (laws.run(model, {"x": x + step})["y"] - laws.run(model, {"x": x - step})["y"])[:, 1] / 2e-3
    got = laws.run(gradient, {"x": x, "x_reference": x})["x_contributions"].reshape(2, -1)[:, 4]
    np.testing.assert_allclose(got, slope, atol=1e-3)


def test_reveal_cancel_inside_of_a_body() -> None:
    text = """g (float[N, 2] x) => (float[N, 1] y) {
        xt = Unsqueeze (x, zero)
        h, y3 = Scan <num_scan_inputs = 1, body = b (float[1] s, float[N, 2] xi) => (float[1] so, float[N, 1] yi) {
            so = Identity (s)
            a = Slice (xi, zero, one, one)
            b0 = Slice (xi, one, two, one)
            d = Sub (a, b0)
            cut = Relu (d)
            yi = Sub (a, cut)
        }> (nothing, xt)
        y = Squeeze (y3, zero)
    }"""
    ints = {"zero": [0], "one": [1], "two": [2]}
    model = laws.model(text, nothing=np.float32([0]), **{name: np.int64(value) for name, value in ints.items()})
    x = np.float32([[2, 1]])
    for rule, expected in (("rescale", [0, 1]), ("reveal-cancel", [0.5, 0.5])):
        got = laws.run(rewrite(model, rule=rule, reference="zeros"), {"x": x})
        np.testing.assert_allclose(got["x_contributions"][0], expected, atol=1e-6)


def test_a_node_without_a_rule_inside_of_a_body_is_named() -> None:
    model = scanned()
    node = model.graph.node[0]
    body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    body.node[2].op_type, body.node[2].name, body.node[2].domain = "Strange", "odd", "elsewhere"
    model.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    with pytest.raises(RuleError, match=r"'odd' \(Strange\)"):
        rewrite(model, target="weights", output="ys")


def test_what_grows_from_iteration_to_iteration_is_refused() -> None:
    text = """g (int64 T, float[1, 3] x) => (float[K, 3] y) {
        go = Constant <value = bool {1}> ()
        y = Loop <body = b (int64 i, bool c, float[M, 3] h) => (bool c1, float[L, 3] h1) {
            t = Tanh (x) h1 = Concat <axis = 0> (h, t) c1 = Identity (c) }> (T, go, x)
    }"""
    with pytest.raises(RuleError, match="grows"):
        rewrite(laws.model(text), target="weights")


def test_branches_may_share_names_and_weights_stay_single() -> None:
    weights = numbers(64, 64)
    text = """g (float[N, 64] x, bool c) => (float[N, 64] y) {
        y = If (c) <then_branch = t () => (float[N, 64] a) { m = MatMul (x, w) a = Relu (m) },
                    else_branch = e () => (float[N, 64] b) { m = MatMul (x, w) b = Tanh (m) }>
    }"""
    explainer = rewrite(laws.model(text, w=weights), target=0)
    big = [tensor.name for tensor in explainer.graph.initializer if len(tensor.raw_data) >= weights.nbytes]
    assert big == ["w"]
    assert len(explainer.SerializeToString()) < 1.5 * weights.nbytes
    x, r = numbers(2, 64), numbers(2, 64)
    for condition in (True, False):
        complete(laws.run(explainer, {"x": x, "x_reference": r, "c": np.array(condition)}))


def test_plans_reach_into_bodies() -> None:
    model = scanned()
    plan = onnxlift.Plan([onnxlift.Choice("proportional", op="Tanh")])
    explainer = rewrite(model, target="weights", output="ys", plan=plan)
    assert (description(explainer) or {})["rules"]["Tanh"] == "proportional"
    with pytest.raises(OptionError, match="matches no node"):
        rewrite(model, target="weights", output="ys", plan=onnxlift.Plan([onnxlift.Choice("rescale", name="nowhere")]))


@pytest.mark.parametrize("options", [{"inputs": ["gate"]}, {"output": "gate"}, {"expose": ["gate"]}])
def test_tensors_inside_of_bodies_are_refused_by_name(options: dict[str, object]) -> None:
    with pytest.raises(OptionError, match=r"'gate'.* inside of an If, Loop or Scan"):
        rewrite(scanned(), target=0, **options)


TENSOR_ARRAY = """g (float[N, 5, 3] x) => (float[N, 5, 3] y) {
    xt = Transpose <perm = [1, 0, 2]> (x)
    shape = Shape (xt)
    count = Gather (shape, zero)
    n = Cast <to = 6> (count)
    empty = ConstantOfShape (shape)
    start = Gather <axis = 0> (xt, zero)
    go = Less (none, n)
    k, array, last = Loop <body = b (int64 step, bool c, int32 i, float[A, B, C] held, float[N, 3] h) => (
        bool c1, int32 i1, float[A, B, C] held1, float[N, 3] h1) {
        xi = Gather <axis = 0> (xt, i)
        hw = MatMul (h, w)
        s = Add (hw, xi)
        h1 = Tanh (s)
        wide = Cast <to = 7> (i)
        place = Reshape (wide, square)
        row = Unsqueeze (h1, first)
        held1 = ScatterND (held, place, row)
        i1 = Add (i, unit)
        c1 = Less (i1, n)
    }> (many, go, none, empty, start)
    y = Transpose <perm = [1, 0, 2]> (array)
}"""


@pytest.mark.parametrize("rule", ["rescale", "reveal-cancel", "integrated-gradients:20", "gradient"])
def test_a_loop_of_tensorflow_that_counts_itself_and_writes_into_an_array(rule: str) -> None:
    w = numbers(3, 3)
    ints = {"zero": np.int64(0), "many": np.int64(10**6), "square": np.int64([1, 1]), "first": np.int64([0])}
    loop = laws.model(TENSOR_ARRAY, w=w, none=np.int32(0), unit=np.int32(1), **ints)
    lines = ["h0 = Gather <axis = 1> (x, i0)"]
    for k in range(5):
        lines.append(
            f"q{k} = Gather <axis = 1> (x, i{k}) w{k} = MatMul (h{k}, w) s{k} = Add (w{k}, q{k}) "
            f"h{k + 1} = Tanh (s{k}) u{k} = Unsqueeze (h{k + 1}, one)"
        )
    lines.append("y = Concat <axis = 1> (u0, u1, u2, u3, u4)")
    text = f"g (float[N, 5, 3] x) => (float[N, 5, 3] y) {{ {' '.join(lines)} }}"
    row = laws.model(text, w=w, one=np.int64([1]), **{f"i{k}": np.int64(k) for k in range(5)})
    x, r = ({"x": numbers(2, 5, 3)} for _ in range(2))
    got, expected = (explain(model, x, r, rule=rule) for model in (loop, row))
    np.testing.assert_allclose(got["x_contributions"], expected["x_contributions"], atol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], expected["completeness_gap"], atol=1e-5)


DOUBLE_IF = """g (float[N, 3] x, bool c, bool d) => (float[N, 3] y) {
    y0 = If (c) <
        then_branch = t () => (float[N, 3] a) {
            a0 = If (d) <then_branch = t2 () => (float[N, 3] a1) { a1 = Mul (x, x) },
                         else_branch = e2 () => (float[N, 3] a1) { a1 = Tanh (x) }>
            a = Add (a0, x) },
        else_branch = e () => (float[N, 3] a) {
            a0 = If (d) <then_branch = t2 () => (float[N, 3] a1) { a1 = Exp (x) },
                         else_branch = e2 () => (float[N, 3] a1) { a1 = Relu (x) }>
            a = Mul (a0, x) }
    >
    y = Mul (y0, x)
}"""


@pytest.mark.parametrize("rule", ["reveal-cancel", "genomics", "liftpad", "guided-backprop", "integrated-gradients:10"])
@pytest.mark.parametrize(("c", "d", "branch"), [(1, 0, "Tanh (x) a = Add"), (0, 0, "Relu (x) a = Mul")])
def test_an_input_that_branches_of_branches_read(c: int, d: int, branch: str, rule: str) -> None:
    x, r = {"x": numbers(4, 3)}, {"x": numbers(4, 3)}
    got = explain(laws.model(DOUBLE_IF), x, r, {"c": np.array(bool(c)), "d": np.array(bool(d))}, rule=rule)
    text = f"g (float[N, 3] x) => (float[N, 3] y) {{ a0 = {branch} (a0, x) y = Mul (a, x) }}"
    expected = explain(laws.model(text), x, r, rule=rule)
    np.testing.assert_allclose(got["x_contributions"], expected["x_contributions"], atol=1e-5)
