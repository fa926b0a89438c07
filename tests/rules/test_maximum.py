"""Maximum: the laws, ties, overlap, the hand examples, and every way in which batches meet."""

from __future__ import annotations

import laws
import numpy as np
import onnx
import pytest

from onnxlift import Choice, Plan, RuleError, rewrite

POOLS = {
    "tiles": ([4, 6], "kernel_shape = [2, 2], strides = [2, 2]"),
    "tiles with a remainder": ([5, 7], "kernel_shape = [2, 3], strides = [2, 3]"),
    "tiles, ceil": ([5, 7], "kernel_shape = [2, 3], strides = [2, 3], ceil_mode = 1"),
    "tiles, padded": ([5, 7], "kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 0, 0]"),
    "tiles, same": ([5, 7], 'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "SAME_UPPER"'),
    "tiles, valid": ([5, 7], 'kernel_shape = [2, 2], strides = [2, 2], auto_pad = "VALID"'),
    "tiles, 1-D": ([9], "kernel_shape = [4], strides = [4]"),
    "tiles, 3-D": ([4, 3, 5], "kernel_shape = [2, 3, 2], strides = [2, 3, 2]"),
    "overlap": ([5, 6], "kernel_shape = [3, 3], strides = [2, 1]"),
    "overlap, same": ([5, 6], 'kernel_shape = [3, 2], auto_pad = "SAME_LOWER"'),
    "overlap, 1-D": ([9], "kernel_shape = [4], strides = [3], pads = [2, 1]"),
    "overlap, 3-D": ([3, 4, 3], "kernel_shape = [2, 2, 2], pads = [1, 0, 0, 0, 1, 1]"),
    "default strides": ([5], "kernel_shape = [2]"),
    "dilated": ([7, 6], "kernel_shape = [2, 3], strides = [2, 1], dilations = [3, 2], pads = [1, 1, 0, 2]"),
    "dilated, no overlap": ([8], "kernel_shape = [2], strides = [2], dilations = [2]"),
    "ceil": ([6, 6], "kernel_shape = [3, 3], strides = [2, 2], ceil_mode = 1, pads = [0, 1, 0, 1]"),
    "storage order": ([5, 4], "kernel_shape = [2, 2], storage_order = 1"),
    "gaps": ([8], "kernel_shape = [2], strides = [3]"),
}
REDUCTIONS = {
    "one axis": ([2], 1),
    "one axis, dropped": ([-1], 0),
    "two trailing axes": ([2, 3], 1),
    "two trailing axes, dropped": ([3, -2], 0),
    "two axes apart": ([1, 3], 1),
    "two axes apart, dropped": ([3, 1], 0),
    "leading axes of a sample": ([1, 2], 1),
}
OPERANDS = {
    "two": ("x, z", "N, 2, 3"),
    "three": ("x, z, u", "N, 2, 3"),
    "three and a constant": ("x, c, z, u", "N, 2, 3"),
    "broadcasting": ("x, z", "N, 1, 3"),
    "more axes": ("x, z", "N, 1, 1, 3"),
    "the same one twice": ("x, z, x", "N, 2, 3"),
}
FIRST = Plan([Choice(rule="cross-max-first")])


def pair(seed: int, *shape: int, levels: int = 0, dtype: type = np.float32) -> list[np.ndarray]:
    """x and r; with `levels`, of so few values that ties abound."""
    rng = np.random.default_rng(seed)
    values = rng.integers(0, levels, (2, *shape)) if levels else rng.standard_normal((2, *shape)) * 2
    return list(values.astype(dtype))


def check(model: onnx.ModelProto, x: np.ndarray, r: np.ndarray, first: bool = False, **options) -> dict:  # type: ignore[no-untyped-def, type-arg]
    plan, ties = (FIRST, "first") if first else (None, "shared")
    return laws.check(model, {"x": x}, {"x": r}, plan=plan, ties=ties, **options)


def pool(dims: str, attributes: str, dtype: str = "float") -> onnx.ModelProto:
    return laws.model(f"g ({dtype}[{dims}] x) => ({dtype} y) {{ y = MaxPool <{attributes}> (x) }}")


@pytest.mark.parametrize("first", [False, True], ids=["cross-max", "first"])
@pytest.mark.parametrize("levels", [0, 3], ids=["random", "ties"])
@pytest.mark.parametrize(("spatial", "attributes"), POOLS.values(), ids=POOLS)
def test_max_pool(spatial: list[int], attributes: str, levels: int, first: bool) -> None:
    x, r = pair(0, 3, 2, *spatial, levels=levels)
    dims = ", ".join(map(str, ["N", 2, *spatial]))
    check(pool(dims, attributes), x, r, first)


@pytest.mark.parametrize("dims", ["N, C, H, W", "3, 2, 4, 6", "N, C, 4, 6", "N, 2, H, 6"])
@pytest.mark.parametrize("kind", ["tiles", "overlap"])
def test_max_pool_of_any_known_and_unknown_extents(dims: str, kind: str) -> None:
    x, r = pair(1, 3, 2, 4, 6, levels=4)
    check(pool(dims, POOLS[kind][1]), x, r, references="N" in dims)


def test_max_pool_whose_indices_the_model_reads() -> None:
    model = laws.model(
        "g (float[N, 2, 6] x) => (float y) { p, i = MaxPool <kernel_shape = [3], strides = [2]> (x)\n"
        "j = Mul (i, z) f = Cast <to = 1> (j) y = Add (p, f) }",
        z=np.int64(0),
    )
    with pytest.raises(RuleError, match="integer or boolean tensor 'j'"):
        rewrite(model, target="weights")
    model.graph.node[3].input[1] = "p"
    check(model, *pair(2, 3, 2, 6))


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize(("axes", "keepdims"), REDUCTIONS.values(), ids=REDUCTIONS)
@pytest.mark.parametrize("dims", ["N, 2, 3, 4", "N, A, B, C"])
def test_reduction(op: str, axes: list[int], keepdims: int, dims: str) -> None:
    text = f"g (float[{dims}] x) => (float y) {{ y = {op} <keepdims = {keepdims}> (x, axes) }}"
    model = laws.model(text, axes=np.array(axes))
    for levels in (0, 3):
        check(model, *pair(3, 3, 2, 3, 4, levels=levels))
    check(model, *pair(4, 3, 2, 3, 4, levels=2), first=True)


@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
@pytest.mark.parametrize("keepdims", [0, 1])
def test_reduction_to_one_number(op: str, keepdims: int) -> None:
    model = laws.model(f"g (float[A, 4] x) => (float y) {{ y = {op} <keepdims = {keepdims}> (x) }}")
    check(model, *pair(5, 3, 4, levels=3), references=False)


def test_reduction_over_no_axes_is_the_identity() -> None:
    model = laws.model("g (float[N, 4] x) => (float y) { y = ReduceMax <noop_with_empty_axes = 1> (x) }")
    got = check(model, *pair(6, 3, 4))
    assert np.ptp(got["x_contributions"]) > 0


@pytest.mark.parametrize("dims", ["N, 2, 5", "N, 2, 3, 4", "N, C, H, W"])
def test_global_max_pool(dims: str) -> None:
    model = laws.model(f"g (float[{dims}] x) => (float y) {{ y = GlobalMaxPool (x) }}")
    shape = (3, 2, 5) if "5" in dims else (3, 2, 3, 4)
    for levels in (0, 3):
        check(model, *pair(7, *shape, levels=levels))


@pytest.mark.parametrize("first", [False, True], ids=["cross-max", "first"])
@pytest.mark.parametrize("op", ["Max", "Min"])
@pytest.mark.parametrize(("names", "dims"), OPERANDS.values(), ids=OPERANDS)
def test_operands(op: str, names: str, dims: str, first: bool) -> None:
    inputs = [name for name in ("x", "z", "u") if name in names]
    shape = tuple(3 if dim == "N" else int(dim) for dim in dims.split(", "))
    sizes = {name: "N, 1, 2, 3" if len(shape) == 4 else "N, 2, 3" for name in inputs} | {"z": dims}
    listed = ", ".join(f"float[{sizes[name]}] {name}" for name in inputs)
    constant = {"c": np.array([0.5, -1, 1], np.float32)} if "c" in names else {}
    model = laws.model(f"g ({listed}) => (float y) {{ y = {op} ({names}) }}", **constant)
    for levels in (0, 3):
        pairs = {name: pair(8 + k, *(shape if name == "z" else (3, 1, 2, 3)[:: 1 if len(shape) == 4 else 1])[-len(shape):], levels=levels) for k, name in enumerate(inputs)}
        x, r = ({name: both[run] for name, both in pairs.items()} for run in (0, 1))
        laws.check(model, x, r, plan=FIRST if first else None, ties="first" if first else "shared")
