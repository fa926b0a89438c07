"""The independent oracle of LSTM, GRU and RNN: DeepLIFT on their gate equations, in plain float64 loops.

It is written from the standard's equations and METHOD (sections 3, 5 and 10) alone: sample by sample, step by step and
gate by gate, with vectors of hidden units. Every vector is a `Pair`, its value at the input and at the reference, and
remembers what it was computed from. Walking back through time in reverse order of creation,

* products share by the midpoint rule, elementwise (m_a = mid(b) m) and of a matrix with a vector (both get a share);
* nonlinearities rescale, m_x = dy/dx m_y, with the secant in 80-bit `longdouble` and the derivative where dx -> 0;
* sums pass m on, differences its negative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
LD = np.longdouble

GATES = {"LSTM": "iofc", "GRU": "zrh", "RNN": "i"}
DEFAULTS = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
INPUTS = ["X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P"]
OUTPUTS = {"LSTM": ["Y", "Y_h", "Y_c"], "GRU": ["Y", "Y_h"], "RNN": ["Y", "Y_h"]}


# ------------------------------------------------------------------------------------------------------------
# Vectors with two values, and how importance passes what is done with them
# ------------------------------------------------------------------------------------------------------------
@dataclass
class Pair:
    """A vector or matrix at the input and at the reference; `m`, its multiplier; `back` passes that on."""

    x: Array
    r: Array
    tape: list[Pair]
    back: Callable[[Array], None] = lambda m: None
    m: Array = field(init=False)

    def __post_init__(self) -> None:
        self.m = np.zeros_like(self.x)
        self.tape.append(self)

    @property
    def mid(self) -> Array:
        return (self.x + self.r) / 2

    def __add__(self, other: Pair) -> Pair:
        def back(m: Array) -> None:
            self.m += m
            other.m += m

        return Pair(self.x + other.x, self.r + other.r, self.tape, back)

    def __mul__(self, other: Pair) -> Pair:
        def back(m: Array) -> None:
            self.m += m * other.mid
            other.m += m * self.mid

        return Pair(self.x * other.x, self.r * other.r, self.tape, back)

    def __matmul__(self, other: Pair) -> Pair:
        """A matrix times a vector."""

        def back(m: Array) -> None:
            self.m += np.outer(m, other.mid)
            other.m += self.mid.T @ m

        return Pair(self.x @ other.x, self.r @ other.r, self.tape, back)

    def one_minus(self) -> Pair:
        def back(m: Array) -> None:
            self.m -= m

        return Pair(1 - self.x, 1 - self.r, self.tape, back)

    def through(self, function: Function) -> Pair:
        def back(m: Array) -> None:
            self.m += m * function.slope(self.x, self.r)

        return Pair(function(self.x), function(self.r), self.tape, back)


@dataclass
class Function:
    """A nonlinearity, its derivative, and whether it has corners: then only x = r itself takes the derivative."""

    value: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    corners: bool = False

    def __call__(self, x: Array) -> Array:
        return np.asarray(self.value(np.asarray(x, LD)), np.float64)

    def slope(self, x: Array, r: Array) -> Array:
        a, b = np.asarray(x, LD), np.asarray(r, LD)
        d = a - b
        near = np.abs(d) <= (0 if self.corners else 1e-6)
        secant = (self.value(a) - self.value(b)) / np.where(d == 0, 1, d)
        return np.asarray(np.where(near, self.derivative((a + b) / 2), secant), np.float64)


def _logistic(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def activation(name: str, alpha: float, beta: float) -> Function:
    match name:
        case "Affine":
            return Function(lambda x: alpha * x + beta, lambda x: alpha + 0 * x)
        case "Elu":
            return Function(
                lambda x: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
                lambda x: np.where(x > 0, 1, alpha * np.exp(np.minimum(x, 0))),
                corners=alpha != 1,
            )
        case "HardSigmoid":
            return Function(
                lambda x: np.clip(alpha * x + beta, 0, 1),
                lambda x: np.where((alpha * x + beta >= 0) & (alpha * x + beta <= 1), alpha, 0),
                corners=True,
            )
        case "LeakyRelu":
            return Function(lambda x: np.where(x > 0, x, alpha * x), lambda x: np.where(x > 0, 1, alpha), corners=True)
        case "Relu":
            return Function(lambda x: np.maximum(x, 0), lambda x: np.where(x > 0, 1, 0), corners=True)
        case "ScaledTanh":
            return Function(lambda x: alpha * np.tanh(beta * x), lambda x: alpha * beta / np.cosh(beta * x) ** 2)
        case "Sigmoid":
            return Function(_logistic, lambda x: _logistic(x) * _logistic(-x))
        case "Softplus":
            return Function(lambda x: np.logaddexp(0, x), _logistic)
        case "Softsign":
            return Function(lambda x: x / (1 + np.abs(x)), lambda x: 1 / (1 + np.abs(x)) ** 2)
        case "Tanh":
            return Function(np.tanh, lambda x: 1 / np.cosh(x) ** 2)
        case "ThresholdedRelu":
            return Function(lambda x: np.where(x > alpha, x, 0), lambda x: np.where(x > alpha, 1, 0), corners=True)
    raise ValueError(name)


PARAMETERS = {
    "Affine": (0.0, 0.0),
    "Elu": (1.0,),
    "HardSigmoid": (0.2, 0.5),
    "LeakyRelu": (0.01,),
    "ScaledTanh": (0.0, 0.0),
    "ThresholdedRelu": (0.0,),
}
"""Alpha and beta of the activations that have them, where the attributes name none (ONNX Runtime's choice)."""


def activations(op: str, attributes: Mapping[str, Any], directions: int) -> list[list[Function]]:
    """The functions of every direction."""
    names = attributes.get("activations") or DEFAULTS[op] * directions
    alphas, betas = list(attributes.get("activation_alpha", [])), list(attributes.get("activation_beta", []))
    functions = []
    for name in names:
        values = list(PARAMETERS.get(name, ()))
        for k, given in enumerate([alphas, betas][: len(values)]):
            values[k] = float(np.float32(given.pop(0))) if given else values[k]
        functions.append(activation(name, *[*values, 0.0, 0.0][:2]))
    size = len(DEFAULTS[op])
    return [functions[k * size : (k + 1) * size] for k in range(directions)]


# ------------------------------------------------------------------------------------------------------------
# A layer
# ------------------------------------------------------------------------------------------------------------
@dataclass
class Layer:
    """One node at the input and at the reference.

    `x` and `r`: its inputs by their names in the standard, omitted ones left out; what is not in `r` is the same at the
    reference. `outputs` and `reference`: both results by name. `multipliers(seeds)`: those of every float input.
    """

    op: str
    attributes: Mapping[str, Any]
    x: Mapping[str, Array]
    r: Mapping[str, Array]

    def __post_init__(self) -> None:
        self.hidden = self.x["R"].shape[-1]
        self.batch_first = self.attributes.get("layout", 0) == 1
        self.reverse = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}[
            self.attributes.get("direction", "forward")
        ]
        self.functions = activations(self.op, self.attributes, len(self.reverse))
        self.tape: list[Pair] = []
        self.leaves: dict[str, list[tuple[Any, Pair]]] = {}
        self.results: dict[str, list[tuple[Any, Pair]]] = {name: [] for name in OUTPUTS[self.op]}
        self.values = {name: self._standard(name, np.asarray(value)) for name, value in self.x.items()}
        self.bases = {name: self._standard(name, np.asarray(value)) for name, value in self.r.items()}
        self.steps, self.batch = self.values["X"].shape[:2]
        for direction in range(len(self.reverse)):
            self._weights(direction)
            for sample in range(self.batch):
                self._sequence(direction, sample)

    @property
    def outputs(self) -> dict[str, Array]:
        return {name: self._assemble(name, [(i, p.x) for i, p in found]) for name, found in self.results.items()}

    @property
    def reference(self) -> dict[str, Array]:
        return {name: self._assemble(name, [(i, p.r) for i, p in found]) for name, found in self.results.items()}

    def multipliers(self, seeds: Mapping[str, Array]) -> dict[str, Array]:
        """Multipliers of the inputs, of those of the outputs."""
        for pair in self.tape:
            pair.m = np.zeros_like(pair.x)
        for name, seed in seeds.items():
            standard = self._standard(name, seed)
            for index, pair in self.results[name]:
                pair.m += standard[index]
        for pair in reversed(self.tape):
            pair.back(pair.m)
        found = {}
        for name, leaves in self.leaves.items():
            whole = np.zeros(self.values[name].shape)
            for index, leaf in leaves:
                whole[index] += leaf.m
            found[name] = self._standard(name, whole)
        return found

    def _standard(self, name: str, value: Array) -> Array:
        """With the batch behind time and direction, or back again: the exchange is its own inverse, but that of Y."""
        if not self.batch_first or name in ("W", "R", "B", "P", "sequence_lens"):
            return value
        return value.transpose(1, 2, 0, 3) if name == "Y" else value.swapaxes(0, 1)

    def _assemble(self, name: str, parts: Sequence[tuple[Any, Array]]) -> Array:
        directions = len(self.reverse)
        shape = (directions, self.batch, self.hidden)
        whole = np.zeros((self.steps, *shape) if name == "Y" else shape)
        for index, value in parts:
            whole[index] = value
        if not self.batch_first:
            return whole
        return whole.transpose(2, 0, 1, 3) if name == "Y" else whole.swapaxes(0, 1)

    def _leaf(self, name: str, index: Any) -> Pair:
        """A piece of an input; zeros where the input is omitted."""
        if name not in self.values:
            return Pair(np.zeros(self.hidden), np.zeros(self.hidden), self.tape)
        value = self.values[name]
        pair = Pair(value[index].astype(float), self.bases.get(name, value)[index].astype(float), self.tape)
        self.leaves.setdefault(name, []).append((index, pair))
        return pair

    def _weights(self, direction: int) -> None:
        size = self.hidden
        places = {gate: slice(k * size, (k + 1) * size) for k, gate in enumerate(GATES[self.op])}
        total = len(places) * size
        self.w = {gate: self._leaf("W", (direction, place)) for gate, place in places.items()}
        self.r_ = {gate: self._leaf("R", (direction, place)) for gate, place in places.items()}
        self.w_bias = {gate: self._leaf("B", (direction, place)) for gate, place in places.items()}
        self.r_bias = {
            gate: self._leaf("B", (direction, slice(total + place.start, total + place.stop)))
            for gate, place in places.items()
        }
        if "P" in self.values:
            peeps = {gate: slice(k * size, (k + 1) * size) for k, gate in enumerate("iof")}
            self.peepholes = {gate: self._leaf("P", (direction, place)) for gate, place in peeps.items()}

    def _sequence(self, direction: int, sample: int) -> None:
        length = int(self.values["sequence_lens"][sample]) if "sequence_lens" in self.values else self.steps
        h = self._leaf("initial_h", (direction, sample))
        c = self._leaf("initial_c", (direction, sample))
        order = range(length)
        for t in reversed(order) if self.reverse[direction] else order:
            x = self._leaf("X", (t, sample))
            h, c = getattr(self, f"_{self.op.lower()}")(direction, x, h, c)
            self.results["Y"].append(((t, direction, sample), h))
        if length:
            self.results["Y_h"].append(((direction, sample), h))
            if self.op == "LSTM":
                self.results["Y_c"].append(((direction, sample), c))

    def _clipped(self, argument: Pair) -> Pair:
        if "clip" not in self.attributes:
            return argument
        bound = float(np.float32(self.attributes["clip"]))
        return argument.through(
            Function(lambda x: np.clip(x, -bound, bound), lambda x: np.where(np.abs(x) <= bound, 1, 0), corners=True)
        )

    def _rnn(self, direction: int, x: Pair, h: Pair, c: Pair) -> tuple[Pair, Pair]:
        argument = self.w["i"] @ x + self.w_bias["i"] + self.r_["i"] @ h + self.r_bias["i"]
        return self._clipped(argument).through(self.functions[direction][0]), c

    def _gru(self, direction: int, x: Pair, h: Pair, c: Pair) -> tuple[Pair, Pair]:
        f, g = self.functions[direction]
        gate = {}
        for k in "zr":
            argument = self.w[k] @ x + self.w_bias[k] + self.r_[k] @ h + self.r_bias[k]
            gate[k] = self._clipped(argument).through(f)
        if self.attributes.get("linear_before_reset", 0):
            recurrent = gate["r"] * (self.r_["h"] @ h + self.r_bias["h"])
        else:
            recurrent = self.r_["h"] @ (gate["r"] * h) + self.r_bias["h"]
        new = self._clipped(self.w["h"] @ x + self.w_bias["h"] + recurrent).through(g)
        return gate["z"].one_minus() * new + gate["z"] * h, c

    def _lstm(self, direction: int, x: Pair, h: Pair, c: Pair) -> tuple[Pair, Pair]:
        f, g, to_output = self.functions[direction]

        def argument(k: str, cell: Pair | None) -> Pair:
            total = self.w[k] @ x + self.w_bias[k] + self.r_[k] @ h + self.r_bias[k]
            return self._clipped(total if cell is None or "P" not in self.values else total + self.peepholes[k] * cell)

        i = argument("i", c).through(f)
        forget = i.one_minus() if self.attributes.get("input_forget", 0) else argument("f", c).through(f)
        c = forget * c + i * argument("c", None).through(g)
        o = argument("o", c).through(f)
        return o * c.through(to_output), c
