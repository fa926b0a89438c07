"""How much runs at once: every pair once, as fast as the machine allows, never more than fits; results do not care."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from laws import model

import onnxlift
from onnxlift import batching, machine
from onnxlift.batching import Held, Pace, Tile
from onnxlift.session import CPU

RNG = np.random.default_rng(3)
WEIGHTS = {"W1": RNG.standard_normal((6, 8)).astype(np.float32), "W2": RNG.standard_normal((8, 3)).astype(np.float32)}
MLP = "g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, W1)\n a = Relu(h)\n y = MatMul(a, W2) }"
X = RNG.standard_normal((7, 6)).astype(np.float32)
R = RNG.standard_normal((7, 5, 6)).astype(np.float32)
GIB = 1 << 30


def explainer(reference: object, **options: object) -> onnxlift.Explainer:
    return onnxlift.Explainer(
        model(MLP, **WEIGHTS), providers=[CPU], target=1, reference=reference, progress=False, **options
    )


def pace(references: int = 1, **options: object) -> Pace:
    defaults = {"splits": references > 1, "shared": False, "elements": 1 << 19, "held": Held(), "fixed": None}
    return Pace(references, **{**defaults, **options})  # type: ignore[arg-type]


def settle(chosen: Pace, seconds: Callable[[int], float], samples: int = 1 << 20) -> list[int]:
    """The sizes that run until `chosen` settles, on a machine that takes so long for so many pairs."""
    sizes = []
    for tile in chosen.tiles(samples):
        sizes.append(tile.pairs)
        if tile.pairs == chosen.pairs:
            chosen.learn(seconds(tile.pairs))
        if chosen.settled:
            break
    return sizes


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda: 1000 * GIB)


# --------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (lambda n: 0.025 * n, {1}),  # an image network: no size gains, the smallest takes least memory
        (lambda n: 1e-4 + 3.5e-5 * n * (1 if n <= 100 else 1.4), {64}),  # a small network that falls out of the cache
        (lambda n: 0.2 + 0.01 * n, {512}),  # big weights are read once per run
        (lambda n: 3e-5 + 1e-6 * n, {2048, 4096}),
    ],
)
@pytest.mark.usefixtures("roomy")
def test_the_fastest_size_is_found(seconds: Callable[[int], float], expected: set[int]) -> None:
    chosen = pace()
    sizes = settle(chosen, seconds)
    assert chosen.settled
    assert chosen.pairs in expected
    assert max(sizes) <= 8 * chosen.pairs
    each = min(seconds(n) / n for n in map((2).__pow__, range(14)))
    assert seconds(chosen.pairs) / chosen.pairs < 1.15 * each


@pytest.mark.usefixtures("roomy")
def test_one_slow_run_decides_nothing() -> None:
    """The first run of each size takes memory from the system; any other may meet another process."""
    for slow in (2, 4, 8):
        chosen, disturbed = pace(), itertools.cycle([slow, 1])
        settle(chosen, lambda n, disturbed=disturbed: next(disturbed) * (0.2 + 0.01 * n))
        assert chosen.pairs == 512


@pytest.mark.parametrize(("samples", "runs"), [(1, 1), (2, 2), (3, 3), (8, 6), (64, 16)])
@pytest.mark.usefixtures("roomy")
def test_few_samples_are_not_searched_long(samples: int, runs: int) -> None:
    """A search costs at most what it is for: where nothing gains the samples run one by one, which costs nothing."""
    chosen = pace()
    assert len(settle(chosen, lambda n: 0.2 + 0.01 * n, samples)) <= runs
    quick = pace()
    assert len(settle(quick, lambda n: 3e-5 + 1e-6 * n, samples)) <= 4


# ------------------------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("need", [GIB // 100, GIB // 10, GIB])
@pytest.mark.parametrize(("references", "splits"), [(1, False), (20, True), (1000, True), (3, False)])
def test_memory_bounds_a_run(monkeypatch: pytest.MonkeyPatch, need: int, references: int, splits: bool) -> None:
    """A pair needs so much of 8 GiB, of which the session may take a quarter, although larger runs would be faster."""
    held = Held()
    monkeypatch.setattr(batching, "free_memory", lambda: 8 * GIB - held.bytes)
    chosen = pace(references, splits=splits, held=held)
    for tile in chosen.tiles(5000):
        held.bytes = max(held.bytes, tile.pairs * need)
        least = 1 if splits else references
        assert tile.pairs <= max(least, 2 * GIB // need)
        if tile.pairs == chosen.pairs and not chosen.settled:
            chosen.learn(10 + 0.001 * tile.pairs)
    assert chosen.settled
    assert chosen.pairs * need > 0.9 * GIB, "what is there is used"


def test_where_memory_cannot_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "free_memory", lambda: None)
    for elements, expected in ((150528, 6), (1000, 512), (10**9, 1)):
        chosen = pace(elements=elements)
        settle(chosen, lambda n: 0.2 + 0.01 * n)
        assert chosen.pairs == expected


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize(("samples", "references", "pairs"), [(7, 5, 1), (7, 5, 4), (7, 5, 11), (1, 100, 9), (9, 1, 4)])
def test_tiles_have_every_pair_once(samples: int, references: int, pairs: int, shared: bool) -> None:
    chosen = pace(references, splits=True, shared=shared)
    chosen.pairs = pairs
    seen = np.zeros((samples, references), int)
    for tile in chosen.tiles(samples):
        assert tile.pairs <= pairs
        seen[tile.start : tile.stop, tile.first : tile.last] += 1
    assert (seen == 1).all()


def test_tiles_of_shared_references_are_square() -> None:
    """A tile of n samples and k references costs n + k forward rows."""
    chosen = pace(1000, shared=True)
    chosen.pairs = 64
    assert next(chosen.tiles(1000)) == Tile(0, 8, 0, 8)
    assert next(chosen.tiles(2)) == Tile(0, 2, 0, 32)
    grouped = pace(1000)
    grouped.pairs = 64
    assert next(grouped.tiles(1000)) == Tile(0, 1, 0, 64)


# ------------------------------------------------------------------------------------------------ what comes out


def same(got: onnxlift.Explanation, expected: onnxlift.Explanation) -> None:
    arrays = expected.arrays()
    assert got.arrays().keys() == arrays.keys()
    for name, array in got.arrays().items():
        assert (array.shape, array.dtype) == (arrays[name].shape, arrays[name].dtype), name
        size = np.abs(arrays["y" if name == "completeness_gap" else name]).max()
        np.testing.assert_allclose(array, arrays[name], rtol=0, atol=2e-6 * size, err_msg=name)


@pytest.mark.parametrize("room", [1, 3, 4, 13])
@pytest.mark.parametrize(
    "options", [{"expose": ("a",)}, {"rule": "reveal-cancel", "expose": ("h",)}, {"rule": "integrated-gradients:4"}]
)
@pytest.mark.parametrize(("reference", "given"), [("shared", R[0]), ("grouped", R)])
def test_references_in_parts(
    monkeypatch: pytest.MonkeyPatch, reference: str, given: np.ndarray, options: dict[str, object], room: int
) -> None:
    """Contributions are means over references, so that parts of them add up by their sizes."""
    options = options | {"emit": ("contributions", "multipliers")}
    whole = explainer(reference, batch_size=7, **options)(X, reference=given)
    monkeypatch.setattr(batching, "FEW", 0)
    monkeypatch.setattr(Pace, "_room", lambda self: room)
    explain = explainer(reference, **options)
    ran = []
    run = Pace.watch
    monkeypatch.setattr(Pace, "watch", lambda self, pairs: ran.append(pairs) or run(self, pairs))
    same(explain(X, reference=given), whole)
    assert max(ran) == min(room, 13 // 5 * 5 if room > 5 else room)
    assert sum(ran) == 35


def test_stored_references_stay_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batching, "FEW", 0)
    monkeypatch.setattr(Pace, "_room", lambda self: 1)
    same(explainer({"x": R[0]})(X), explainer({"x": R[0]}, batch_size=7)(X))


def test_as_many_references_as_samples_in_a_run() -> None:
    """Rows that count references are not taken for rows of samples."""
    for size in (2, 5):
        explanation = explainer("shared", batch_size=size)(X, reference=R[0, :size])
        assert explanation.reference_outputs["y"].shape == (size, 3)
        same(explanation, explainer("shared", batch_size=7)(X, reference=R[0, :size]))


def test_half_precision_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    half = {name: array.astype(np.float16) for name, array in WEIGHTS.items()}
    net = model(MLP.replace("float", "float16"), **half)
    explain = onnxlift.Explainer(net, target=1, reference="shared", providers=[CPU], tolerance=0.1)
    whole = explain(X, reference=R[0]).contributions["x"]
    monkeypatch.setattr(batching, "FEW", 0)
    monkeypatch.setattr(Pace, "_room", lambda self: 1)
    explain = onnxlift.Explainer(net, target=1, reference="shared", providers=[CPU], tolerance=0.1)
    parts = explain(X, reference=R[0]).contributions["x"]
    assert parts.dtype == np.float16
    np.testing.assert_allclose(parts, whole, rtol=0, atol=4e-3 * np.abs(whole).max())


def test_a_set_size_repeats_to_the_bit() -> None:
    explain = explainer("shared", batch_size=3)
    first, again = (explain(X, reference=R[0]).arrays() for _ in range(2))
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)


def test_samples_that_cannot_be_joined_run_together_where_they_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "g (float[N, 6] x) => (float[N, 3] y, float[6, N] z) { h = MatMul(x, W1) y = MatMul(h, W2) z = Transpose(x) }"
    )
    explain = onnxlift.Explainer(model(text, **WEIGHTS), target=1, reference="zeros", providers=[CPU], progress=True)
    np.testing.assert_array_equal(explain(X).outputs["z"], X.T)
    np.testing.assert_array_equal(explain(X[:3]).outputs["z"], X[:3].T)
    explain._paces.clear()
    monkeypatch.setattr(Pace, "_room", lambda self: 5)
    with pytest.raises(onnxlift.DataError, match="output 'z' differs between batches"):
        explain(X)


def test_what_was_found_is_remembered() -> None:
    explain = explainer("shared")
    explain(X, reference=R[0])
    explain(X[:3], reference=R[1])
    assert len(explain._paces) == 1
    explain(X, reference=R[0, :2])
    assert len(explain._paces) == 2


class Small:
    """A session on a device with memory for a few rows."""

    def __init__(self, session: object, rows: int) -> None:
        self._session, self.rows = session, rows

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: object) -> None:
        if len(self.bound) > self.rows:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 4096")
        self._session.run_with_iobinding(binding)  # type: ignore[attr-defined]

    bound: np.ndarray = np.zeros(0)


@pytest.mark.parametrize(("reference", "given", "rows"), [("zeros", None, 2), ("grouped", R, 3)])
def test_a_device_without_memory(
    monkeypatch: pytest.MonkeyPatch, reference: str, given: np.ndarray | None, rows: int
) -> None:
    """What the device refuses runs in halves, and is not asked for again."""
    explain = explainer(reference)
    expected = explain(X, reference=given)
    small = explain.session = Small(explain.session, rows)
    explain._paces.clear()
    of = onnxlift.runtime.Feed.rows

    def watched(self: object, tile: Tile, fixed: int | None) -> dict[str, np.ndarray]:
        small.bound = np.zeros(tile.pairs)
        return of(self, tile, fixed)  # type: ignore[arg-type]

    monkeypatch.setattr(onnxlift.runtime.Feed, "rows", watched)
    same(explain(X, reference=given), expected)
    (pace,) = explain._paces.values()
    assert pace.settled
    assert pace.pairs <= rows
    explain.batch_size = 7
    with pytest.raises(onnxlift.DataError, match="cannot run on samples 0 to 6: Failed to allocate memory"):
        explain(X, reference=given)


# --------------------------------------------------------------------------------------------------- the machine


def system(folder: Path, groups: str, files: dict[str, str]) -> None:
    """A /proc and a /sys/fs/cgroup: what groups the process is in, and their files."""
    texts = {"proc/self/cgroup": groups, "proc/self/statm": "900 500 100 1 0 300 0\n"}
    texts["proc/meminfo"] = "MemTotal: 9000000 kB\nMemFree: 100 kB\nMemAvailable:   2000000 kB\n"
    for name, text in (texts | {f"cgroup/{name}": text for name, text in files.items()}).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


MIB = 1 << 20
V2 = {
    "a/memory.max": f"{900 * MIB}",
    "a/memory.current": f"{500 * MIB}",
    "a/memory.stat": f"inactive_file {100 * MIB}\n",
}
V1 = {
    "limit_in_bytes": f"{900 * MIB}\n",
    "usage_in_bytes": f"{500 * MIB}\n",
    "stat": f"total_inactive_file {100 * MIB}",
}
UNLIMITED = {"a/b/memory.max": "max\n", "a/b/memory.current": "1\n", "a/b/memory.stat": "inactive_file 0\n"}


@pytest.mark.parametrize(
    ("groups", "files", "memory", "processors"),
    [
        ("0::/\n", {}, 2000000 * 1024, 64),
        ("0::/a/b\n", {**UNLIMITED, **V2, "a/cpu.max": "250000 100000\n"}, 500 * MIB, 3),
        ("0::/a\n", {**V2, "a/cpu.max": "max 100000\n"}, 500 * MIB, 64),
        ("9:name=systemd:/\n4:memory:/a\n1:cpu,cpuacct:/a\n", {f"memory/a/memory.{k}": v for k, v in V1.items()}
         | {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, 500 * MIB, 64),
        ("1:cpu:/a\n", {"cpu/a/cpu.cfs_quota_us": "50000", "cpu/a/cpu.cfs_period_us": "100000"}, 2000000 * 1024, 1),
    ],
)  # fmt: skip
def test_limits_of_containers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, groups: str, files: dict[str, str], memory: int, processors: int
) -> None:
    system(tmp_path, groups, files)
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert machine.free_memory() == memory
    assert machine.cpus() == processors
    assert machine.held_memory() == 400 * machine.os.sysconf("SC_PAGE_SIZE")


def test_a_machine_that_does_not_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "_GROUPS", tmp_path / "cgroup")
    assert machine.free_memory() is machine.held_memory() is None
    assert machine.cpus() >= 1
    same(explainer("shared")(X, reference=R[0]), explainer("shared", batch_size=7)(X, reference=R[0]))


def test_threads_keep_to_the_processors_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxlift.session, "cpus", lambda: 1)
    monkeypatch.setattr(onnxlift.session.os, "cpu_count", lambda: 2)
    assert explainer("zeros").session.get_session_options().intra_op_num_threads == 1
    monkeypatch.setattr(onnxlift.session, "cpus", lambda: 2)
    assert explainer("zeros").session.get_session_options().intra_op_num_threads == 0
