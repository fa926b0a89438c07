"""Jobs: the same result whichever way it is made, and every refusal before anything is lost."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from laws import model

import onnxlift
from onnxlift.arrays import temporary
from onnxlift.completeness import joined
from onnxlift.errors import DataError, OnnxliftError, OptionError
from onnxlift.formats import read_all
from onnxlift.jobs import Task, parts, run, stores

RNG = np.random.default_rng(3)
N = 9
X = RNG.standard_normal((N, 6)).astype(np.float32)
R = RNG.standard_normal((N, 6)).astype(np.float32)
W1, W2 = RNG.standard_normal((6, 8)).astype(np.float32), RNG.standard_normal((8, 3)).astype(np.float32)
MLP = model("g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, W1) a = Relu(h) y = MatMul(a, W2) }", W1=W1, W2=W2)
FILTERS = RNG.standard_normal((2, 4, 3)).astype(np.float32)
DENSE = RNG.uniform(-0.1, 0.3, (20, 1)).astype(np.float32)
DNA = model(
    "g (float[N, 4, 12] x) => (float[N, 1] y) "
    "{ c = Conv (x, K) a = Relu (c) f = Flatten (a) h = MatMul(f, W) y = Tanh(h) }",
    K=FILTERS,
    W=DENSE,
)
SEQUENCES = np.eye(4, dtype=np.float32)[RNG.integers(0, 4, (N, 12))].swapaxes(1, 2).copy()
LOG = model("g (float[N, 6] x) => (float[N, 6] y) { y = Log(x) }")
BOTH = ("contributions", "hypothetical")
FORMATS = (".npz", ".h5", ".zarr", ".parquet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in. Nobody pulls the plug: the disk need not be waited for."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    return tmp_path


def a_task(proto: onnx.ModelProto = MLP, data: Any = X, **options: Any) -> Task:
    """A task on files in the working folder, with batches of two."""
    onnx.save(proto, "model.onnx")
    np.savez("data.npz", **(data if isinstance(data, dict) else {"x": data}))
    own = {name: options.pop(name) for name in ("reference", "seed", "tolerance") if name in options}
    if isinstance(own.get("reference"), str):
        options["reference"] = own.pop("reference")
    return Task(Path("model.onnx"), Path("data.npz"), options=options, batch_size=2, **own)


def results(path: str) -> dict[str, np.ndarray]:
    arrays = read_all(path)
    assert isinstance(arrays, dict)
    shared = Path(path) / stores.SHARED
    return arrays | (read_all(shared) if shared.exists() else {})


def at_once(task: Task) -> dict[str, np.ndarray]:
    """What the explainer gives for all samples in one call."""
    explain = onnxlift.Explainer(task.model, batch_size=task.batch_size, seed=task.seed, **task.options)
    return explain(read_all(task.data), reference=task.reference).arrays()


def check_equal(got: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """To the bit, also of zeros."""
    assert set(got) == set(expected)
    for name, array in expected.items():
        assert (got[name].dtype, got[name].shape) == (array.dtype, array.shape), name
        assert got[name].tobytes() == array.tobytes(), name


# ------------------------------------------------------------------------------------------- the same result


@pytest.mark.parametrize("chunk", [2, 4, 100, None])
@pytest.mark.parametrize("suffix", FORMATS)
def test_chunks_join_to_the_whole(folder: Path, suffix: str, chunk: int | None) -> None:
    task = a_task(target="argmax", reference="zeros")
    outcome = run(task, Path(f"out{suffix}"), chunk_size=chunk)
    expected = at_once(task)
    check_equal(results(f"out{suffix}"), expected)
    assert {name: facts.shape for name, facts in outcome.arrays.items()} == {n: a.shape for n, a in expected.items()}
    assert outcome.found.samples == N
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "model.onnx", f"out{suffix}"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_samples_keep_their_names_where_text_has_a_place(folder: Path, suffix: str) -> None:
    onnx.save(DNA, "model.onnx")
    letters = np.array(list("ACGT"))[SEQUENCES.argmax(axis=1)]
    names = [f"record {'x' * number}" for number in range(N)]  # of several lengths
    Path("dna.fa").write_text("".join(f">{name}\n{''.join(row)}\n" for name, row in zip(names, letters, strict=True)))
    task = Task(Path("model.onnx"), Path("dna.fa"), options={"reference": "zeros"}, batch_size=2)
    run(task, Path(f"out{suffix}"), chunk_size=2)
    got = results(f"out{suffix}")
    expected = onnxlift.Explainer(DNA, reference="zeros", batch_size=2)(SEQUENCES).arrays()
    if suffix in (".npz", ".parquet"):
        assert got.pop("sample").tolist() == [name.split()[0] for name in names]
    check_equal(got, expected)


def test_other_arrays_in_the_data_are_left_out_and_told(folder: Path) -> None:
    task = a_task(data={"x": X, "label": np.arange(N)}, target=1, reference="zeros")
    outcome = run(task, Path("out.npz"), chunk_size=4)
    assert outcome.notes == ["the data's 'label' is no input of the explainer, and is left out"]
    check_equal(results("out.npz"), at_once(a_task(target=1, reference="zeros")))


WAYS: dict[str, tuple[onnx.ModelProto, Any, dict[str, Any]]] = {
    "paired": (MLP, {"x": X, "x_reference": R}, {"target": 1}),
    "one reference for all": (MLP, {"x": X, "x_reference": R[:1]}, {"target": 1}),
    "given beside the data": (MLP, X, {"target": 1, "reference": R}),
    "shared": (MLP, {"x": X, "x_reference": R[:3]}, {"target": 1, "reference": "shared"}),
    "grouped": (MLP, {"x": X, "x_reference": np.stack([R, R[::-1]], 1)}, {"target": 1, "reference": "grouped"}),
    "targets of samples": (MLP, {"x": X, "x_reference": R, "target": np.arange(N) % 3}, {"target": "input"}),
    "a target for all": (MLP, {"x": X, "x_reference": R, "target": np.array(2)}, {"target": "input"}),
    "weights": (MLP, {"x": X, "x_reference": R, "target_weights": R[:, :3]}, {"target": "weights"}),
    "several targets": (MLP, {"x": X, "x_reference": R}, {"target": [0, 2]}),
    "an exposed tensor": (MLP, {"x": X, "x_reference": R}, {"target": 1, "expose": ("a",)}),
    "shuffles": (DNA, SEQUENCES, {"reference": "dinuc-shuffle:3", "seed": 7, "emit": BOTH}),
    "zeros of both signs": (MLP, -X * 0, {"target": 1, "reference": "zeros"}),
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_explain(folder: Path, way: str) -> None:
    proto, data, options = WAYS[way]
    task = a_task(proto, data, **options)
    expected = at_once(task)
    for suffix in FORMATS:
        if way == "an exposed tensor" and suffix in (".zarr", ".h5"):
            with pytest.raises(OptionError, match=r"'a/\w+' would be inside of 'a'. Choose .npz or .parquet"):
                run(task, Path(f"out{suffix}"))
            continue
        run(task, Path(f"out{suffix}"), chunk_size=4)
        check_equal(results(f"out{suffix}"), expected)


def test_one_npz_has_the_bytes_of_a_saved_explanation(folder: Path) -> None:
    task = a_task(target="argmax", reference="zeros")
    explain = onnxlift.Explainer("model.onnx", batch_size=2, **task.options)
    explain(X).save("expected.npz")
    run(task, Path("out.npz"), chunk_size=2)
    assert Path("out.npz").read_bytes() == Path("expected.npz").read_bytes()


def test_models_without_a_batch_axis(folder: Path) -> None:
    proto = model("g (float[6] x) => (float[3] y) { h = MatMul(x, W1) a = Relu(h) y = MatMul(a, W2) }", W1=W1, W2=W2)
    task = replace(a_task(proto, X[0], target=1, reference="zeros"), batch_size=None)
    expected = at_once(task)
    for suffix in (".npz", ".zarr"):
        run(task, Path(f"out{suffix}"))
        check_equal(results(f"out{suffix}"), expected)
    run(task, Path("out.h5"))
    check_equal(results("out.h5"), {name: np.atleast_1d(array) for name, array in expected.items()})
    with pytest.raises(OptionError, match="the model has no batch axis"):
        run(task, Path("out.parquet"))


def test_layouts_that_cannot_be_made_are_told_before_the_work(folder: Path) -> None:
    proto = model("g (float[N, 6] x, float[N, 6] z) => (float[N, 3] y) "
                  "{ s = Add(x, z) y = MatMul(s, W) }", W=W1[:, :3])  # fmt: skip
    several = a_task(proto, {"x": X, "z": R}, target=1, reference="zeros")
    with pytest.raises(OptionError, match=r"one input, and the results are of 'x', 'z': explain one \(--inputs\)"):
        run(several, Path("out.npy"), layout="captum")
    run(several, Path("out.npz"), layout="captum")
    with pytest.raises(OptionError, match="one target of each sample"):
        run(a_task(target=[0, 2], reference="zeros"), Path("out.npz"), layout="captum")
    assert not list(folder.glob("*.parts"))


def test_classes_of_any_integer_type(folder: Path) -> None:
    """What ONNX Runtime calls int64 is another type of C than what NumPy does."""
    proto = model("g (float[N, 6] x) => (float[N, 3] y, int64[N] label) "
                  "{ y = MatMul(x, W) label = ArgMax <axis = 1, keepdims = 0> (y) }", W=W1[:, :3])  # fmt: skip
    task = a_task(proto, target=1, reference="zeros")
    for suffix in FORMATS:
        run(task, Path(f"out{suffix}"), chunk_size=4)
        check_equal(results(f"out{suffix}"), at_once(task))


def test_text_and_names_that_are_no_paths(folder: Path) -> None:
    proto = model("g (float[N, 6] x, string[N] label) => (float[N, 6] y, string[N] same) "
                  "{ y = Relu(x) same = Identity(label) }")  # fmt: skip
    label = np.array(["a" * (i + 1) for i in range(N)])
    with pytest.raises(DataError, match=r"of type tensor\(string\)"):
        run(a_task(proto, {"x": X, "label": label}, target=1, reference="zeros"), Path("out.npz"))
    proto = model("g (float[N, 6] x) => (float[N, 6] y, float[N, 6] z) { y = Relu(x) z = Neg(x) }")
    proto.graph.output[1].name = proto.graph.node[1].output[0] = "../z"
    task = a_task(proto, target=1, reference="zeros", output="y")
    for suffix in (".zarr", ".h5"):
        with pytest.raises(OptionError, match=r"'../z' is no path. Choose .npz or .parquet"):
            run(task, Path(f"out{suffix}"))
    run(task, Path("out.npz"), chunk_size=2)
    check_equal(results("out.npz"), at_once(task))
    proto.graph.output[1].name = proto.graph.node[1].output[0] = "/block/z"
    run(a_task(proto, target=1, reference="zeros", output="y"), Path("out.zarr"), chunk_size=2)
    np.testing.assert_array_equal(results("out.zarr")["block/z"], -X)


def test_text_of_any_width_is_joined(folder: Path) -> None:
    """Classifiers give labels as text, whose width differs between parts."""
    write = stores.NpzStore().write
    facts = []
    for number, texts in enumerate((["a", "bc"], ["longer", "d"])):
        array = np.array(texts)
        write(folder, number, 2 * number, {"label": array}, frozenset({"label"}))
        facts.append(
            parts.Mark(2 * number, 2 * number + 2, "", {"label": parts.ArrayFacts(array.dtype.str, (2,), True)}, None)
        )
    stores.NpzStore().finish(folder, facts, folder / "out.npz", None, None)
    np.testing.assert_array_equal(results("out.npz")["label"], ["a", "bc", "longer", "d"])


def test_outputs_that_differ_between_chunks(folder: Path) -> None:
    proto = model("g (float[N, 6] x) => (float[N, 6] y, float[6] m) "
                  "{ y = Relu(x) axes = Constant<value_ints=[0]>() m = ReduceMean<keepdims=0>(x, axes) }")  # fmt: skip
    task = replace(a_task(proto, target=1, reference="zeros"), batch_size=None)
    with pytest.raises(DataError, match=r"output 'm' differs between chunks .* with --chunk-size 9"):
        run(task, Path("out.npz"), chunk_size=3)
    shutil.rmtree("out.npz.parts")
    run(task, Path("out.npz"), chunk_size=9)
    np.testing.assert_allclose(results("out.npz")["m"], X.mean(axis=0), rtol=1e-5)


def test_chunks_follow_the_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample has 6 numbers of data, 6 contributions, 3 outputs, 3 of the reference and 3 sums: 84 bytes."""
    task = a_task(target="argmax", reference="zeros")
    for room, size in ((84, 2), (84 * 5, 4), (1 << 20, (1 << 20) // 84 // 2 * 2)):
        monkeypatch.setattr("onnxlift.jobs.task.CHUNK_BYTES", room)
        with task.open() as work:
            assert work.chunk_size() == size
    with replace(task, batch_size=None).open() as work:
        assert work.chunk_size() == (1 << 20) // 84


def test_zarr_chunks_are_of_bounded_size(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "CHUNK_BYTES", 2 * 6 * 4)
    task = a_task(target="argmax", reference="zeros")
    run(task, Path("out.zarr"), chunk_size=4)
    about = json.loads(Path("out.zarr/x_contributions/zarr.json").read_text())
    assert about["chunk_grid"]["configuration"]["chunk_shape"] == [2, 6]
    check_equal(results("out.zarr"), at_once(task))


def test_layouts(folder: Path) -> None:
    task = a_task(DNA, SEQUENCES, reference="zeros", emit=BOTH)
    expected = at_once(task)
    run(task, Path("scores.npz"), layout="modisco", chunk_size=2)
    with np.load("scores.npz") as saved:
        np.testing.assert_array_equal(saved["arr_0"], expected["x_hypothetical"])
    with pytest.raises(OptionError, match="does not end in"):
        run(task, Path("scores.txt"), layout="modisco")
    run(task, Path("SCORES.NPY"), layout="captum", chunk_size=2)
    np.testing.assert_array_equal(np.load("SCORES.NPY"), expected["x_contributions"])


# ---------------------------------------------------------------------------------------------- completeness


def test_completeness_is_that_of_all_chunks(folder: Path) -> None:
    """The samples are named by their numbers in the whole data, also those of parts that were there before."""
    data = np.full((N, 6), 2, np.float32)
    data[[1, 6, 8], 1] = 1e-30, 0, 0
    task = a_task(LOG, data, target=1, reference="constant:1")
    whole = onnxlift.Explainer("model.onnx", batch_size=2, **task.options)
    with pytest.warns(onnxlift.CompletenessWarning) as warned:
        whole(data)
    expected = str(warned[0].message)
    assert "2 of 9 samples" in expected
    assert "sample 6 (gap" in expected
    outcome = run(task, Path("out.npz"), chunk_size=2)
    assert outcome.found.complaint == expected
    assert np.isnan(outcome.found.gap) or np.isinf(outcome.found.gap)
    broken = break_at(task, "out.npz", 4)
    assert broken
    assert run(task, Path("out.npz"), chunk_size=2, resume=True).found == outcome.found or np.isnan(outcome.found.gap)


def test_what_is_found_in_parts_is_what_is_found_at_once(folder: Path) -> None:
    explain = onnxlift.Explainer(MLP, target=[0, 2], reference="zeros", tolerance=0.01)
    explanation = explain(X)
    spoilt_gap = RNG.standard_normal((N, 2)).astype(np.float32) * np.arange(N)[:, None] % 0.7
    spoilt_gap[5, 1] = np.nan
    whole = replace(explanation, gap=spoilt_gap)

    def part(rows: slice) -> onnxlift.Explanation:
        ends = {name: getattr(whole, name)[rows] for name in ("target", "target_reference", "gap")}
        return replace(whole, contributions={"x": whole.contributions["x"][rows]}, **ends)

    together = joined(explain.completeness(part(slice(i, i + 2)), i) for i in range(0, N, 2))
    at_once = explain.completeness(whole)
    assert together.complaint == at_once.complaint
    assert str(together) == str(at_once)
    assert together.worst[0].place == (5, 1)
    assert (together.samples, together.incomplete) == (at_once.samples, at_once.incomplete)


# -------------------------------------------------------------------------------------- ends before the end


def break_at(task: Task, out: str, number: int, **options: Any) -> str:
    """Run a job whose disk is full at a part; the message. Earlier parts are left."""
    make = stores.NpzStore.write

    def full(self: Any, folder: Path, part: int, *rest: Any) -> None:
        if part == number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
        make(self, folder, part, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stores.NpzStore, "write", full)
        with pytest.raises(OnnxliftError) as caught:
            run(task, Path(out), chunk_size=2, **options)
    return str(caught.value)


def test_a_full_disk_loses_nothing(folder: Path) -> None:
    task = a_task(target="argmax", reference="zeros")
    said = break_at(task, "out.npz", 3)
    assert said.startswith(
        "Cannot write out.npz.parts/results: No space left on device. Make room for it. 3 of 5 parts "
    )
    assert "are kept in out.npz.parts: --resume goes on with them" in said
    kept = {path: path.stat().st_mtime_ns for path in Path("out.npz.parts").rglob("part-*")}
    assert len(kept) == 6
    with pytest.raises(
        OptionError, match=r"parts of an explanation that did not end: go on with it by --resume, or del"
    ):
        run(task, Path("out.npz"), chunk_size=2)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    said = break_at(task, "out.npz", 4, resume=True)
    assert "4 of 5 parts" in said
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    run(task, Path("out.npz"), chunk_size=2, resume=True)
    check_equal(results("out.npz"), at_once(task))
    assert not Path("out.npz.parts").exists()


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_a_disk_that_is_full_at_the_end(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is room for the parts, but not for the result as well."""
    task = a_task(target="argmax", reference="zeros")

    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", lambda a, b: full() if Path(b).stem == "out" else Path(a).rename(b))
        with pytest.raises(OptionError) as error:
            run(task, Path(f"out{suffix}"), chunk_size=2)
    said = str(error.value)
    assert f"out{suffix}: No space left on device. Make room for it. 5 of 5 parts are kept in out{suffix}.parts" in said
    assert "--resume" in said
    run(task, Path(f"out{suffix}"), chunk_size=2, resume=True)
    check_equal(results(f"out{suffix}"), at_once(task))


def test_nothing_is_left_where_no_part_was_finished(folder: Path) -> None:
    task = a_task(target="argmax", reference="zeros")
    assert "kept" not in break_at(task, "out.npz", 0)
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "model.onnx"]


@pytest.mark.parametrize("suffix", FORMATS)
def test_there_may_be_nothing_to_resume(folder: Path, suffix: str) -> None:
    task = a_task(target="argmax", reference="zeros")
    run(task, Path(f"out{suffix}"), resume=True)
    check_equal(results(f"out{suffix}"), at_once(task))


@pytest.mark.parametrize("suffix", [".zarr", ".parquet", ".npz"])
def test_killed_when_all_but_the_deletion_was_done(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_task(target="argmax", reference="zeros")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda *a, **o: None)
        first = run(task, Path(f"out{suffix}"), chunk_size=4)
    assert Path(f"out{suffix}.parts").exists()
    assert run(task, Path(f"out{suffix}"), chunk_size=4, resume=True) == first
    assert not Path(f"out{suffix}.parts").exists()
    check_equal(results(f"out{suffix}"), at_once(task))


CHANGES: dict[str, tuple[Callable[[Task], Task], dict[str, Any], str]] = {
    "target": (lambda task: replace(task, options={**task.options, "target": 2}), {}, "--target (1 then, 2 now)"),
    "rule": (
        lambda task: replace(task, options={**task.options, "rule": "gradient"}),
        {},
        "--rule (not given then, gradient now)",
    ),
    "reference": (lambda task: replace(task, reference=R + 1), {}, "--reference (float32 [9, 6] "),
    "batch size": (lambda task: replace(task, batch_size=1), {}, "--batch-size (2 then, 1 now)"),
    "seed": (lambda task: replace(task, seed=1), {}, "--seed (0 then, 1 now)"),
    "tolerance": (lambda task: replace(task, tolerance=0.1), {}, "--tolerance (0.001 then, 0.1 now)"),
    "chunk size": (lambda task: task, {"chunk_size": 3}, "--chunk-size (2 then, 3 now)"),
    "data": (lambda task: np.savez("data.npz", x=X + 1) or task, {}, "the data (data.npz "),
    "model": (lambda task: onnx.save(MLP_2, "model.onnx") or task, {}, "the model ("),
}
MLP_2 = model("g (float[N, 6] x) => (float[N, 3] y) { h = MatMul(x, W1) a = Abs(h) y = MatMul(a, W2) }", W1=W1, W2=W2)


@pytest.mark.parametrize("change", CHANGES)
def test_the_parts_of_another_job(folder: Path, change: str) -> None:
    task = a_task(target=1, reference=R)
    break_at(task, "out.npz", 3)
    before = {path: path.read_bytes() for path in Path("out.npz.parts").rglob("*") if path.is_file()}
    changed, options, message = CHANGES[change]
    with pytest.raises(OptionError, match=re.escape(message)) as caught:
        run(changed(task), Path("out.npz"), resume=True, **{"chunk_size": 2} | options)
    assert "the parts of another job, which --resume cannot go on with: " in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


def test_files_may_move_together(folder: Path) -> None:
    task = a_task(target=1, reference=R)
    break_at(task, "out.npz", 3)
    Path("new").mkdir()
    for name in ("model.onnx", "data.npz", "out.npz.parts"):
        Path(name).rename(Path("new") / name)
    moved = replace(task, model=Path("new/model.onnx"), data=Path("new/data.npz"))
    run(moved, Path("new/out.npz"), chunk_size=2, resume=True)
    check_equal(results("new/out.npz"), at_once(moved))


def test_two_processes_at_once(folder: Path) -> None:
    task = a_task(target=1, reference=R)
    with (
        parts.claimed(Path("out.npz.parts"), {}, resume=False),
        pytest.raises(OptionError, match=r"another process is at work on out.npz.parts: wait for it"),
    ):
        run(task, Path("out.npz"), resume=True)
    run(task, Path("out.npz"))


def test_what_a_killed_process_was_at_is_not_kept(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Zarr's temporary files nor ours get into the result."""
    task = a_task(target=1, reference=R)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stores.ZarrStore, "finish", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(task, Path("out.zarr"), chunk_size=2)
    Path("out.zarr.parts/results/y/c/0/0.1234.partial").touch()
    Path("out.zarr.parts/results/.zarr.json.1234.tmp").touch()
    run(task, Path("out.zarr"), chunk_size=2, resume=True)
    assert not [path for path in folder.rglob("*") if path.suffix in (".partial", ".tmp")]
    check_equal(results("out.zarr"), at_once(task))


def test_what_a_killed_process_was_writing_is_deleted(folder: Path) -> None:
    """It may be as large as the result. What others write is left alone."""
    task = a_task(DNA, SEQUENCES, reference="zeros", emit=BOTH)
    ours = [temporary(Path(name)) for name in ("s[0].npz", "s[0].onehot.npz")]
    others = [temporary(Path(name)) for name in ("s0.npz", "s[0].npz.npz")]
    for path in (*ours, *others):
        path.touch()
    run(task, Path("s[0].npz"), layout="modisco", resume=True)
    assert [path.exists() for path in (*ours, *others)] == [False, False, True, True]


def test_a_mark_that_was_not_written_to_its_end(folder: Path) -> None:
    """As after a power cut: the part is made again."""
    task = a_task(target=1, reference=R)
    break_at(task, "out.npz", 3)
    mark = Path("out.npz.parts/part-000001.json")
    mark.write_bytes(mark.read_bytes()[:40])
    run(task, Path("out.npz"), chunk_size=2, resume=True)
    check_equal(results("out.npz"), at_once(task))


# ------------------------------------------------------------------------------------------------- bad data


def spoilt(name: str, place: Any, value: Any, **data: np.ndarray) -> dict[str, np.ndarray]:
    arrays = {each: array.copy() for each, array in data.items()}
    arrays[name][place] = value
    return arrays


LATE: dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, Any], str]] = {
    "NaN": (
        MLP,
        spoilt("x", (7, 2), np.nan, x=X),
        {"target": 1, "reference": "zeros"},
        "input 'x' has NaN in sample 7 (1 such value in samples 6 to 7, as float32)",
    ),
    "target": (
        MLP,
        spoilt("target", 7, 5, x=X, x_reference=R, target=np.zeros(N, np.int64)),
        {"target": "input"},
        "target 5 of sample 7 is out of range",
    ),
    "shuffled": (
        DNA,
        spoilt("x", (7, 0, 3), 0.5, x=SEQUENCES),
        {"reference": "shuffle:2"},
        "input 'x' cannot be shuffled: sample 7 is not one-hot along axis 1: position 3",
    ),
    "one-hot": (
        DNA,
        spoilt("x", (7, 0, 3), 0.5, x=SEQUENCES),
        {"reference": "zeros", "emit": BOTH},
        "input 'x' must be one-hot for hypothetical contributions: sample 7 is not one-hot",
    ),
}


@pytest.mark.parametrize("case", LATE)
def test_bad_data_of_a_late_chunk(folder: Path, case: str) -> None:
    proto, data, options, message = LATE[case]
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        run(a_task(proto, data, **options), Path("out.npz"), chunk_size=2)
    assert "3 of 5 parts are kept in out.npz.parts" in str(caught.value)
    assert not Path("out.npz").exists()


def test_what_the_model_refuses_of_a_late_chunk(folder: Path) -> None:
    proto = model(
        "g (float[N, 6] x, int64[N, 1] i) => (float[N, 6] y) { h = GatherElements<axis=1>(x, i) y = Mul(x, h) }"
    )
    data = {"x": X, "i": np.where(np.arange(N) == 7, 99, 0)[:, None]}
    with pytest.raises(DataError, match=r"the model cannot run on samples 6 to 7: .* 3 of 5 parts are kept"):
        run(a_task(proto, data, target=1, reference="zeros"), Path("out.npz"), chunk_size=2)


REFUSED: dict[str, tuple[dict[str, np.ndarray], dict[str, Any], str]] = {
    "references": (
        {"x": X, "x_reference": R[:4]},
        {"target": 1},
        "input 'x_reference' has shape [4, 6], expected [9, 6]: one row per sample of 'x'",
    ),
    "targets": (
        {"x": X, "x_reference": R, "target": np.zeros(10, np.int64)},
        {"target": "input"},
        "input 'target' has shape [10], expected [9]: one row per sample of 'x'",
    ),
    "weights": (
        {"x": X, "x_reference": R, "target_weights": R[:2, :3]},
        {"target": "weights"},
        "input 'target_weights' has shape [2, 3], expected [9, 3]: one row per sample of 'x'",
    ),
    "shape": ({"x": X[:, :5], "x_reference": R}, {"target": 1}, "input 'x' has shape [9, 5], expected [9, 6]"),
    "name": ({"z": X, "x_reference": R}, {"target": 1}, "no input 'z' in the explainer"),
    "missing": ({"x": X}, {"target": 1}, "the array of input 'x_reference' is missing"),
    "text": ({"x": X.astype(str), "x_reference": R}, {"target": 1}, "input 'x' holds text or Python objects"),
    "given twice": ({"x": X, "x_reference": R}, {"target": 1, "reference": R}, "'x_reference' is given twice"),
    "no samples": ({"x": X[:0], "x_reference": R}, {"target": 1}, "input 'x' has no samples"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_data_are_refused_before_anything_runs(folder: Path, case: str) -> None:
    data, options, message = REFUSED[case]
    with pytest.raises(DataError, match=re.escape(message)):
        run(a_task(MLP, data, **options), Path("out.npz"), chunk_size=2)
    assert sorted(path.name for path in folder.iterdir()) == ["data.npz", "model.onnx"]


PLACES: dict[str, tuple[str, Callable[[], object], str]] = {
    "a suffix that is no format": ("out.csv", lambda: None, "ends in none of .npz, .h5, .hdf5, .zarr, .parquet"),
    "no folder": ("no/out.zarr", lambda: None, "there is no folder no"),
    "a folder as .npz": ("out.npz", lambda: Path("out.npz").mkdir(), "it is a folder"),
    "a folder that is there": ("out.zarr", lambda: Path("out.zarr").mkdir(), "is there already"),
    "a file that is there": ("out.parquet", lambda: Path("out.parquet").touch(), "is there already"),
    "a file as parts": ("out.npz", lambda: Path("out.npz.parts").touch(), "is a file"),
    "a folder of others": (
        "out.npz",
        lambda: (Path("out.npz.parts").mkdir(), Path("out.npz.parts/mine").touch()),
        "holds other files",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_where_nothing_can_be_written(folder: Path, case: str) -> None:
    out, prepare, message = PLACES[case]
    prepare()
    task = a_task(target=1, reference="zeros")
    before = sorted(folder.rglob("*"))
    with pytest.raises(OptionError, match=re.escape(message)):
        run(task, Path(out), resume=True)
    assert sorted(folder.rglob("*")) == before
