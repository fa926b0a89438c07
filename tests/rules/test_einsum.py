"""Products of any number of factors: Einsum, the determinant and CumProd; batch normalisation with all its inputs."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import onnxruntime
import pytest

import onnxlift
from onnxlift.rules.einsum import line_points

RNG = np.random.default_rng(41)
OPERATORS = ("BatchNormalization", "Det", "Einsum")


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


# equation, shapes of the operands a, b, c ...
EINSUM: list[tuple[str, list[tuple[int, ...]]]] = [
    ("nij->nji", [(3, 2, 4)]),
    ("nij->n", [(3, 2, 4)]),
    ("nij", [(3, 2, 4)]),
    ("nii->ni", [(3, 4, 4)]),
    ("nii->n", [(3, 4, 4)]),
    ("niji->nj", [(3, 4, 2, 4)]),
    ("nijjij->ni", [(3, 2, 3, 3, 2, 3)]),
    ("...i->...", [(3, 2, 4)]),
    ("nij, nkj -> nik", [(3, 2, 4), (3, 5, 4)]),
    ("nij,njk", [(3, 2, 4), (3, 4, 2)]),
    ("n...j,njk->n...k", [(3, 2, 5, 4), (3, 4, 2)]),
    ("...ij,...jk->...ik", [(3, 2, 4, 5), (3, 1, 5, 2)]),
    ("nij,nkl->nik", [(3, 2, 4), (3, 5, 2)]),  # letters that only one operand has
    ("nii,nij->nj", [(3, 4, 4), (3, 4, 2)]),
    ("nij,nik->nijk", [(3, 2, 1), (3, 2, 4)]),
    ("nij,nj->ni", [(3, 2, 4), (3, 1)]),  # the letter j is broadcast
    ("n,n->n", [(3,), (3,)]),
    ("nij,njk,nkl->nil", [(3, 2, 4), (3, 4, 5), (3, 5, 2)]),
    ("ni,ni,ni->ni", [(3, 4), (3, 4), (3, 4)]),
    ("ni,nj,nk,nl->nijkl", [(3, 2), (3, 2), (3, 3), (3, 2)]),
    ("nA,na->nAa", [(3, 2), (3, 4)]),
]


def einsum(equation: str, shapes: list[tuple[int, ...]], *, constants: str = "", dynamic: str = "N") -> onnx.ModelProto:
    """One Einsum; operands in `constants` are not inputs. `dynamic`: which extents have symbols, the batch or all."""
    names = "abcd"[: len(shapes)]

    def extents(name: str, shape: tuple[int, ...]) -> str:
        symbols = [f"{name}{k}" for k in range(len(shape))] if dynamic == "all" else [str(size) for size in shape]
        return ", ".join([dynamic[:1] if dynamic != "all" else "N", *symbols[1:]] if dynamic else symbols)

    inputs = [f"float[{extents(n, s)}] {n}" for n, s in zip(names, shapes, strict=True) if n not in constants]
    held = {n: normal(*s) for n, s in zip(names, shapes, strict=True) if n in constants}
    node = f'y = Einsum <equation = "{equation}"> ({", ".join(names)})'
    return laws.model(f"g ({', '.join(inputs)}) => (float y) {{ {node} }}", **held)


def values(model: onnx.ModelProto, shapes: list[tuple[int, ...]]) -> dict[str, np.ndarray]:
    named = {value.name for value in model.graph.input}
    return {name: normal(*shape) for name, shape in zip("abcd", shapes, strict=False) if name in named}


@pytest.mark.parametrize(("equation", "shapes"), EINSUM)
@pytest.mark.parametrize("dynamic", ["N", ""], ids=["dynamic", "static"])
def test_einsum(equation: str, shapes: list[tuple[int, ...]], dynamic: str) -> None:
    model = einsum(equation, shapes, dynamic=dynamic)
    laws.check(model, values(model, shapes), values(model, shapes), references=bool(dynamic), signed=len(shapes) < 4)


@pytest.mark.parametrize("constants", ["b", "a", "bc", "ac", "c"])
def test_einsum_of_some_constants(constants: str) -> None:
    equation, shapes = "ni,ij,jk->nk", [(3, 2), (2, 4), (4, 3)]
    model = einsum(equation, shapes, constants=constants, dynamic="")
    laws.check(model, values(model, shapes), values(model, shapes), references=False)


@pytest.mark.parametrize(("equation", "shapes"), [EINSUM[k] for k in (0, 3, 8, 11, 15)])
def test_einsum_of_unknown_sizes(equation: str, shapes: list[tuple[int, ...]]) -> None:
    model = einsum(equation, shapes, dynamic="all")
    laws.check(model, values(model, shapes), values(model, shapes))


def test_einsum_of_a_number() -> None:
    model = laws.model('g (float a, float[4] b) => (float y) { y = Einsum <equation = ",i->i"> (a, b) }')
    x, r = ({"a": np.float32(RNG.standard_normal()), "b": normal(4)} for _ in range(2))
    laws.check(model, {k: np.asarray(v) for k, v in x.items()}, {k: np.asarray(v) for k, v in r.items()}, signed=False)


def test_einsum_that_sums_over_samples_has_one_gap() -> None:
    model = laws.model('g (float[N, 4] a, float[N, 4] b) => (float[N] y) { y = Einsum <equation = "ij,kj->k"> (a, b) }')
    x, r = ({"a": normal(3, 4), "b": normal(3, 4)} for _ in range(2))
    assert laws.check(model, x, r, references=False, signed=False)["completeness_gap"].shape == ()


def test_einsum_whose_letters_have_no_order() -> None:
    model = laws.model('g (float[N, 4] a) => (float y) { y = Einsum <equation = "nA"> (a) }')
    with pytest.raises(onnxlift.RuleError, match="no '->'"):
        onnxlift.rewrite(model, target="weights")


@pytest.mark.parametrize("factors", range(1, 8))
def test_points_are_exact(factors: int) -> None:
    """The mean over all orders of a product of the factors that come before and after."""
    rng = np.random.default_rng(factors)
    x, r = rng.standard_normal((2, factors - 1))
    orders = list(itertools.product((False, True), repeat=factors - 1))
    weights = [1 / (factors * len(list(itertools.combinations(range(factors - 1), sum(order))))) for order in orders]
    expected = sum(w * np.prod(np.where(order, x, r)) for order, w in zip(orders, weights, strict=True))
    got = sum(w * np.prod(r + t * (x - r)) for t, w in line_points(factors))
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-14)


# --- determinants ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 1, 1), (3, 2, 2), (3, 3, 3), (3, 2, 2, 2), (2, 4, 4)], ids=str)
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
def test_determinant(shape: tuple[int, ...], static: bool) -> None:
    sizes = ", ".join(map(str, shape if static else ("N", *shape[1:])))
    model = laws.model(f"g (float[{sizes}] x) => (float y) {{ y = Det (x) }}")
    laws.check(model, {"x": normal(*shape)}, {"x": normal(*shape)}, references=not static)


def test_determinant_of_one_matrix() -> None:
    model = laws.model("g (float[3, 3] x) => (float y) { y = Det (x) }")
    laws.check(model, {"x": normal(3, 3)}, {"x": np.zeros((3, 3), np.float32)}, signed=False)


def test_singular_matrices() -> None:
    """A determinant that is 0 in both runs, and not between them."""
    model = laws.model("g (float[N, 3, 3] x) => (float y) { y = Det (x) }")
    explainer = onnxlift.rewrite(model, target="weights", emit=("contributions", "multipliers"))
    x, r = np.repeat(normal(2, 1, 3), 3, axis=1), np.repeat(normal(2, 3, 1), 3, axis=2)
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": normal(2)})
    assert np.abs(got["x_multipliers"]).max() > 0.01
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-6)


def test_a_large_matrix_conserves() -> None:
    model = laws.model("g (float[N, 9, 9] x) => (float y) { y = Det (x) }")
    explainer = onnxlift.rewrite(model, target="weights")
    x, r = normal(2, 9, 9), normal(2, 9, 9)
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": normal(2)})
    scale = np.abs(got["x_contributions"]).sum()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5 * scale)


def test_the_size_has_to_be_known() -> None:
    model = laws.model("g (float[N, k, k] x) => (float y) { y = Det (x) }")
    with pytest.raises(onnxlift.RuleError, match="size of its matrices"):
        onnxlift.rewrite(model, target="weights")


# --- cumulative products ---------------------------------------------------------------------------------------------


def cumulative_product(shape: str, axis: int | None, attributes: str, dtype: str = "double") -> onnx.ModelProto:
    """`y = CumProd (x, axis)` at opset 26; without `axis` it is an input."""
    inputs = f"{dtype}[{shape}] x" + ("" if axis is not None else ", int32 axis")
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 26]>\n'
        f"g ({inputs}) => ({dtype}[{shape}] y) {{ y = CumProd <{attributes}> (x, axis) }}"
    )
    if axis is not None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(axis, np.int64), "axis"))
    return model


def by_products(x: np.ndarray, r: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Multipliers of a vector: the product of 1, 2, 4 ... places, pair by pair with midpoints."""
    x_steps, r_steps, places = [x], [r], 1
    while places < len(x):
        for steps in (x_steps, r_steps):
            steps.append(steps[-1] * np.concatenate([np.ones(places), steps[-1][:-places]]))
        places *= 2
    for x_now, r_now in zip(x_steps[-2::-1], r_steps[-2::-1], strict=True):
        places //= 2
        before = np.zeros(len(x))
        for i, g in enumerate(m):
            here, there = (x_now[i] + r_now[i]) / 2, 1.0
            if i >= places:
                there = (x_now[i - places] + r_now[i - places]) / 2
                before[i - places] += g * here
            before[i] += g * there
        m = before
    return m


@pytest.mark.parametrize("attributes", ["exclusive = 0", "exclusive = 1", "reverse = 1", "exclusive = 1, reverse = 1"])
@pytest.mark.parametrize("axis", [1, -1, None], ids=str)
@pytest.mark.parametrize("shape", ["3, 6", "N, 6", "N, L", "3, 1"])
def test_cumulative_product(shape: str, axis: int | None, attributes: str) -> None:
    model = cumulative_product(shape, axis, attributes)
    size = (3, 1 if shape.endswith("1") else 6)
    x, r, w = (RNG.standard_normal(size) for _ in range(3))
    x[0, 0], r[1, :2], r[2] = 0, 0, x[2]
    explainer = onnxlift.rewrite(model, inputs=["x"], target="weights", emit=("contributions", "multipliers"))
    onnx.checker.check_model(explainer, full_check=True)
    extra = {} if axis is not None else {"axis": np.array(1, np.int32)}
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w, **extra})
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(got["y"], session.run(None, {"x": x, **extra})[0], rtol=1e-14)
    turn = -1 if "reverse" in attributes else 1
    for row in range(3):
        a, b, m = (v[row][::turn] for v in (x, r, w))
        if "exclusive = 1" in attributes:
            expected = np.append(by_products(np.append(1, a[:-1]), np.append(1, b[:-1]), m)[1:], 0)
        else:
            expected = by_products(a, b, m)
        np.testing.assert_allclose(got["x_multipliers"][row], expected[::turn], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(got["completeness_gap"].sum(), 0, atol=1e-12)


def test_cumulative_product_over_samples_has_one_gap() -> None:
    explainer = onnxlift.rewrite(cumulative_product("N, 6", 0, "exclusive = 0", "float"), target="weights")
    got = laws.run(explainer, {"x": normal(5, 6), "x_reference": normal(5, 6), "target_weights": normal(5, 6)})
    assert got["completeness_gap"].shape == ()
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


# --- batch normalisation ---------------------------------------------------------------------------------------------

STATISTICS = ("s", "b", "mean", "var")


def batch_norm(shape: tuple[int, ...], attributes: str, outputs: str = "y") -> onnx.ModelProto:
    sizes = ", ".join(["N", *map(str, shape[1:])])
    inputs = [f"float[{sizes}] x", *(f"float[{shape[1]}] {name}" for name in STATISTICS)]
    node = f"{outputs} = BatchNormalization <{attributes}> (x, s, b, mean, var)"
    return laws.model(f"g ({', '.join(inputs)}) => (float y) {{ {node} }}")


def statistics(channels: int) -> dict[str, np.ndarray]:
    return {"s": normal(channels), "b": normal(channels), "mean": normal(channels), "var": abs(normal(channels))}


@pytest.mark.parametrize("active", [("x", *STATISTICS), ("x",), ("s",), ("var",), ("mean", "b"), ("x", "var")], ids=str)
@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 5), (2, 4, 2, 3)], ids=str)
def test_batch_normalization(active: tuple[str, ...], shape: tuple[int, ...]) -> None:
    model = batch_norm(shape, "epsilon = 0.01")
    x, r = ({"x": normal(*shape), **statistics(shape[1])} for _ in range(2))
    others = {name: x.pop(name) for name in list(x) if name not in active}
    laws.check(model, x, {name: r[name] for name in x}, others=others, references=active == ("x",))


@pytest.mark.parametrize("active", [("x", *STATISTICS), ("x",), ("s",), ("x", "b")], ids=str)
@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 3)], ids=str)
def test_batch_normalization_in_training(active: tuple[str, ...], shape: tuple[int, ...]) -> None:
    """Samples depend on each other, so that there is one gap for all."""
    model = batch_norm(shape, "training_mode = 1", "y, m, v")
    x, r = ({"x": normal(*shape), **statistics(4)} for _ in range(2))
    others = {name: x.pop(name) for name in list(x) if name not in active}
    got = laws.check(model, x, {name: r[name] for name in x}, others=others, references=False, signed=False)
    assert got["completeness_gap"].shape == ()


def test_running_statistics() -> None:
    model = batch_norm((5, 4), "training_mode = 1", "y, m, v")
    with pytest.raises(onnxlift.RuleError, match="running statistics"):
        onnxlift.rewrite(model, inputs=["x"], output="m", target="weights")
    plan = onnxlift.Plan([onnxlift.Choice("reveal-cancel", op="Tanh")])
    model.graph.node.append(onnx.helper.make_node("Tanh", ["y"], ["z"]))
    model.graph.output[0].name = "z"
    with pytest.raises(onnxlift.RuleError, match="in training mode"):
        onnxlift.rewrite(model, inputs=["x"], target="weights", plan=plan)


def test_half_precision() -> None:
    model = laws.model(
        "g (float16[N, 4, 5] x) => (float16 y) { y = BatchNormalization (x, s, b, mean, var) }",
        **{name: value.astype(np.float16) for name, value in statistics(4).items()},
    )
    laws.check(model, {"x": normal(3, 4, 5).astype(np.float16)}, {"x": normal(3, 4, 5).astype(np.float16)}, rtol=4e-3)
