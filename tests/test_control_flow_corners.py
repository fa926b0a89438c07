"""If, Loop and Scan where bodies and what is around them could be mistaken for something else."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

from onnxlift import OptionError, RuleError, rewrite
from onnxlift.metadata import description

OPERATORS = ("If", "Loop", "Scan")

RNG = np.random.default_rng(3)
Arrays = dict[str, np.ndarray]
YES = np.array(True)


def numbers(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def complete(model: onnx.ModelProto, *shape: int, others: Arrays | None = None) -> np.ndarray:
    """The contributions of x, of this shape, which add up; `others`: further inputs."""
    explainer = rewrite(model, target="weights")
    onnx.checker.check_model(explainer, full_check=True)
    x, r, others = numbers(*shape), numbers(*shape), others or {}
    y = laws.run(model, {"x": x, **others})[(description(explainer) or {})["output"]]
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": np.ones_like(y), **others})
    assert np.abs(got["target_output"] - got["target_reference"]).max() > 1e-2
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-4)
    return got["x_contributions"]


# --- axes that are no batch ------------------------------------------------------------------------------------------

SCAN_IN_FRONT = """g (float[T, 3] x) => (float[T, 3] ys) {
    last, ys = Scan <num_scan_inputs = 1, body = b (float[3] h, float[3] xi) => (float[3] ho, float[3] yi) {
        a = Add (h, xi)
        ho = Tanh (a)
        yi = Identity (ho)
    }> (start, x)
}"""
LOOP_IN_FRONT = """g (float[T, 3] x) => (float[T, 3] ys) {
    size = Shape <start = 0, end = 1> (x)
    n = Squeeze (size)
    last, ys = Loop <body = b (int64 i, bool c, float[3] h) => (bool c1, float[3] ho, float[3] yi) {
        xi = Gather (x, i)
        a = Add (h, xi)
        ho = Tanh (a)
        yi = Identity (ho)
        c1 = Identity (c)
    }> (n, go, start)
}"""


def test_the_axis_of_time_in_front_of_a_scan_is_no_batch() -> None:
    complete(laws.model(SCAN_IN_FRONT, start=numbers(3)), 4, 3)


def test_the_axis_of_time_in_front_of_a_loop_is_no_batch() -> None:
    complete(laws.model(LOOP_IN_FRONT, start=numbers(3), go=YES), 4, 3)


@pytest.mark.parametrize("shape", ["T, 1, 4", "T, N, 4"])
def test_the_leading_axis_of_a_recurrent_layer_is_no_batch(shape: str) -> None:
    text = f"g (float[{shape}] x) => (float[T, 1, B, 3] y) {{ y = LSTM <hidden_size = 3> (x, w, r) }}"
    complete(laws.model(text, w=numbers(1, 12, 4), r=numbers(1, 12, 3)), 5, 1, 4)


def test_samples_that_mix_inside_of_a_branch_are_no_batch() -> None:
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        y = If (c) <then_branch = t () => (float[N, 3] a) { q = Softmax <axis = 0> (x) a = Mul (q, x) },
                    else_branch = e () => (float[N, 3] b) { b = Relu (x) }>
    }"""
    complete(laws.model(text), 4, 3, others={"c": YES})


STACKED = """g (int64 T, float[N, 3] x) => (float[K, N, 3] y) {
    y = Loop <body = b (int64 i, bool c) => (bool c1, float[N, 3] o) {
        f = Cast <to = 1> (i)
        q = Mul (x, f)
        o = Tanh (q)
        c1 = Identity (c)
    }> (T, go)
}"""


def test_the_axis_that_a_loop_stacks_along_is_no_batch() -> None:
    complete(laws.model(STACKED, go=YES), 4, 3, others={"T": np.array(3)})


def test_slices_whose_number_depends_on_the_data_are_refused() -> None:
    text = """g (float[N, 3] x) => (float[N, 3] last, float[K, N, 3] ys) {
        last, ys = Loop <body = b (int64 i, bool c, float[N, 3] h) => (bool c1, float[N, 3] h1, float[N, 3] o) {
            h1 = Mul (h, half)
            o = Identity (h1)
            size = ReduceMax <keepdims = 0> (h1)
            c1 = Greater (size, half)
        }> (many, go, x)
    }"""
    model = laws.model(text, half=np.float32(0.5), many=np.int64(9), go=YES)
    with pytest.raises(RuleError, match="how many slices it stacks varies with the data"):
        rewrite(model, target="weights", output="ys")
    about = description(rewrite(model, target="weights", output="last")) or {}
    assert "how often it runs depends" in about["notes"][0]


# --- what bodies read ------------------------------------------------------------------------------------------------


def test_a_mask_that_is_made_outside_is_as_one_made_inside() -> None:
    outside = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        p = Greater (x, zero)
        e = Exp (x)
        y = If (c) <then_branch = t () => (float[N, 3] a) { k = Tanh (e) a = Where (p, k, e) },
                    else_branch = e () => (float[N, 3] b) { b = Relu (e) }>
    }"""
    straight = """g (float[N, 3] x) => (float[N, 3] y) {
        p = Greater (x, zero)
        e = Exp (x)
        k = Tanh (e)
        y = Where (p, k, e)
    }"""
    x, r, weights = numbers(4, 3), numbers(4, 3), numbers(4, 3)
    feed = {"x": x, "x_reference": r, "target_weights": weights}
    got = laws.run(rewrite(laws.model(outside, zero=np.float32(0)), target="weights"), {**feed, "c": YES})
    expected = laws.run(rewrite(laws.model(straight, zero=np.float32(0)), target="weights"), feed)
    np.testing.assert_allclose(got["x_contributions"], expected["x_contributions"], atol=1e-5)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


def test_a_tensor_that_bodies_read_can_be_exposed() -> None:
    text = """g (float[N, 3] x, bool c) => (float[N, 3] y) {
        x2 = Mul (x, x)
        y0 = If (c) <then_branch = t () => (float[N, 3] a) { m = Tanh (x2) a = Mul (m, x) },
                     else_branch = e () => (float[N, 3] a) { a = Add (x2, x) }>
        y = Mul (y0, x2)
    }"""
    feed = {"x": numbers(4, 3), "x_reference": numbers(4, 3), "c": YES}
    got = laws.run(rewrite(laws.model(text), target=1, expose=["x2"]), feed)
    assert got["x2/multiplier"].shape == (4, 3)
    assert np.abs(got["x2/multiplier"]).max() > 1e-2


LOOKED_UP = """g (int64[N, 4] ids, bool c) => (float[N, 4] y) {
    y = If (c) <then_branch = t () => (float[N, 4] a) { e = Gather (table, ids) a = Tanh (e) },
                else_branch = e () => (float[N, 4] a) { f = Cast <to = 1> (ids) a = Exp (f) }>
}"""
LOOKED_UP_STEP_BY_STEP = """g (int64[4, N] ids) => (float[N, 5] y) {
    y, ys = Scan <num_scan_inputs = 1,
        body = b (float[N, 5] h, int64[N] one) => (float[N, 5] h1, float[N, 5] h2) {
            e = Gather (table, one)
            s = Add (h, e)
            h1 = Tanh (s)
            h2 = Identity (h1)
        }> (start, ids)
}"""


@pytest.mark.parametrize(
    ("text", "constants"),
    [
        (LOOKED_UP, {"table": numbers(9)}),
        (LOOKED_UP_STEP_BY_STEP, {"table": numbers(9, 5), "start": numbers(1, 5)}),
    ],
    ids=["what a branch reads", "a slice"],
)
def test_ids_that_are_looked_up_inside_of_a_body_only(text: str, constants: Arrays) -> None:
    with pytest.raises(OptionError, match=r"'e', made of input 'ids', is inside of an If, Loop or Scan"):
        rewrite(laws.model(text, **constants), target=0)


# --- numbers, conditions and states of loops --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "condition", "given", "body"),
    [
        pytest.param(
            *("int64[1] i", "bool c", "go"),
            "ki = Gather (ks, i) k = Squeeze (ki, first) h0 = Mul (h, k) h1 = Tanh (h0) c1 = Identity (c)",
            id="a number of one axis",
        ),
        pytest.param(
            *("int64 i", "bool[1] c", "go1"),
            "f = Cast <to = 1> (c) k = Squeeze (f, first) h0 = Mul (h, k) h1 = Tanh (h0) c1 = Identity (c)",
            id="a condition of one axis",
        ),
        pytest.param(
            *("int64 i", "bool c", "go"),
            "f = Cast <to = 1> (c) h0 = Add (h, f) h1 = Tanh (h0) c1 = Identity (c)",
            id="a condition that is used",
        ),
        pytest.param("int64 i", "bool c", "", "h1 = Tanh (h) c1 = Identity (c)", id="no condition"),
        pytest.param("int64 i", "bool c", "", "h1 = Tanh (h) c1 = Less (i, two)", id="a condition made of the number"),
    ],
)
def test_numbers_and_conditions_of_loops(number: str, condition: str, given: str, body: str) -> None:
    text = f"""g (int64 T, float[N, 3] x) => (float[N, 3] y) {{
        y = Loop <body = b ({number}, {condition}, float[N, 3] h) => (bool c1, float[N, 3] h1) {{ {body} }}>
            (T, {given}, x)
    }}"""
    constants = {"ks": numbers(5, 3), "first": np.int64([0]), "go": YES, "go1": np.array([True]), "two": np.int64(2)}
    complete(laws.model(text, **constants), 4, 3, others={"T": np.array(3)})


@pytest.mark.parametrize(
    "body", ["t = Tanh (x) h0 = Concat <axis = 0> (h, t) h1 = Tanh (h0)", "h1 = Add (h, wide)"], ids=["Concat", "Add"]
)
def test_states_that_grow_behind_or_by_another_operator_are_refused(body: str) -> None:
    text = f"""g (int64 T, float[1, 3] x, float[N, 3] wide) => (float[K, 3] y) {{
        y = Loop <body = b (int64 i, bool c, float[M, 3] h) => (bool c1, float[L, 3] h1) {{
            {body} c1 = Identity (c)
        }}> (T, go, x)
    }}"""
    with pytest.raises(RuleError, match="grows"):
        rewrite(laws.model(text, go=YES), target="weights", inputs=["x"])


def test_the_shapes_of_many_states_settle() -> None:
    """A dim that varies reaches one state more with every iteration, and x behind the fifth."""
    text = """g (int64 T, int64[1] n, float[N, 3] x) => (float[N, 3] y) {
        a0, a1, a2, a3, a4, y = Loop <body = b (
            int64 i, bool c,
            float[A, 3] s0, float[B, 3] s1, float[C, 3] s2, float[D, 3] s3, float[E, 3] s4, float[N, 3] h
        ) => (
            bool c1,
            float[P, 3] p0, float[Q, 3] p1, float[R, 3] p2, float[S, 3] p3, float[U, 3] p4, float[N, 3] h1
        ) {
            p0 = Slice (x, first, n)
            p1 = Identity (s0)
            p2 = Identity (s1)
            p3 = Identity (s2)
            p4 = Identity (s3)
            q = ReduceMean <keepdims = 1> (s4, first)
            h0 = Add (h, q)
            h1 = Tanh (h0)
            c1 = Identity (c)
        }> (T, go, z, z, z, z, z, x)
    }"""
    model = laws.model(text, go=YES, z=numbers(2, 3), first=np.int64([0]))
    complete(model, 4, 3, others={"T": np.array(7), "n": np.int64([2])})
