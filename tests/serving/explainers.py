"""The explainers that servers are tested with, data for them, and what ONNX Runtime makes of these without a server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx_text import floats, parse

import onnxlift

MODELS = Path(__file__).parents[2] / "models"

Arrays = dict[str, np.ndarray]
Rows = Callable[[int, np.random.Generator], Arrays]


@dataclass(frozen=True)
class Served:
    """An explainer by the name that the server knows it by.

    `rows`: makes the explainer's inputs for n samples. `original`: which of them the original model takes.
    `batched`: the model has a batch axis; else `rows` makes a single sample.
    """

    name: str
    model: Path | onnx.ModelProto
    rows: Rows
    original: tuple[str, ...] = ("x",)
    options: Mapping[str, Any] = field(default_factory=dict)
    batched: bool = True

    def write(self, folder: Path) -> Path:
        """Rewrite the model to `folder`/`name`.onnx."""
        path = folder / f"{self.name}.onnx"
        onnx.save(onnxlift.rewrite(self.model, **self.options), path)
        return path

    def on_the_wire(self, arrays: Arrays) -> Arrays:
        """As Triton sends tensors, for which it knows no empty shape behind the batch: `[N]` is `[N, 1]` there."""
        bare = int(self.batched)
        return {name: array[..., None] if array.ndim == bare else array for name, array in arrays.items()}


class Local:
    """A model run here, with the settings of the server's: on the CPU, and ONNX Runtime's defaults."""

    def __init__(self, model: Path | onnx.ModelProto) -> None:
        source = str(model) if isinstance(model, Path) else model.SerializeToString()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # of warnings about kernels that constants could not be folded with
        self.session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.outputs = [value.name for value in self.session.get_outputs()]

    def __call__(self, feed: Arrays) -> Arrays:
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))


def same_bits(answer: Arrays, expected: Arrays) -> None:
    """Hold that these are the same arrays, bit for bit."""
    assert sorted(answer) == sorted(expected)
    for name, array in expected.items():
        assert (answer[name].dtype, answer[name].shape) == (array.dtype, array.shape), name
        assert answer[name].tobytes() == array.tobytes(), name


def alike(answer: Arrays, expected: Arrays) -> bool:
    """Hold that these are the same arrays but for rounding, which the size of a batch may change.

    Within 1e-5 of the largest number in `expected`. Returns whether they are the same bit for bit.
    """
    assert sorted(answer) == sorted(expected)
    if all(answer[name].tobytes() == array.tobytes() for name, array in expected.items()):
        return True
    scale = max(float(np.abs(array).max()) for array in expected.values())
    for name, array in expected.items():
        np.testing.assert_allclose(answer[name], array, rtol=0, atol=1e-5 * scale, err_msg=name)
    return False


_DIGITS = np.load(MODELS / "mnist_digits.npz")["x"]


def _digits(n: int, rng: np.random.Generator) -> Arrays:
    return {"x": _DIGITS[rng.integers(0, len(_DIGITS), n), None].astype(np.float32) / 255}


def _one_hot(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Letters of these shapes, with an axis of four channels behind."""
    return np.eye(4, dtype=np.float32)[rng.integers(0, 4, shape)]


def _splice(n: int, rng: np.random.Generator) -> Arrays:
    return {"seq": _one_hot(rng, n, 53), "seq_reference": _one_hot(rng, n, 3, 53)}


_LSTM = parse(
    """steps = Transpose<perm=[1, 0, 2]>(x)
    all, last = LSTM<hidden_size=5>(steps, W, R, B)
    axes = Constant<value_ints=[0]>()
    h = Squeeze(last, axes)
    y = Gemm(h, V)""",
    "float[N, steps, 4] x",
    "float[N, 3] y",
    W=floats(1, 20, 4),
    R=floats(1, 20, 5),
    B=floats(1, 40),
    V=floats(5, 3),
)
_HALF = parse(
    "h = Gemm(x, W)\n r = Relu(h)\n y = Gemm(r, V)",
    "float16[N, 8] x",
    "float16[N, 3] y",
    W=floats(8, 16).astype(np.float16),
    V=floats(16, 3).astype(np.float16),
)
_TOKENS = parse(
    """e = Gather(E, ids)
    axes = Constant<value_ints=[1]>()
    h = ReduceMean<keepdims=0>(e, axes)
    r = Relu(h)
    y = MatMul(r, V)""",
    "int64[N, tokens] ids",
    "float[N, 3] y",
    E=floats(20, 6),
    V=floats(6, 3),
)
_UNBATCHED = parse(
    "h = MatMul(x, W)\n r = Relu(h)\n y = MatMul(r, V)", "float[4] x", "float[3] y", W=floats(4, 8), V=floats(8, 3)
)

DIGITS = Served("digits", MODELS / "mnist_cnn.onnx", _digits, options={"target": "argmax", "reference": "zeros"})
CHOSEN = Served(
    "digits_chosen",
    MODELS / "mnist_cnn.onnx",
    lambda n, rng: _digits(n, rng) | {"target": rng.integers(0, 10, n)},
    options={"target": "input", "reference": "zeros"},
)
SPLICE = Served(
    "splice",
    MODELS / "mmsplice_acceptor.onnx",
    _splice,
    original=("seq",),
    options={"reference": "grouped", "one_hot": {"seq": -1}, "emit": ("contributions", "hypothetical")},
)
TOKENS = Served(
    "tokens",
    _TOKENS,
    lambda n, rng: {"ids": rng.integers(0, 20, (n, 7)), "ids_reference": np.zeros((n, 7), np.int64)},
    original=("ids",),
    options={"target": "argmax"},
)
SERVED = (
    DIGITS,
    CHOSEN,
    SPLICE,
    TOKENS,
    Served(
        "digits_paired",
        MODELS / "mnist_cnn.onnx",
        lambda n, rng: _digits(n, rng) | {"x_reference": _digits(n, rng)["x"]},
        options={"target": "argmax", "reference": "paired"},
    ),
    Served(
        "enhancers",
        MODELS / "experiments" / "deeplift_genomics.onnx",
        lambda n, rng: {"x": _one_hot(rng, n, 200).swapaxes(1, 2).copy()},
        options={
            "target": 0,
            "reference": "frequencies:0.3,0.2,0.2,0.3",
            "one_hot": {"x": 1},
            "emit": ("contributions", "hypothetical"),
        },
    ),
    Served(
        "lstm",
        _LSTM,
        lambda n, rng: {"x": rng.standard_normal((n, rng.integers(3, 9), 4), np.float32)},
        options={"target": "argmax", "reference": "zeros"},
    ),
    Served(
        "half",
        _HALF,
        lambda n, rng: {"x": rng.standard_normal((n, 8), np.float32).astype(np.float16)},
        options={"target": "argmax", "reference": "zeros"},
    ),
    Served(
        "unbatched",
        _UNBATCHED,
        lambda n, rng: {"x": rng.standard_normal(4, np.float32)},
        options={"target": "argmax", "reference": "zeros"},
        batched=False,
    ),
)
