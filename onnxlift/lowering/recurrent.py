"""LSTM, GRU and RNN: a Scan over time whose body holds the gate equations of the standard.

What does not depend on the state, X W^T and the biases, is one matrix product over all steps in front of the Scan.
Each direction is a Scan of its own; the one in reverse starts at the end. Steps behind the end of a sequence
(`sequence_lens`) keep the state, so that a reverse direction starts at a sequence's last element, and have 0 in Y.

Where the standard says little, ONNX Runtime decides: alphas and betas go to those activations that have one, in order,
and `_PARAMETERS` has what they are without; `clip` bounds the arguments of the gates, not the cell state; an empty
sequence has the final state 0, whatever the first one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxlift.functions import (
    arange,
    cast,
    clip,
    concat,
    expand,
    shape_of,
    sigmoid,
    split,
    squeeze,
    swap_last,
    tanh,
    transpose,
    unsqueeze,
    where,
    widen,
)
from onnxlift.lowering.table import MICROSOFT, Call, lowering
from onnxlift.tensor import INT64, Tensor, unary

Function = Callable[[Tensor], Tensor]
Step = Callable[..., tuple[Tensor, ...]]
"""Takes the states before a time step and slices of tensors; returns the states behind it, the hidden one first."""


@dataclass(frozen=True)
class Side:
    """One direction of a layer with H hidden units and G gates, on I features and a batch of B.

    `w` [G*H, I]; `r` [G*H, H]; `bias` of the inputs and of the state, [G*H] each; `peepholes` [3*H]; `states` at the
    start, [B, H] each; `functions`: the activations, in the order of the standard.
    """

    hidden: int
    w: Tensor
    r: Tensor
    bias: tuple[Tensor, ...] | None
    peepholes: Tensor | None
    states: list[Tensor]
    functions: list[Function]

    def from_inputs(self, x: Tensor) -> Tensor:
        """What x [T, B, I] adds to the arguments of all gates, with the biases: [T, B, G*H]."""
        share = x @ swap_last(self.w)
        return share if self.bias is None else share + (self.bias[0] + self.bias[1])


Cell = Callable[[Call, Side, Tensor], tuple[list[Tensor], Step]]
"""What is sliced along time, made of x [T, B, I], and the step."""


@lowering("RNN")
def rnn(call: Call) -> list[Tensor | None]:
    """H' = f(X W^T + H R^T + b)."""
    return layer(call, _rnn_cell, gates=1, functions=("Tanh",), states=1)


@lowering("GRU")
def gru(call: Call) -> list[Tensor | None]:
    """H' = (1 - z) h + z H, with the gates z and r and the candidate h."""
    return layer(call, _gru_cell, gates=3, functions=("Sigmoid", "Tanh"), states=1)


@lowering("LSTM")
def lstm(call: Call) -> list[Tensor | None]:
    """C' = f C + i c and H' = o h(C'), with the gates i, o and f and the candidate c."""
    return layer(call, lstm_cell, gates=4, functions=("Sigmoid", "Tanh", "Tanh"), states=2)


@lowering("AttnLSTM", domain=MICROSOFT)
def attention_lstm(call: Call) -> list[Tensor | None]:
    call.refuse("an LSTM cell wrapped in attention cannot be taken apart; export it as standard operators")


# --- one step ---------------------------------------------------------------------------------------------------------


def _rnn_cell(call: Call, side: Side, x: Tensor) -> tuple[list[Tensor], Step]:
    recurrent = swap_last(side.r)
    (f,) = side.functions

    def step(h: Tensor, given: Tensor) -> tuple[Tensor, ...]:
        return (f(given + h @ recurrent),)

    return [side.from_inputs(x)], step


def _gru_cell(call: Call, side: Side, x: Tensor) -> tuple[list[Tensor], Step]:
    """Of x, the shares in the gates and in the candidate.

    (1 - z) h + z H is written h + z (H - h): with the midpoint rule all ways to expand a sum of products are the same.
    """
    f, g = side.functions
    hidden, recurrent = side.hidden, swap_last(side.r)
    sizes = [2 * hidden, hidden]

    def gates(arguments: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(argument) for argument in split(arguments, [hidden, hidden], 1))

    if call.attribute("linear_before_reset", 0):
        bias: Tensor | None = None
        if side.bias is not None:  # what the state adds to the candidate passes r, and so does its bias
            outside, bias = split(side.bias[1], sizes, 0)
            nothing = call.emitter.constant(np.zeros(hidden), x.dtype)
            side = replace(side, bias=(side.bias[0], concat([outside, nothing], 0)))

        def step(h: Tensor, given: Tensor, candidate: Tensor) -> tuple[Tensor, ...]:
            of_gates, of_candidate = split(h @ recurrent, sizes, 1)
            z, r = gates(given + of_gates)
            new = g(candidate + r * (of_candidate if bias is None else of_candidate + bias))
            return (new + z * (h - new),)
    else:
        to_gates, to_candidate = split(recurrent, sizes, 1)

        def step(h: Tensor, given: Tensor, candidate: Tensor) -> tuple[Tensor, ...]:
            z, r = gates(given + h @ to_gates)
            new = g(candidate + (r * h) @ to_candidate)
            return (new + z * (h - new),)

    return list(split(side.from_inputs(x), sizes, 2)), step


def lstm_cell(call: Call, side: Side, x: Tensor) -> tuple[list[Tensor], Step]:
    f, g, to_output = side.functions
    hidden, recurrent = side.hidden, swap_last(side.r)
    coupled = bool(call.attribute("input_forget", 0))
    peepholes = None if side.peepholes is None else split(side.peepholes, [hidden] * 3, 0)

    def step(h: Tensor, c: Tensor, given: Tensor) -> tuple[Tensor, ...]:
        i, o, forget, candidate = split(given + h @ recurrent, [hidden] * 4, 1)
        if peepholes is not None:
            i, forget = i + peepholes[0] * c, forget + peepholes[2] * c
        i = f(i)
        c = (1 - i if coupled else f(forget)) * c + i * g(candidate)
        if peepholes is not None:
            o = o + peepholes[1] * c
        return f(o) * to_output(c), c

    return [side.from_inputs(x)], step


# --- the layer --------------------------------------------------------------------------------------------------------


def layer(call: Call, cell: Cell, *, gates: int, functions: Sequence[str], states: int) -> list[Tensor | None]:
    """Y, then the final states. Half precision is computed in float32, as by ONNX Runtime's kernels."""
    axis = call.attribute("layout", 0)  # of the batch in X, of the directions in a state
    reverse = _REVERSE[call.attribute("direction", "forward")]
    x, lengths = widen(call.input(0)), call.optional(4)
    if axis == 1:
        x = transpose(x, [1, 0, 2])
    valid = None if lengths is None else _valid(x, lengths)
    sides = _sides(call, x, len(reverse), gates, functions, states)
    runs = [
        _over_time(call, *cell(call, side, x), side.states, valid, backwards=backwards)
        for side, backwards in zip(sides, reverse, strict=True)
    ]
    y: Tensor | None = None
    if call.wanted[0]:
        y = concat([unsqueeze(run[-1], [1]) for run in runs], 1)
        if valid is not None:
            y = where(unsqueeze(valid, [1]), y, 0.0)
        if axis == 1:
            y = transpose(y, [2, 0, 1, 3])
    finals = [concat([unsqueeze(run[k], [axis]) for run in runs], axis) for k in range(states)]
    if lengths is not None:
        is_empty = unsqueeze(lengths.equals(0), [1, 2] if axis == 1 else [1])
        finals = [where(is_empty, 0.0, final) for final in finals]
    dtype = call.input(0).dtype
    return [None if tensor is None else cast(tensor, dtype) for tensor in (y, *finals)]


_REVERSE = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}


def _valid(x: Tensor, lengths: Tensor) -> Tensor:
    """Which steps of x [T, B, I] belong to their sequence: [T, B, 1]."""
    steps = unsqueeze(arange(shape_of(x, 0, 1)), [1])
    return unsqueeze(steps < cast(lengths, INT64), [2])


def _sides(call: Call, x: Tensor, count: int, gates: int, functions: Sequence[str], states: int) -> list[Side]:
    """The directions of a layer."""

    def parts(index: int, axis: int = 0) -> list[Tensor] | None:
        """An input, taken apart along its axis of directions."""
        tensor = call.optional(index)
        return None if tensor is None else [squeeze(one, [axis]) for one in split(widen(tensor), [1] * count, axis)]

    hidden: int = call.attribute("hidden_size")
    w, r = (parts(index) or call.refuse("its weights are missing") for index in (1, 2))
    bias, peepholes = parts(3), parts(7)
    initial = [parts(5 + k, call.attribute("layout", 0)) for k in range(states)]
    if None in initial:
        shape = concat([shape_of(x, 1, 2), call.emitter.ints([hidden])], 0)
        zeros = expand(call.emitter.constant(0, x.dtype), shape)
        initial = [given or [zeros] * count for given in initial]
    activations = _activations(call, count, functions)
    return [
        Side(
            hidden,
            w[k],
            r[k],
            None if bias is None else split(bias[k], [gates * hidden] * 2, 0),
            None if peepholes is None else peepholes[k],
            [given[k] for given in initial if given is not None],
            activations[k],
        )
        for k in range(count)
    ]


def _over_time(
    call: Call, slices: list[Tensor], step: Step, states: list[Tensor], valid: Tensor | None, *, backwards: bool
) -> tuple[Tensor, ...]:
    """The states [B, H] behind the last step and, where Y is wanted, the hidden ones of all steps [T, B, H]."""
    first, behind = len(states), len(states) + len(slices)

    def body(*tensors: Tensor) -> Sequence[Tensor]:
        after = step(*tensors[:behind])
        if valid is not None:
            pairs = zip(after, tensors[:first], strict=True)
            after = tuple(where(tensors[behind], new, old) for new, old in pairs)
        return (*after, *after[: call.wanted[0]])

    scanned = slices if valid is None else [*slices, valid]
    names = [*"hc"[:first], *["x"] * len(slices), *["valid"] * (valid is not None)]
    shapes = [*(state.shape for state in states), *(tensor.shape and tensor.shape[1:] for tensor in scanned)]
    dtypes = [tensor.dtype for tensor in (*states, *scanned)]
    return call.emitter.ops(
        "Scan",
        *states,
        *scanned,
        body=call.emitter.body(list(zip(names, dtypes, shapes, strict=True)), body),
        num_scan_inputs=len(scanned),
        scan_input_directions=[1] * len(scanned) if backwards else None,
        scan_output_directions=[1] if backwards and call.wanted[0] else None,
        shapes=[None] * (first + call.wanted[0]),
    )


# --- activations ------------------------------------------------------------------------------------------------------

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "affine": lambda x, alpha, beta: x * alpha + beta,
    "elu": lambda x, alpha: unary("Elu", x, alpha=alpha),
    "hardsigmoid": lambda x, alpha, beta: unary("HardSigmoid", x, alpha=alpha, beta=beta),
    "leakyrelu": lambda x, alpha: unary("LeakyRelu", x, alpha=alpha),
    "relu": partial(unary, "Relu"),
    "scaledtanh": lambda x, alpha, beta: tanh(x * beta) * alpha,
    "sigmoid": sigmoid,
    "softplus": partial(unary, "Softplus"),
    "softsign": partial(unary, "Softsign"),
    "tanh": tanh,
    "thresholdedrelu": lambda x, alpha: unary("ThresholdedRelu", x, alpha=alpha),
}

_PARAMETERS: dict[str, tuple[float, ...]] = {
    "affine": (0.0, 0.0),
    "elu": (1.0,),
    "hardsigmoid": (0.2, 0.5),
    "leakyrelu": (0.01,),
    "scaledtanh": (0.0, 0.0),
    "thresholdedrelu": (0.0,),
}
"""Alpha, or alpha and beta, of the activations that have them, where the attributes end before."""


def _activations(call: Call, count: int, default: Sequence[str]) -> list[list[Function]]:
    """The activations of every direction. Those of the gates and the candidate, the first two, are clipped."""
    total = count * len(default)
    given = call.attribute("activations", None)
    names = [*default] * count if given is None else [name.decode() for name in given][:total]
    if len(names) < total or not _FUNCTIONS.keys() >= {name.lower() for name in names}:
        call.refuse(f"its activations are {names}")
    parameters = [iter(call.attribute(name, [])) for name in ("activation_alpha", "activation_beta")]
    bound: float | None = call.attribute("clip", None)
    found: list[Function] = []
    for k, name in enumerate(name.lower() for name in names):
        values = [next(rest, value) for rest, value in zip(parameters, _PARAMETERS.get(name, ()), strict=False)]
        clipped = bound is not None and k % len(default) < 2
        found.append(partial(_activate, name, values, bound if clipped else None))
    return [found[k * len(default) : (k + 1) * len(default)] for k in range(count)]


def _activate(name: str, parameters: list[float], bound: float | None, x: Tensor) -> Tensor:
    return _FUNCTIONS[name](x if bound is None else clip(x, -bound, bound), *parameters)
