"""Elementwise functions of several tensors that depend on the attributed inputs: Shapley values and their limits."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import pytest

import onnxlift

OPERATORS = ("Clip", "Max", "Mean", "Min", "Mod", "PRelu", "Pow", "Sum")


def values(*shape: int, low: float = -2.0, high: float = 2.0, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """x and r; some places stay."""
    rng = np.random.default_rng([seed, *shape])
    x, r = rng.uniform(low, high, (2, *shape)).astype(np.float32)
    return np.asarray(x), np.asarray(np.where(rng.random(shape) < 0.3, x, r))


Domains = dict[str, tuple[float, float]]
# operator and attributes, shapes of the operands (N is 4), where they live if not between -2 and 2
CASES: list[tuple[str, list[tuple[int, ...]], Domains]] = [
    ("PRelu", [(4, 3, 5), (4, 3, 5)], {}),
    ("PRelu", [(4, 3, 5), (3, 1)], {}),
    ("PRelu", [(4, 5), (1,)], {}),
    ("Clip", [(4, 5), (), ()], {"b": (-1.5, 0.0), "c": (0.0, 1.5)}),
    ("Clip", [(4, 5), ()], {}),
    ("Clip", [(4, 5), (), ()], {"b": (0.5, 1.5), "c": (-1.5, -0.5)}),  # bounds the wrong way round
    ("Pow", [(4, 5), (4, 5)], {"a": (0.3, 2.0)}),
    ("Pow", [(4, 5), (5,)], {"a": (0.3, 2.0)}),
    ("Pow", [(5,), (4, 5)], {"a": (0.3, 2.0)}),
    ("Mod <fmod = 1>", [(4, 5), (4, 5)], {"b": (0.6, 2.0)}),
    ("Mod <fmod = 1>", [(4, 5), (1,)], {"b": (-2.0, -0.6)}),
    *(
        (op, shapes, {})
        for op in ("Max", "Min", "Sum", "Mean")
        for shapes in ([(4, 5)], [(4, 5), (4, 5)], [(4, 5), (5,), (4, 1), (1,)], [(3, 5), (4, 1, 5), ()])
    ),
]


@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize(("op", "shapes", "domains"), CASES, ids=str)
def test_several_operands(op: str, shapes: list[tuple[int, ...]], domains: Domains, static: bool) -> None:
    """All of them together, and every selection of them with the others constant."""
    rank = max(map(len, shapes))

    def dims(shape: tuple[int, ...]) -> str:
        batch = len(shape) == rank and shape[0] == 4 and not static
        return ", ".join(["N", *map(str, shape[1:])] if batch else map(str, shape))

    names = "abcd"[: len(shapes)]
    pairs = {
        name: values(*shape, low=low, high=high, seed=ord(name))
        for name, shape in zip(names, shapes, strict=True)
        for low, high in [domains.get(name, (-2.0, 2.0))]
    }
    declared = ", ".join(
        f"float{f'[{dims(shape)}]' if shape else ''} {name}" for name, shape in zip(names, shapes, strict=True)
    )
    model = laws.model(f"g ({declared}) => (float y) {{ y = {op} ({', '.join(names)}) }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    for count in range(1, len(names) + 1):
        for chosen in itertools.combinations(names, count):
            laws.check(
                model,
                {name: pairs[name][0] for name in chosen},
                {name: pairs[name][1] for name in chosen},
                others={name: pairs[name][0] for name in names if name not in chosen},
                rtol=5e-5,
                references=False,
                signed=count > 1 and not static and pairs[chosen[0]][0].ndim > 0,
            )


def explain(
    model: object, x: dict[str, list[float]], r: dict[str, list[float]], **options: object
) -> dict[str, np.ndarray]:
    emit = ("contributions", "multipliers")
    explainer = onnxlift.rewrite(model, target="weights", emit=emit, **options)  # type: ignore[arg-type]
    feed = {name: np.float32([v]) for name, v in x.items()}
    feed |= {f"{name}_reference": np.float32([v]) for name, v in r.items()}
    return laws.run(explainer, {**feed, "target_weights": np.ones((1, len(next(iter(x.values())))), np.float32)})


def test_powers_of_two_variables_at_the_edge_of_their_domain() -> None:
    """A base of 0 in one run; a base < 0 that the exponent of the other run has no power of; overflow at a corner."""
    model = laws.model("g (float[N, 6] a, float[N, 6] b) => (float[N, 6] y) { y = Pow (a, b) }")
    x = {"a": [2, 0, -2, 4, 0, 1e30], "b": [3, 1, 3, 0.5, 2, 1]}
    r = {"a": [0, 3, 4, -2, 0, 2], "b": [2, 2, 0.5, 2, 1, 2]}
    got = explain(model, x, r)
    sums = got["a_contributions"] + got["b_contributions"]
    assert np.isfinite(sums).all()
    y, y0 = (np.power(np.float64(v["a"]), v["b"]) for v in (x, r))
    np.testing.assert_allclose(sums[0], y - y0, rtol=1e-6)


def test_power_of_a_tensor_and_itself() -> None:
    model = laws.model("g (float[N, 5] x) => (float[N, 5] y) { y = Pow (x, x) }")
    x, r = values(4, 5, low=0.3, high=2)
    laws.check(model, {"x": x}, {"x": r}, rtol=5e-5)


def test_exponents_of_another_type() -> None:
    model = laws.model("g (float[N, 5] a, double[N, 5] b) => (float[N, 5] y) { y = Pow (a, b) }")
    (a, a0), (b, b0) = values(4, 5, low=0.3, high=2), values(4, 5, seed=2)
    laws.check(
        model, {"a": a, "b": b.astype(np.float64)}, {"a": a0, "b": b0.astype(np.float64)}, rtol=5e-5, signed=False
    )


def test_limits_where_one_operand_stays() -> None:
    """dy/da at b where only a changes; where nothing changes the derivatives."""
    model = laws.model("g (float[N, 2] a, float[N, 2] b) => (float[N, 2] y) { y = Pow (a, b) }")
    got = explain(model, {"a": [3, 2], "b": [2, 3]}, {"a": [1, 2], "b": [2, 3]})
    np.testing.assert_allclose(got["a_multipliers"][0], [4, 12], rtol=1e-6)
    np.testing.assert_allclose(got["b_multipliers"][0, 1], 8 * np.log(2), rtol=1e-6)


def test_reveal_cancel_takes_several_operands_for_one_cause_each() -> None:
    body = "p = Pow (a, b) s = PRelu (p, c) y = Clip (s, , d)"
    model = laws.model(f"g (float[N, 3] a, float[N, 3] b, float[3] c, float d) => (float[N, 3] y) {{ {body} }}")
    rng = np.random.default_rng(4)
    x, r = (
        {
            "a": rng.uniform(0.5, 2, (4, 3)),
            "b": rng.uniform(-1, 2, (4, 3)),
            "c": rng.uniform(0, 1, 3),
            "d": rng.uniform(1, 2),
        }
        for _ in range(2)
    )
    for rule in ("rescale", "reveal-cancel"):
        explainer = onnxlift.rewrite(model, target="weights", rule=rule)
        feed = {k: np.float32(v) for k, v in x.items()} | {f"{k}_reference": np.float32(v) for k, v in r.items()}
        feed = {k: np.asarray(v) for k, v in feed.items()}
        got = laws.run(explainer, {**feed, "target_weights": rng.standard_normal((4, 3)).astype(np.float32)})
        np.testing.assert_allclose(np.sum(got["completeness_gap"]), 0, atol=1e-5)


def test_a_power_that_is_huge_at_a_corner_that_neither_run_sees() -> None:
    """20^2 and 0.05^-8 are: the second is 2.6e10, where dy is 0.0025."""
    model = laws.model("g (float[N, 1] a, float[N, 1] p) => (float[N, 1] y) { y = Pow (a, p) }")
    feed = {"a": 20, "p": -8, "a_reference": 0.05, "p_reference": 2}
    arrays = {name: np.full((1, 1), value, np.float32) for name, value in feed.items()}
    got = laws.run(onnxlift.rewrite(model), arrays)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-8)
    assert abs(got["a_contributions"]).max() < 1e6
