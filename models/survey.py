"""Try every ONNX model below some folders: rewritten and complete, or refused and why.

    python models/survey.py FOLDER [FOLDER ...] [--markdown FILE]

Every model is explained for its most probable class on random data against a random reference. The table shows the
difference |t(x) - t(r)| that the contributions have to sum to, so that no gap is small only because nothing happens.
The gap is relative to that difference (or to a thousandth of the largest, for a sample on which nothing happens).
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from rich.console import Console
from rich.table import Table

import onnxlift

SAMPLES = 4
TOLERANCE = {"float32": 1e-4, "float16": 5e-3}
"""Of the gap relative to the difference, by the precision of the explained tensor."""


@dataclass
class Row:
    model: str
    verdict: str
    difference: str = ""
    gap: str = ""
    outputs: str = ""


def attempt(path: Path) -> Row:
    """Rewrite and run one model."""
    try:
        model = onnx.load(path)
        explainer = onnxlift.rewrite(path, target=target_of(path))
    except onnxlift.OnnxliftError as error:
        return Row(path.name, f"refused: {shorten(str(error))}")
    feed = random_feed(explainer)
    got = run(explainer, feed)
    expected = run(model, feed)
    difference = np.abs(got["target_output"] - got["target_reference"])
    gap = np.abs(got["completeness_gap"]) / np.maximum(difference, 1e-3 * difference.max())
    off = max((relative(got[name], value) for name, value in expected.items() if value.dtype.kind == "f"), default=0)
    return Row(
        path.name,
        "complete" if gap.max() <= TOLERANCE[precision(model)] else "NOT COMPLETE",
        f"{difference.min():.2g} .. {difference.max():.2g}",
        f"{gap.max():.1e}",
        f"{off:.0e}",
    )


def target_of(path: Path) -> str | None:
    """The most probable class, or nothing where there is one neuron."""
    try:
        onnxlift.rewrite(path)
    except onnxlift.OptionError:
        return "argmax"
    return None


def random_feed(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Standard normal floats, small ids, masks of ones; every symbolic leading extent is the number of samples."""
    rng = np.random.default_rng(0)
    feed = {}
    for value in model.graph.input:
        tensor = value.type.tensor_type
        sizes = [
            dim.dim_value if dim.dim_value > 0 else SAMPLES if axis == 0 else free_size(dim.dim_param)
            for axis, dim in enumerate(tensor.shape.dim)
        ]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        if np.issubdtype(dtype, np.floating):
            feed[value.name] = rng.standard_normal(sizes).astype(dtype)
        elif dtype.kind in "iu":
            first = value.name.removesuffix("_reference") == model.graph.input[0].name
            feed[value.name] = (rng.integers(1, 20, sizes) if first else np.ones(sizes)).astype(dtype)
    return feed


def free_size(symbol: str) -> int:
    """An extent for an axis that the model leaves open: images of 48 x 192, sequences of 64."""
    return {"x_dim2": 48, "x_dim3": 192}.get(symbol, 64)


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_outputs()]
    wanted = {value.name: feed[value.name] for value in session.get_inputs()}
    return {k: np.asarray(v) for k, v in zip(names, session.run(names, wanted), strict=True)}


def precision(model: onnx.ModelProto) -> str:
    half = any(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16 for value in model.graph.output)
    return "float16" if half else "float32"


def relative(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got.astype(np.float64) - expected).max() / max(np.abs(expected).max(), 1e-30))


def shorten(text: str, length: int = 200) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def rows(folders: list[Path]) -> Iterator[Row]:
    for path in sorted(path for folder in folders for path in folder.rglob("*.onnx")):
        try:
            yield attempt(path)
        except Exception as error:  # a bug of ours: the table must show it and go on
            yield Row(path.name, f"FAILED: {type(error).__name__}: {shorten(str(error))}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    columns = ("model", "verdict", "|t(x) - t(r)|", "relative gap", "outputs differ by")
    table = Table(*columns)
    found = []
    for row in rows(arguments.folders):
        found.append((row.model, row.verdict, row.difference, row.gap, row.outputs))
        table.add_row(*found[-1])
    Console().print(table)
    if arguments.markdown:
        lines = [" | ".join(columns), " | ".join("---" for _ in columns), *(" | ".join(row) for row in found)]
        arguments.markdown.write_text("".join(f"| {line} |\n" for line in lines))
    return int(any(verdict.startswith(("FAILED", "NOT")) for _, verdict, *_ in found))


if __name__ == "__main__":
    sys.exit(main())
