"""The rewriter itself: large graphs, and weights over 2 GB."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from results import Result, row
from timing import Array, fresh, peak, resident, seconds, slope

import onnxlift

SIZES = (1250, 2500, 5000, 10000)
REPEATS = 3
WIDTH = 16

LARGE = 9216
"""Rows and columns of a large weight: 8 of them are 2.5 GiB."""

LAYERS = 8


def measure_nodes(folder: Path) -> Result:
    models = {size: residual(size) for size in SIZES}
    onnxlift.rewrite(models[SIZES[0]], reference="paired")
    found = [[seconds(partial(onnxlift.rewrite, model)) for model in models.values()] for _ in range(REPEATS)]
    rows = [row(f"{SIZES[-1]} nodes", [times[-1] for times in found], 10, " s")]
    exponents = [slope(SIZES, times) for times in found]
    return Result([*rows, row(f"exponent, {SIZES[0]} to {SIZES[-1]} nodes", exponents, 1.1)])


def residual(nodes: int) -> onnx.ModelProto:
    """x + relu(W x + b), again and again, and the sum at the end: `nodes` nodes, four a block."""
    random = np.random.default_rng(0)
    graph, weights, last = [], [], "x"
    for i in range(nodes // 4):
        weights += [
            numpy_helper.from_array(random.standard_normal((WIDTH, WIDTH), np.float32) / WIDTH, f"w{i}"),
            numpy_helper.from_array(random.standard_normal(WIDTH, np.float32), f"b{i}"),
        ]
        graph += [
            helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", f"b{i}"], [f"a{i}"]),
            helper.make_node("Relu", [f"a{i}"], [f"r{i}"]),
            helper.make_node("Add", [last, f"r{i}"], [f"y{i}"]),
        ]
        last = f"y{i}"
    graph += [helper.make_node("ReduceSum", [last, "axes"], ["y"])]
    weights.append(numpy_helper.from_array(np.array([1]), "axes"))
    return _model(graph, weights, [None, WIDTH], [None, 1])


def measure_large_file(folder: Path) -> Result:
    size = 4 * LARGE * LARGE * LAYERS
    if shutil.disk_usage(folder).free < 3 * size:
        return Result(notes=[f"Skipped: the disk lacks {3 * size / 2**30:.1f} GiB."])
    model = write_large(folder)
    beside, elsewhere = folder / "explainer.onnx", folder / "other" / "explainer.onnx"
    elsewhere.parent.mkdir()
    found = {
        "beside the model": [fresh(_rewrite_file, model, beside) for _ in range(REPEATS)],
        "in another folder": [fresh(_rewrite_file, model, elsewhere)],
    }
    rows = []
    for where, runs in found.items():
        rows.append(row(f"written {where}", [took for took, _ in runs], 60, " s"))
        rows.append(row(f"{where}: peak memory over the weights", [memory / size for _, memory in runs], 1.3, "×"))
    return Result(rows, [f"The weights are {size / 2**30:.2f} GiB."])


def write_large(folder: Path) -> Path:
    """An MLP with its weights in a file beside it, which is never held in memory."""
    block: Array = np.random.default_rng(0).standard_normal((LARGE, LARGE), np.float32) / 96
    graph, weights, last = [], [], "x"
    with (folder / "weights.bin").open("wb") as file:
        for i in range(LAYERS):
            weight = TensorProto(
                name=f"w{i}", data_type=TensorProto.FLOAT, dims=block.shape, data_location=TensorProto.EXTERNAL
            )
            for key, value in {"location": "weights.bin", "offset": file.tell(), "length": block.nbytes}.items():
                weight.external_data.add(key=key, value=str(value))
            block.tofile(file)
            weights.append(weight)
            graph += [
                helper.make_node("MatMul", [last, f"w{i}"], [f"m{i}"]),
                helper.make_node("Relu", [f"m{i}"], [f"r{i}"]),
            ]
            last = f"r{i}"
    graph.append(helper.make_node("ReduceSum", [last, "axes"], ["y"]))
    weights.append(numpy_helper.from_array(np.array([1]), "axes"))
    path = folder / "model.onnx"
    onnx.save(_model(graph, weights, [None, LARGE], [None, 1]), path)
    return path


def _rewrite_file(model: Path, destination: Path) -> tuple[float, int]:
    """Seconds, and bytes of memory above the loaded libraries."""
    before = resident()
    took = seconds(lambda: onnxlift.rewrite_file(model, destination, reference="zeros"))
    return took, peak() - before


def _model(
    nodes: list[onnx.NodeProto], weights: list[TensorProto], x: list[int | None], y: list[int | None]
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in (("x", x), ("y", y))]
    graph = helper.make_graph(nodes, "network", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
