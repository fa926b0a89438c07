"""Models that read tokens or bytes: where they are attributed to, and references made of ids."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

import onnxlift
from onnxlift import DataError, OptionError, references, rewrite
from onnxlift.metadata import description

CPU = "CPUExecutionProvider"
RNG = np.random.default_rng(5)

BERT = """g (int64[N, S] ids, int64[N, S] mask, int64[N, S] kinds) => (float[N, 2] y) {
    words = Gather (table, ids)
    segments = Gather (types, kinds)
    count = CumSum (mask, axis)
    places = Gather (positions, count)
    some = Add (words, segments)
    all = Add (some, places)
    m = Cast <to = 1> (mask)
    wide = Unsqueeze (m, last)
    kept = Mul (all, wide)
    h = Tanh (kept)
    pooled = ReduceMean <keepdims = 0> (h, axes)
    y = MatMul (pooled, w)
}"""


def bert() -> onnx.ModelProto:
    shapes = {"table": (50, 8), "types": (2, 8), "positions": (9, 8), "w": (8, 2)}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    ints = {"axis": np.int64(1), "axes": np.int64([1]), "last": np.int64([2])}
    return laws.model(BERT, **weights, **ints)


def about(model: onnx.ModelProto, **options: object) -> dict[str, object]:
    return dict(description(rewrite(model, target=0, **options)) or {})


def test_tokens_are_attributed_where_words_are_looked_up() -> None:
    found = about(bert())
    assert found["inputs"] == ["words"]
    assert found["references"] == ["ids"]
    assert found["notes"] == ["input 'ids' is attributed at 'words', which it looks up in a table of 50"]


def test_reference_ids_make_the_reference() -> None:
    model = bert()
    ids, kinds = RNG.integers(1, 50, (3, 6)), RNG.integers(0, 2, (3, 6))
    feed = {"ids": ids, "mask": np.ones((3, 6), np.int64), "kinds": kinds}
    got = onnxlift.Explainer(model, target=1, reference="token:0:7,8", providers=[CPU])(feed)
    expected = onnxlift.Explainer(model, target=1, providers=[CPU])(
        feed, reference={"ids": np.where((ids == 7) | (ids == 8), ids, 0)}
    )
    np.testing.assert_array_equal(got.contributions["words"], expected.contributions["words"])
    table = onnx.numpy_helper.to_array(model.graph.initializer[0])
    at_r = laws.run(model, {**feed, "ids": np.where((ids == 7) | (ids == 8), ids, 0)})["y"][:, 1]
    np.testing.assert_allclose(got.target_reference, at_r, rtol=1e-6)
    np.testing.assert_allclose(got.gap, 0, atol=1e-6)
    assert np.abs(got.difference).max() > 1e-2
    same = ids == 0
    assert not got.contributions["words"][same].any()
    assert got.contributions["words"].shape == (3, 6, table.shape[1])


@pytest.mark.parametrize("reference", ["zeros", "constant:3", {"ids": np.full((1, 6), 4)}])
def test_stored_references_are_ids_too(reference: object) -> None:
    feed = {"ids": RNG.integers(1, 50, (2, 6)), "mask": np.ones((2, 6), np.int64), "kinds": np.zeros((2, 6), np.int64)}
    got = onnxlift.Explainer(bert(), target=0, reference=reference, providers=[CPU])(feed)
    np.testing.assert_allclose(got.gap, 0, atol=1e-6)
    assert np.abs(got.difference).max() > 1e-2


def test_two_look_ups_in_one_table_are_both_attributed() -> None:
    text = """g (int64[N, 3] a, int64[N, 4] b) => (float[N, 5] y) {
        ea = Gather (table, a) eb = Gather (table, b)
        ha = ReduceSum <keepdims = 0> (ea, axes) hb = ReduceMax <keepdims = 0> (eb, axes) y = Mul (ha, hb)
    }"""
    model = laws.model(text, table=RNG.standard_normal((20, 5)).astype(np.float32), axes=np.int64([1]))
    assert about(model)["inputs"] == ["ea", "eb"]


@pytest.mark.parametrize(
    ("kind", "body", "at"),
    [
        ("uint8", "f = Cast <to = 1> (x) s = Mul (f, k) y = ReduceSum <keepdims = 0> (s, axes)", "f"),
        ("int32", "i = Add (x, three) f = Cast <to = 1> (i) s = Tanh (f) y = ReduceSum <keepdims = 0> (s, axes)", "f"),
        ("int64", "o = OneHot <axis = 1> (x, depth, ends) s = Tanh (o) y = ReduceSum <keepdims = 0> (s, axes)", "o"),
    ],
)
def test_numbers_that_become_floats(kind: str, body: str, at: str) -> None:
    constants = {"k": np.float32(0.01), "axes": np.int64([1]), "depth": np.int64(9), "ends": np.float32([0, 1])}
    text = f"g ({kind}[N, 4] x) => (float[N] y) {{ {body} }}"
    used = {name: value for name, value in constants.items() if f" {name}" in body}
    if "three" in body:
        used["three"] = np.int32(3)
    model = laws.model(text.replace("float[N] y", "float[N, 4] y") if at == "o" else text, **used)
    found = description(rewrite(model, target=0 if at == "o" else None)) or {}
    assert found["inputs"] == [at]


def test_ids_in_floats_are_ids() -> None:
    text = """g (float[N, 4] x) => (float[N, 5] y) {
        i = Cast <to = 6> (x) e = Gather (table, i) p = Equal (x, pad) n = Not (p) m = Cast <to = 1> (n)
        w = Unsqueeze (m, last) k = Mul (e, w) t = Tanh (k) y = ReduceSum <keepdims = 0> (t, axes)
    }"""
    table = RNG.standard_normal((9, 5)).astype(np.float32)
    model = laws.model(text, table=table, pad=np.float32(0), last=np.int64([2]), axes=np.int64([1]))
    assert about(model)["inputs"] == ["e"]
    ids = RNG.integers(1, 9, (3, 4)).astype(np.float32)
    got = onnxlift.Explainer(model, target=1, providers=[CPU])(ids, reference=ids[::-1])
    np.testing.assert_allclose(got.gap, 0, atol=1e-6)
    assert np.abs(got.difference).max() > 1e-2
    assert about(model, inputs=["x"])["inputs"] == ["x"]  # through the index, where that is asked for


def test_a_one_hot_table_that_is_written_out() -> None:
    text = """g (int32[N, 4] x) => (float[N, 4, 5] y) {
        u = Unsqueeze (x, last) q = Equal (u, letters) f = Cast <to = 1> (q) h = MatMul (f, w) y = Tanh (h)
    }"""
    w = RNG.standard_normal((6, 5)).astype(np.float32)
    model = laws.model(text, letters=np.arange(6, dtype=np.int32), w=w, last=np.int64([2]))
    found = description(rewrite(model, target=(0, 0))) or {}
    assert found["inputs"] == ["f"]
    assert "a table of 6" in found["notes"][0]


def test_ids_may_be_hashed() -> None:
    text = """g (int64[N, 4] ids, int64[N, 4] mask) => (float[N, 4, 10] y) {
        a = Add (ids, one) b = Mul (a, prime) c = Mod (b, buckets) e = Gather (table, c)
        d = Mul (a, other) f = Mod (d, buckets) h = Gather (table2, f) both = Concat <axis = 2> (e, h)
        m = Cast <to = 1> (mask) w = Unsqueeze (m, last) y = Mul (both, w)
    }"""
    tables = {name: RNG.standard_normal((16, 5)).astype(np.float32) for name in ("table", "table2")}
    ints = {"one": 1, "prime": 31, "other": 43, "buckets": 16}
    model = laws.model(text, **tables, **{k: np.int64(v) for k, v in ints.items()}, last=np.int64([2]))
    found = description(rewrite(model, target=(0, 0))) or {}
    assert found["inputs"] == ["e", "h"]
    assert found["references"] == ["ids"]


def test_a_float_input_comes_first() -> None:
    text = """g (float[N, 4] x, int64[N, 4] ids) => (float[N, 4] y) { e = Gather (table, ids) y = Mul (x, e) }"""
    model = laws.model(text, table=np.arange(9, dtype=np.float32))
    assert about(model)["inputs"] == ["x"]


def test_what_is_found_nowhere_is_said() -> None:
    text = """g (int64[N, 4] n) => (float[N, 4] y) { s = Mod (n, n) y = Cast <to = 1> (s) }"""
    with pytest.raises(OptionError, match=r"no float tensor is looked up"):
        rewrite(laws.model(text), target=0)
    with pytest.raises(OptionError, match=r"'ids' is int64, not a float.*for instance 'words'"):
        rewrite(bert(), inputs=["ids"], target=0)


@pytest.mark.parametrize("text", ["token", "token:", "token:x", "token:-1", "token:1:", "token:1:a", "token:1.5"])
def test_badly_named_tokens(text: str) -> None:
    with pytest.raises(OptionError, match="token"):
        rewrite(bert(), target=0, reference=text)


def test_tokens_are_integers() -> None:
    with pytest.raises(DataError, match="float64"):
        references.tokens([0.5], 1)
    text = "g (float[N, 4] x) => (float[N, 4] y) { y = Tanh (x) }"
    explainer = onnxlift.Explainer(laws.model(text), target=0, reference="token:0", providers=[CPU])
    with pytest.raises(DataError, match="replaces tokens, but input 'x' holds float32"):
        explainer(np.ones((2, 4), np.float32))


def test_a_batch_that_is_behind_the_positions_where_words_are_looked_up() -> None:
    text = """g (int64[N, 6] ids) => (float[N, 2] y) {
        turned = Transpose <perm = [1, 0]> (ids)
        e = Gather (table, turned)
        h = Tanh (e)
        s = ReduceSum <keepdims = 0> (h, axes)
        y = MatMul (s, w)
    }"""
    shapes = {"table": (9, 8), "w": (8, 2)}
    weights = {name: RNG.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    model = laws.model(text, **weights, axes=np.int64([0]))
    ids = RNG.integers(1, 9, (3, 6))
    got = onnxlift.Explainer(model, target=1, reference="token:0", providers=[CPU])(ids)
    assert got.contributions["e"].shape == (6, 3, 8)
    assert got.gap.shape == (3,)
    np.testing.assert_allclose(got.gap, 0, atol=1e-5)
    np.testing.assert_allclose(got.contributions["e"].sum(axis=(0, 2)), got.difference, atol=1e-5)
    with pytest.raises(OptionError, match="batch in front of what is attributed to"):
        rewrite(model, target=0, reference="shared")
