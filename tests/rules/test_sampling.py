"""Images looked at between their places, and regions of interest; with grids, offsets and boxes that change too."""

from __future__ import annotations

import itertools

import laws
import numpy as np
import onnx
import oracle
import pytest

import onnxlift

RNG = np.random.default_rng(47)
OPERATORS = ("AffineGrid", "DeformConv", "GridSample", "MaxRoiPool", "MaxUnpool", "RoiAlign")
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def split(x: Arrays, r: Arrays, active: str) -> tuple[Arrays, Arrays, Arrays]:
    """x, r and the others; `active` holds the first letters of the attributed inputs."""
    names = [name for name in x if name[0] in active]
    return (
        {name: x[name] for name in names},
        {name: r[name] for name in names},
        {name: value for name, value in x.items() if name not in names},
    )


# --- GridSample ------------------------------------------------------------------------------------------------------

MODES = [
    *itertools.product(("nearest", "linear", "cubic"), ("zeros", "border", "reflection"), (0, 1), (2,)),
    *itertools.product(("nearest", "linear"), ("zeros", "border", "reflection"), (0, 1), (3,)),
]


def grid_sample(mode: str, border: str, corners: int, spatial: tuple[int, ...], *, sizes: str = "N") -> onnx.ModelProto:
    """`sizes`: with a batch of any size (N), of any sizes at all (all), or of known ones."""
    rank = len(spatial)
    image = ", ".join("hwd"[:rank] if sizes == "all" else map(str, spatial))
    points = ", ".join("pqr"[:rank] if sizes == "all" else ["2"] * (rank - 1) + ["3"])
    n = "3" if sizes == "static" else "N"
    attributes = f'mode = "{mode}", padding_mode = "{border}", align_corners = {corners}'
    return laws.model(
        f"g (float[{n}, 2, {image}] x, float[{n}, {points}, {rank}] g) => (float[{n}, 2, {points}] y)"
        f" {{ y = GridSample <{attributes}> (x, g) }}"
    )


def grid_data(spatial: tuple[int, ...]) -> Arrays:
    """Points inside and outside of the image, far away too."""
    rank = len(spatial)
    grid = RNG.uniform(-1.8, 1.8, (3, *[2] * (rank - 1), 3, rank)).astype(np.float32)
    grid[0, 0, ..., 0, :] *= 4
    return {"x": normal(3, 2, *spatial), "g": grid}


@pytest.mark.parametrize(("mode", "border", "corners", "rank"), MODES)
@pytest.mark.parametrize("active", ["xg", "x", "g"])
def test_grid_sample(mode: str, border: str, corners: int, rank: int, active: str) -> None:
    spatial = (4, 5) if rank == 2 else (3, 2, 3)
    x, r, others = split(grid_data(spatial), grid_data(spatial), active)
    laws.check(
        grid_sample(mode, border, corners, spatial),
        x,
        r,
        others=others,
        references=rank == 2 and corners == 0,
        signed=rank == 2 and border == "zeros",
        rtol=2e-5,
    )


@pytest.mark.parametrize("sizes", ["all", "static"])
def test_grid_sample_of_sizes(sizes: str) -> None:
    x, r = grid_data((4, 5)), grid_data((4, 5))
    laws.check(grid_sample("linear", "border", 0, (4, 5), sizes=sizes), x, r, references=sizes == "all")


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_points_that_hardly_move(mode: str) -> None:
    """Some coordinates move, some not; within a cell and into the next one."""
    x, r = grid_data((4, 5)), grid_data((4, 5))
    steps = np.array([0, 1e-6, -1e-4, 1e-2, 0], np.float32)
    r["g"] = x["g"] + RNG.choice(steps, x["g"].shape)
    laws.check(grid_sample(mode, "zeros", 1, (4, 5)), x, r, rtol=1e-4)


def test_one_coordinate_that_matters() -> None:
    """An image that varies along its columns only: rows have no importance, however far a point moves."""
    model = grid_sample("linear", "border", 1, (4, 5))
    x, r = grid_data((4, 5)), grid_data((4, 5))
    x["x"] = r["x"] = np.broadcast_to(normal(3, 2, 1, 5), (3, 2, 4, 5)).copy()
    got = laws.check(model, x, r)
    np.testing.assert_allclose(got["g_contributions"][..., 1], 0, atol=1e-6)
    assert np.abs(got["g_contributions"][..., 0]).max() > 0.1


def test_a_point_between_two_places() -> None:
    """From place 1 to place 2 the value rises from 10 to 30: a unit of the grid is one place here."""
    model = grid_sample("linear", "zeros", 1, (1, 3))
    image = np.zeros((3, 2, 1, 3), np.float32)
    image[:, 0, 0] = [0, 10, 30]
    grid, grid0 = np.zeros((2, 3, 2, 3, 2), np.float32)
    grid[..., 0], grid0[..., 0] = 1, 0
    explainer = onnxlift.rewrite(model, inputs=["g"], target="weights", emit=("multipliers",))
    feed = {"x": image, "g": grid, "g_reference": grid0, "target_weights": np.ones((3, 2, 2, 3), np.float32)}
    got = laws.run(explainer, feed)["g_multipliers"]
    np.testing.assert_allclose(got[..., 0], 20, rtol=1e-6)
    np.testing.assert_allclose(got[..., 1], 0, atol=1e-6)


# --- AffineGrid ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("corners", [0, 1])
@pytest.mark.parametrize("spatial", [(3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("given", ["constant", "input"])
def test_affine_grid(spatial: tuple[int, ...], corners: int, given: str) -> None:
    rank = len(spatial)
    size = np.array([5, 1, *spatial])
    inputs = [f"float[5, {rank}, {rank + 1}] t", *([f"int64[{rank + 2}] size"] if given == "input" else [])]
    model = laws.model(
        f"g ({', '.join(inputs)}) => (float[5, {', '.join('hwd'[:rank])}, {rank}] y)"
        f" {{ y = AffineGrid <align_corners = {corners}> (t, size) }}",
        **({} if given == "input" else {"size": size}),
    )
    others = {"size": size} if given == "input" else {}
    x, r = ({"t": normal(5, rank, rank + 1)} for _ in range(2))
    laws.check(model, x, r, others=others, references=False, signed=given == "constant")


def test_spatial_transformer() -> None:
    """From theta through the grid to the image: one chain."""
    model = laws.model(
        """g (float[5, 2, 3] t, float[5, 1, 4, 4] x) => (float[5, 1, 4, 4] y) {
            grid = AffineGrid (t, size) y = GridSample <mode = "linear"> (x, grid)
        }""",
        size=np.array([5, 1, 4, 4]),
    )
    unit = np.eye(2, 3, dtype=np.float32)
    x, r = ({"t": unit + normal(5, 2, 3) * np.float32(0.3), "x": normal(5, 1, 4, 4)} for _ in range(2))
    laws.check(model, x, r, references=False, rtol=3e-5)


# --- MaxUnpool -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["", "given"])
@pytest.mark.parametrize("sizes", ["2, 3", "h, w"])
def test_max_unpool(shape: str, sizes: str) -> None:
    n, out = 3, [4, 7] if shape else [4, 6]
    area = 2 * out[0] * out[1]
    places = np.stack([row * area + RNG.permutation(area)[:12] for row in range(n)]).reshape(n, 2, 2, 3)
    model = laws.model(
        f"g (float[3, 2, {sizes}] x, int64[3, 2, {sizes}] i) => (float[3, 2, H, W] y)"
        f" {{ y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (x, i{', out' if shape else ''}) }}",
        out=np.array([n, 2, *out]),
    )
    x, r = ({"x": normal(n, 2, 2, 3)} for _ in range(2))
    laws.check(model, x, r, others={"i": places}, references=False, signed=not shape)


def test_places_that_are_taken_twice() -> None:
    """The last one stays; the others have no importance."""
    model = laws.model(
        "g (float[1, 1, 4] x, int64[1, 1, 4] i) => (float[1, 1, 8] y)"
        " { y = MaxUnpool <kernel_shape = [2], strides = [2]> (x, i) }"
    )
    got = laws.check(
        model, {"x": normal(1, 1, 4)}, {"x": normal(1, 1, 4)}, others={"i": np.array([[[5, 2, 5, 7]]])}, signed=False
    )
    assert got["x_multipliers"][0, 0, 0] == 0


SEGNET = """g (float[N, 2, 4, 6] x) => (float[N, 2, 4, 6] y) {
    p, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
    q = Tanh (p)
    y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (q, i)
}"""


def test_places_that_the_data_choose() -> None:
    """Of every window: x and its maximum move together, so that the window's place gets what it brings."""
    explainer = onnxlift.rewrite(laws.model(SEGNET), target="weights", emit=("contributions", "multipliers"))
    onnx.checker.check_model(explainer, full_check=True)
    x, r, w = normal(3, 2, 4, 6), normal(3, 2, 4, 6), normal(3, 2, 4, 6)
    got = laws.run(explainer, {"x": x, "x_reference": r, "target_weights": w})
    expected = np.zeros(x.shape)
    for n, c, i, j in np.ndindex(3, 2, 2, 3):
        window = (n, c, slice(2 * i, 2 * i + 2), slice(2 * j, 2 * j + 2))
        a, b, m = (v[window].astype(np.float64).ravel() for v in (x, r, w))
        here, there = a.argmax(), b.argmax()
        q, q0 = np.tanh(a[here]), np.tanh(b[there])
        shares = oracle.share_maximum(a, b, (m[here] + m[there]) / 2 * (q - q0) / (a[here] - b[there]), "shared")
        found = np.zeros(4)
        for place, share in shares.items():
            found[place] += share * (a - b)[place]
        moved = (m[here] - m[there]) * (q + q0) / 2
        squares = {place: (a - b)[place] ** 2 for place in (here, there)}
        for place in (here, there) if moved else ():
            found[place] += moved * squares[place] / sum(squares.values())
        expected[window] = found.reshape(2, 2)
    np.testing.assert_allclose(got["x_contributions"], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


@pytest.mark.parametrize("reference", ["shared", "grouped", "zeros"])
def test_places_against_several_references(reference: str) -> None:
    explainer = onnxlift.rewrite(laws.model(SEGNET), target="weights", reference=reference)
    references = {"shared": normal(2, 2, 4, 6), "grouped": normal(3, 2, 2, 4, 6)}.get(reference)
    feed = {"x": normal(3, 2, 4, 6), "target_weights": normal(3, 2, 4, 6)}
    got = laws.run(explainer, feed | ({} if references is None else {"x_reference": references}))
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5)


# --- DeformConv ------------------------------------------------------------------------------------------------------

# channels, weight, groups, groups of offsets, attributes, output size
DEFORM: list[tuple[int, tuple[int, ...], int, int, str, tuple[int, int]]] = [
    (2, (5, 2, 2, 2), 1, 1, "", (3, 4)),
    (4, (2, 2, 2, 3), 2, 1, "pads = [1, 0, 0, 1]", (4, 4)),
    (4, (2, 4, 1, 2), 1, 2, "strides = [2, 1]", (2, 4)),
    (4, (4, 1, 2, 2), 4, 2, "dilations = [2, 1], pads = [1, 1, 0, 0]", (3, 5)),
]


@pytest.mark.parametrize(("channels", "weight", "group", "parts", "attributes", "size"), DEFORM, ids=str)
@pytest.mark.parametrize("active", ["xwobm", "xwo", "x", "o", "wm"])
def test_deformable_convolution(
    channels: int,
    weight: tuple[int, ...],
    group: int,
    parts: int,
    attributes: str,
    size: tuple[int, int],
    active: str,
) -> None:
    taps = weight[2] * weight[3]
    full = ", ".join([f"group = {group}, offset_group = {parts}", *([attributes] if attributes else [])])
    masked = active != "xwo"
    names = "x, w, o, b, m" if masked else "x, w, o"
    out = f"{size[0]}, {size[1]}"
    inputs = [
        f"float[N, {channels}, 4, 5] x",
        f"float[{', '.join(map(str, weight))}] w",
        f"float[N, {2 * parts * taps}, {out}] o",
        f"float[{weight[0]}] b",
        f"float[N, {parts * taps}, {out}] m",
    ]
    model = laws.model(
        f"g ({', '.join(inputs if masked else inputs[:3])}) => (float y) {{ y = DeformConv <{full}> ({names}) }}"
    )

    def data() -> Arrays:
        arrays = {
            "x": normal(3, channels, 4, 5),
            "w": normal(*weight),
            "o": normal(3, 2 * parts * taps, *size) * np.float32(1.5),
            "b": normal(weight[0]),
            "m": normal(3, parts * taps, *size),
        }
        return arrays if masked else {name: arrays[name] for name in "xwo"}

    x, r, others = split(data(), data(), active)
    laws.check(model, x, r, others=others, references=active in "xo", signed=False, rtol=2e-5)


def test_a_convolution_without_offsets() -> None:
    """Offsets of 0 that do not change: what a convolution gives."""
    model = laws.model(
        "g (float[N, 2, 4, 5] x, float[3, 2, 2, 2] w, float[N, 8, 3, 4] o) => (float y) { y = DeformConv (x, w, o) }"
    )
    plain = laws.model("g (float[N, 2, 4, 5] x, float[3, 2, 2, 2] w) => (float y) { y = Conv (x, w) }")
    x, r, offsets = normal(3, 2, 4, 5), normal(3, 2, 4, 5), np.zeros((3, 8, 3, 4), np.float32)
    feed = {"x": x, "x_reference": r, "w": normal(3, 2, 2, 2), "target_weights": normal(3, 3, 3, 4)}
    got = [laws.run(onnxlift.rewrite(m, inputs=["x"], target="weights"), feed | o) for m, o in
           ((model, {"o": offsets}), (plain, {}))]  # fmt: skip
    np.testing.assert_allclose(got[0]["x_contributions"], got[1]["x_contributions"], rtol=1e-5, atol=1e-5)


def test_the_shape_of_the_weight_has_to_be_known() -> None:
    model = laws.model(
        "g (float[N, 2, 4, 5] x, float[k, 2, 2, 2] w, float[N, 8, 3, 4] o) => (float y) { y = DeformConv (x, w, o) }"
    )
    with pytest.raises(onnxlift.RuleError, match="shape of its weight"):
        onnxlift.rewrite(model, inputs=["x"], target="weights")


# --- regions of interest ---------------------------------------------------------------------------------------------

ALIGN = [
    f"{mode}output_height = {height}, output_width = 2, sampling_ratio = {ratio}{more}"
    for mode in ("", 'mode = "max", ')
    for height, ratio, more in (
        (3, 2, ""),
        (1, 3, ", spatial_scale = 0.5"),
        (3, 0, ""),
        (2, 0, ', coordinate_transformation_mode = "output_half_pixel"'),
    )
]
POOL = ["pooled_shape = [2, 3]", "pooled_shape = [1, 1], spatial_scale = 0.5", "pooled_shape = [3, 2]"]
OWNERS = np.array([1, 0, 1, 1, 0])


def boxes() -> np.ndarray:
    """Inside, partly outside and outside of an image of 6 x 7; one is empty."""
    corners = np.sort(RNG.uniform(-1, 8, (5, 2, 2)), axis=1).reshape(5, 4).astype(np.float32)
    corners[3] = [-4, -4, -3, -2.5]
    corners[4] = [3.2, 3.3, 2.1, 2.4]
    return corners


@pytest.mark.parametrize("attributes", ALIGN)
@pytest.mark.parametrize("active", ["xb", "x", "b"])
@pytest.mark.parametrize("sizes", ["N, 2, 6, 7", "2, 2, h, w"])
def test_region_align(attributes: str, active: str, sizes: str) -> None:
    model = laws.model(
        f"g (float[{sizes}] x, float[R, 4] b, int64[R] i) => (float y) {{ y = RoiAlign <{attributes}> (x, b, i) }}"
    )
    x, r, others = split(*({"x": normal(2, 2, 6, 7), "b": boxes(), "i": OWNERS} for _ in range(2)), active)
    got = laws.check(model, x, r, others=others, references=False, signed=False)
    assert got["completeness_gap"].shape == (() if "x" in active else (5,))  # of everything, or box by box


@pytest.mark.parametrize("attributes", POOL)
@pytest.mark.parametrize("active", ["xb", "x", "b"])
def test_region_pool(attributes: str, active: str) -> None:
    model = laws.model(
        f"g (float[N, 2, 6, 7] x, float[R, 5] b) => (float y) {{ y = MaxRoiPool <{attributes}> (x, b) }}"
    )

    def data() -> Arrays:
        return {"x": normal(2, 2, 6, 7), "b": np.concatenate([OWNERS[:, None], boxes()], axis=1).astype(np.float32)}

    x, r, others = split(data(), data(), active)
    laws.check(model, x, r, others=others, references=False, signed=False)


@pytest.mark.parametrize("text", [f"RoiAlign <{ALIGN[2]}> (x, b, i)", f"RoiAlign <{ALIGN[6]}> (x, b, i)"])
def test_no_boxes(text: str) -> None:
    model = laws.model(f"g (float[N, 2, 6, 7] x, float[R, 4] b, int64[R] i) => (float y) {{ y = {text} }}")
    explainer = onnxlift.rewrite(model, inputs=["x"], target="weights", emit=("contributions", "multipliers"))
    feed = {"x": normal(2, 2, 6, 7), "x_reference": normal(2, 2, 6, 7)}
    boxes = {"b": np.zeros((0, 4), np.float32), "i": np.zeros(0, np.int64)}
    got = laws.run(explainer, {**feed, **boxes, "target_weights": np.zeros((0, 2, 3, 2), np.float32)})
    assert not got["x_multipliers"].any()


def test_regions_under_reveal_cancel() -> None:
    """Their outputs count as one cause."""
    model = laws.model(
        f"g (float[N, 2, 6, 7] x, float[5, 4] b, int64[5] i) => (float z)"
        f" {{ a = Relu (x) y = RoiAlign <{ALIGN[0]}> (a, b, i) z = Tanh (y) }}"
    )
    others = {"b": boxes(), "i": OWNERS}
    explainer = onnxlift.rewrite(model, inputs=["x"], target="weights", rule="reveal-cancel")
    feed = {"x": normal(2, 2, 6, 7), "x_reference": normal(2, 2, 6, 7), **others, "target_weights": normal(5, 2, 3, 2)}
    got = laws.run(explainer, feed)
    np.testing.assert_allclose(got["completeness_gap"], 0, atol=1e-5 * np.abs(got["x_contributions"]).sum())
