"""The rewriter: forward at the input, forward at the reference, one walk back with the multipliers.

The only place where multipliers are accumulated over fan-out and summed back over broadcast axes.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

import onnxlift.rules  # noqa: F401 - fills the registry
from onnxlift import registry
from onnxlift.errors import OptionError, RuleError
from onnxlift.flow import Flow, Problem, Step, dependents, is_float, trace
from onnxlift.graph import Graph, Handle, Node
from onnxlift.model import load, normal_form, save
from onnxlift.plan import Plan, resolve
from onnxlift.reference import Batch, ReferenceSpec, Runs, find_batch, given_inputs, run_twice
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.target import TargetSpec, explained_tensor, seed, weighted_sum
from onnxlift.tensor import Emitter, Tensor, cast, concat, expand, reduce_mean, reduce_sum, reshape, shape_of

log = logging.getLogger("onnxlift")

EMITS = ("contributions", "multipliers", "reference_outputs")
METADATA_KEY = "onnxlift"
GAP = "completeness_gap"
TARGET_OUTPUT = "target_output"
TARGET_REFERENCE = "target_reference"

Model = onnx.ModelProto | str | os.PathLike[str]


@dataclass
class Options:
    """The arguments of `rewrite`, as one value."""

    inputs: Sequence[str] | None = None
    output: str | None = None
    target: TargetSpec = None
    reference: ReferenceSpec = "paired"
    rule: str = "rescale"
    plan: Plan | None = None
    pre_activation: bool = True
    expose: Sequence[str] = ()
    emit: Sequence[str] = ("contributions",)


def rewrite(
    model: Model,
    *,
    inputs: Sequence[str] | None = None,
    output: str | None = None,
    target: TargetSpec = None,
    reference: ReferenceSpec = "paired",
    rule: str = "rescale",
    plan: Plan | None = None,
    pre_activation: bool = True,
    expose: Sequence[str] = (),
    emit: Sequence[str] = ("contributions",),
) -> onnx.ModelProto:
    """Rewrite a model into one that also computes the DeepLIFT contributions of its inputs.

    Args:
        model: path of an ONNX file, or a ModelProto (not changed).
        inputs: graph inputs, or internal tensors such as an embedding's output, to attribute to; default: every float
            graph input that the explained tensor depends on.
        output: the tensor explained, a graph output or an internal tensor; default: the first float output. A final
            Softmax or Sigmoid is stepped over to its logits (LIFTPAD 2.4, DeepLIFT 3.6) unless `pre_activation` is
            False.
        target: which neuron of that tensor: an int or a tuple (index after the batch axis), "argmax", "input" (a graph
            input `target`, int64, `[N]` or `[N, axes]`), "weights" (a graph input `target_weights` of the explained
            tensor's shape), or None where there is one neuron per sample.
        reference: "paired" (graph input `<input>_reference` of the input's shape), "shared" (`[K, ...]`, averaged),
            "grouped" (`[N, K, ...]`, averaged), "zeros", or a dict of arrays to bake in (leading axis 1 or K).
        rule: the preset; "rescale".
        plan: choices per node, tried before the preset.
        pre_activation: step over a final Softmax or Sigmoid.
        expose: internal tensors `T` to emit: `T`, `T/multiplier` and `T/contributions`.
        emit: of "contributions", "multipliers" and "reference_outputs".

    Returns:
        The explainer: the model's inputs and outputs unchanged, the reference and target inputs asked for, and the
        outputs `<input>_contributions` (shape and dtype of the input), `target_output` and `target_reference` (t(x)
        and t(r), `[N]`, averaged over references) and `completeness_gap` (`[N]`, t(x) - t(r) - sum of contributions;
        scalars where there is no batch axis).

    Raises:
        ModelError: the model cannot be read. OptionError: an argument does not fit it. RuleError: importance would have
        to pass nodes without a rule; all of them are named.
    """
    options = Options(inputs, output, target, reference, rule, plan, pre_activation, tuple(expose), tuple(emit))
    return _Rewriter(normal_form(load(model)), options).run()


def rewrite_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    output: str | None = None,
    target: TargetSpec = None,
    reference: ReferenceSpec = "paired",
    rule: str = "rescale",
    plan: Plan | None = None,
    pre_activation: bool = True,
    expose: Sequence[str] = (),
    emit: Sequence[str] = ("contributions",),
) -> onnx.ModelProto:
    """Rewrite file to file. Weights in external data stay where they are: the explainer refers to the same file.

    The arguments are those of `rewrite`. Returns the explainer as written.
    """
    options = Options(inputs, output, target, reference, rule, plan, pre_activation, tuple(expose), tuple(emit))
    folder, beside = Path(source).resolve().parent, Path(destination).resolve().parent
    if Path(source).resolve() == Path(destination).resolve():
        raise OptionError(f"{os.fspath(destination)!r} is the model itself; give the explainer another name")
    keep = folder == beside
    model = load(source, weights=not keep)
    explainer = _Rewriter(normal_form(model, folder=folder if keep else None), options).run()
    save(explainer, destination)
    return explainer


@dataclass
class Inspection:
    """What the rewriter would do with a model, without doing it."""

    flow: Flow
    rules: dict[str, registry.Rule | None]
    stepped_over: str | None
    problems: list[Problem]
    graph: Graph
    options: Options


def inspect(model: Model, **options: object) -> Inspection:
    """Plan the rewriting of a model and report it. Takes the arguments of `rewrite`; never raises a RuleError."""
    rewriter = _Rewriter(normal_form(load(model)), Options(**options))  # type: ignore[arg-type]
    try:
        rewriter.build(tolerant=True)
    except RuleError:  # the run at the reference cannot be emitted; where importance would go is known all the same
        if not rewriter.problems:
            raise
    rules = {step.node.name: rewriter.plan.rule(step.node) for step in rewriter.flow.steps}
    return Inspection(
        rewriter.flow, rules, rewriter.stepped_over, rewriter.problems, rewriter.graph, rewriter.options
    )


def rewrite_with_residuals(model: Model, options: Options) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The explainer with one more output per node: what its rule fails to conserve. Output name -> node name."""
    rewriter = _Rewriter(normal_form(load(model)), options)
    rewriter.residuals = {}
    return rewriter.run(), {tensor.name: node for node, tensor in rewriter.residuals.items()}


@dataclass
class _Walk:
    """Multipliers found so far: per tensor the terms that its consumers contributed."""

    terms: dict[str, list[Tensor]] = field(default_factory=dict)
    done: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, m: Tensor) -> None:
        self.terms.setdefault(name, []).append(m)

    def total(self, name: str) -> Tensor | None:
        """The multiplier of a tensor: the sum over its consumers (LIFTPAD eq. 4)."""
        if name not in self.done:
            if name not in self.terms:
                return None
            first, *others = self.terms[name]
            total = first
            for other in others:
                total = total + other
            total.shape = total.shape or first.shape
            self.done[name] = total
        return self.done[name]


class _Rewriter:
    def __init__(self, model: onnx.ModelProto, options: Options) -> None:
        self.options = options
        self.plan = resolve(options.rule, options.plan)
        self.graph = Graph(model)
        self.emitter = Emitter(self.graph)
        self.originals = self.graph.outputs
        self.residuals: dict[str, Tensor] | None = None
        self.problems: list[Problem] = []
        self.values: dict[str, Value] = {}
        self._named: set[int] = set()
        self._check_emit()
        self.output, self.stepped_over = explained_tensor(self.graph, options.output, options.pre_activation)
        self.sources = self._sources()
        self.flow = trace(self.graph, self.sources, self.output, self.plan.rule)
        self._check_flow()
        self.given = given_inputs(self.graph, self.sources)
        self.batch: Batch | None = find_batch(self.graph, self.flow, self.given)

    def run(self) -> onnx.ModelProto:
        self.build()
        if self.stepped_over:
            log.info("explaining %r, the input of %s", self.output, self.stepped_over)
        return self.graph.export({METADATA_KEY: json.dumps(self._description())})

    def build(self, *, tolerant: bool = False) -> None:
        """Emit everything. `tolerant`: keep the problems instead of raising them."""
        if self.flow.problems:
            self.problems = list(self.flow.problems)
            if not tolerant:
                raise RuleError(self._explain_problems())
        wanted = [self.output, *(self.originals if "reference_outputs" in self.options.emit else ())]
        runs = run_twice(self.emitter, self.flow, self.given, self.batch, self.options.reference, wanted)
        y = self.emitter.tensor(self.output)
        if self.batch is not None and y.shape:
            y.shape = (self.batch.dim, *y.shape[1:])
        weights = seed(self.emitter, y, self.options.target, self.batch is not None)
        self._runs, self._weights = runs, weights
        top = self._value(self.output)
        lifted = runs.crossed.x(weights) if runs.crossed else weights
        walk = _Walk()
        walk.add(self.output, top.spread(lifted))
        for step in reversed(self.flow.steps):
            self._visit(step, walk)
        self._call("multiplier", {name: walk.total(name) for name in self.sources})
        if self.problems:
            if tolerant:
                return
            raise RuleError(self._explain_problems())
        self._write_outputs(walk, y, weights, lifted)

    def _visit(self, step: Step, walk: _Walk) -> None:
        """One node of the walk back: ask its rule, sum back what was broadcast, hand the terms on."""
        node = step.node
        outputs = [handle.name for handle in node.outputs]
        multipliers = {
            name: walk.total(name) for name in outputs if name in self.flow.active and name not in self.sources
        }
        self._call("multiplier", multipliers)
        rule = self.plan.rule(node)
        if rule is None or all(m is None for m in multipliers.values()):
            return
        inputs = [self._value(handle.name) if handle.name else None for handle in node.inputs]
        roots = [self._value(name) for name in step.roots]
        site = Site(
            self.emitter,
            node.op,
            node.name,
            node.attrs,
            inputs,
            [self._value(name) if name else None for name in outputs],
            [multipliers.get(name) for name in outputs],
            roots,
        )
        try:
            terms = rule.multipliers(site)
            edges = []
            for value, m in zip((*inputs, *roots), terms, strict=False):
                if value is None or m is None or not value.active:
                    continue
                m = unbroadcast(m, site.y.shape, value) if rule.broadcasts else m
                m.shape = m.shape or value.shape
                edges.append((value, m))
        except registry.Unsupported as refusal:
            self.problems.append(Problem(node, f"rule {rule.name!r}: {refusal}"))
            return
        for value, m in edges:
            walk.add(value.name, m)
        if self.residuals is not None:
            self._measure(node, site, edges)

    def _measure(self, node: Node, site: Site, edges: Sequence[tuple[Value, Tensor]]) -> None:
        """What one node's rule fails to conserve: sum(m_y dy) - sum(m_x dx), over all samples."""
        above = [
            _everything(m * value.d)
            for value, m in zip(site.outputs, site.multipliers, strict=True)
            if value is not None and m is not None
        ]
        below = [_everything(m * value.d) for value, m in edges]
        residual = above[0]
        for term in above[1:]:
            residual = residual + term
        for term in below:
            residual = residual - term
        assert self.residuals is not None
        self.residuals[node.name] = residual

    def _value(self, name: str) -> Value:
        """A tensor of the model at x and at r."""
        if name not in self.values:
            x = self._runs.at_x.get(name) or self.emitter.tensor(name)
            r = self._runs.at_r.get(name, x)
            self.values[name] = Value(name, x, r, name in self.flow.active, self._runs.pairing)
        return self.values[name]

    def _call(self, kind: str, tensors: Mapping[str, Tensor | None]) -> None:
        """Name tensors after their origin, `T/multiplier`: the first name that a tensor gets stays."""
        for name, tensor in tensors.items():
            wanted = f"{name}/{kind}"
            if tensor is None or not self.graph.is_computed(tensor.handle) or id(tensor) in self._named:
                continue
            if wanted not in self.graph.tensors:
                self._named.add(id(tensor))
                self.graph.rename(tensor.handle, wanted)

    def _write_outputs(self, walk: _Walk, y: Tensor, weights: Tensor, lifted: Tensor) -> None:
        batched = self.batch is not None
        top = self._value(self.output)
        outputs = dict.fromkeys(self.originals)
        contributions = {name: self._contributions(name, walk) for name in self.sources}
        t_x = weighted_sum(y, weights, batched)
        t_r = weighted_sum(top.r, lifted, batched)
        t_r = self._average(t_r, t_x)
        total = None
        for name, c in contributions.items():
            wide = cast(c, t_x.dtype)
            part = reduce_sum(wide, range(int(batched), self._value(name).rank), keepdims=False)
            total = part if total is None else total + part
        assert total is not None
        gap = t_x - t_r - total
        results = {TARGET_OUTPUT: t_x, TARGET_REFERENCE: t_r, GAP: gap}
        for name in self.sources:
            if "contributions" in self.options.emit:
                results[f"{name}_contributions"] = contributions[name]
            if "multipliers" in self.options.emit:
                results[f"{name}_multipliers"] = self._multipliers(name, walk)
        if "reference_outputs" in self.options.emit:
            for name in self.originals:
                if name in self._runs.at_r:
                    results[f"{name}_reference"] = self._runs.at_r[name]
        for name in self.options.expose:
            if walk.total(name) is None:
                raise OptionError(f"no importance passes through tensor {name!r}, so that it cannot be exposed")
            outputs[name] = None
            results[f"{name}/contributions"] = self._contributions(name, walk)
            results[f"{name}/multiplier"] = self._multipliers(name, walk)
        for node, residual in (self.residuals or {}).items():
            results[f"{node}/residual"] = residual
        handles = [self.graph.tensors[name] for name in outputs]
        for name, tensor in results.items():
            handles.append(self._output(name, tensor, handles))
        self.graph.set_outputs(handles)

    def _output(self, name: str, tensor: Tensor, taken: Sequence[Handle]) -> Handle:
        """A graph output of that very name: the tensor itself, or a copy where it has a name already."""
        if tensor.name == name:
            return tensor.handle
        if name in self.graph.tensors:
            raise OptionError(f"the model already has a tensor {name!r}, the name of an explainer output: rename it")
        free = id(tensor) not in self._named and self.graph.is_computed(tensor.handle)
        if free and not any(tensor.handle is handle for handle in taken):
            self.graph.rename(tensor.handle, name)
            return tensor.handle
        handle = self.graph.variable(name, tensor.dtype, tensor.shape)
        self.graph.node("Identity", [tensor.handle], [handle], {}, name=name)
        return handle

    def _contributions(self, name: str, walk: _Walk) -> Tensor:
        """c = m d (LIFTPAD eq. 3), averaged over references."""
        value, m = self._value(name), walk.total(name)
        assert m is not None
        return self._mean(m * value.d, value)

    def _multipliers(self, name: str, walk: _Walk) -> Tensor:
        value, m = self._value(name), walk.total(name)
        assert m is not None
        return self._mean(m, value)

    def _mean(self, tensor: Tensor, value: Value) -> Tensor:
        """The mean over references of something shaped like `value`: [N * K, ...] -> [N, ...]."""
        crossed = self._runs.crossed
        model = self.emitter.tensor(value.name)
        if crossed is None:
            tensor.shape = model.shape
            return tensor
        split = _concat_shape(crossed.samples, crossed.references, model)
        wide = reshape(tensor, split)
        wide.shape = (None, None, *(model.shape or ())[1:])
        mean = reduce_mean(wide, [1], keepdims=False)
        mean.shape = model.shape
        return mean

    def _average(self, t_r: Tensor, t_x: Tensor) -> Tensor:
        """t(r) per sample: averaged over references, or one value for all samples."""
        crossed = self._runs.crossed
        if crossed is not None:
            pairs = reshape(t_r, _concat_shape(crossed.samples, crossed.references, None))
            pairs.shape = (None, None)
            t_r = reduce_mean(pairs, [1], keepdims=False)
        elif self._runs.pairing.thin:
            t_r = expand(t_r, shape_of(t_x))
        t_r.shape = t_x.shape
        return t_r

    def _sources(self) -> list[str]:
        """The attributed tensors; by default every float graph input that the explained tensor depends on."""
        graph, options = self.graph, self.options
        if options.inputs is None:
            floats = [name for name in graph.inputs if is_float(graph, name)]
            found = [name for name in floats if name in trace(graph, [name], self.output, self.plan.rule).active]
            if not found:
                hint = self._embedding_hint()
                raise OptionError(
                    f"tensor {self.output!r} depends on no float graph input (the inputs are "
                    f"{self._listed(graph.inputs)}): name internal tensors to attribute to with `inputs`{hint}"
                )
            return found
        if not options.inputs:
            raise OptionError("`inputs` is empty: name at least one tensor to attribute to")
        for name in options.inputs:
            if name not in graph.tensors:
                raise OptionError(f"no tensor {name!r} in the model; its inputs are {self._listed(graph.inputs)}")
            if not is_float(graph, name):
                raise OptionError(
                    f"tensor {name!r} is {graph.dtype(graph.tensors[name])}, not a float, and has no contributions: "
                    f"name the float tensor that is computed from it{self._embedding_hint()}"
                )
            if graph.is_constant(graph.tensors[name]):
                raise OptionError(f"tensor {name!r} is a constant of the model: nothing can be attributed to it")
        return list(dict.fromkeys(options.inputs))

    def _embedding_hint(self) -> str:
        """The first float tensor that is looked up by an integer input: usually the embedding."""
        for node in self.graph.nodes:
            if node.op == "Gather" and is_float(self.graph, node.outputs[0].name) and not self.graph.is_constant(
                node.inputs[1]
            ):
                return f", for instance {node.outputs[0].name!r}"
        return ""

    def _check_flow(self) -> None:
        for name in self.sources:
            below = dependents(self.graph, [name]) if len(self.sources) > 1 else {name}
            inner = [other for other in self.sources if other != name and other in below]
            if inner:
                raise OptionError(f"{inner[0]!r} is computed from {name!r}: attribute to one of the two at a time")
        for name in self.sources:
            if name not in self.flow.active and not self.flow.problems:
                raise OptionError(f"tensor {self.output!r} does not depend on {name!r} through float tensors")

    def _check_emit(self) -> None:
        unknown = set(self.options.emit) - set(EMITS)
        if unknown:
            raise OptionError(f"cannot emit {self._listed(sorted(unknown))}: choose from {self._listed(EMITS)}")
        for name in self.options.expose:
            if name not in self.graph.tensors:
                raise OptionError(f"no tensor {name!r} in the model to expose")

    def _explain_problems(self) -> str:
        lines = [f"{problem.node.name!r} ({problem.node.op}): {problem.reason}" for problem in self.problems]
        count = len(lines)
        return (
            f"importance cannot pass {count} node{'s' if count > 1 else ''} between {self._listed(self.sources)} and "
            f"{self.output!r}: {'; '.join(lines)}. Attribute to a tensor behind them with `inputs`, or explain a tensor "
            f"in front of them with `output`."
        )

    def _description(self) -> dict[str, object]:
        options = self.options
        kind = options.reference if isinstance(options.reference, str) else "baked"
        target = options.target
        return {
            "version": version("onnxlift"),
            "output": self.output,
            "output_shape": list(self.graph.shape(self.graph.tensors[self.output]) or ()),
            "stepped_over": self.stepped_over,
            "target": target if isinstance(target, str | None) else [int(i) for i in np.atleast_1d(target)],
            "reference": kind,
            "reference_rows": self._baked_rows(),
            "rule": options.rule,
            "inputs": self.sources,
            "references": self.given,
            "outputs": self.originals,
            "expose": list(options.expose),
            "emit": list(options.emit),
            "batched": self.batch is not None,
            "rules": self._chosen_rules(),
        }

    def _baked_rows(self) -> int | None:
        """How many references are stored in the explainer for every sample."""
        if isinstance(self.options.reference, str) or self.batch is None:
            return None
        return max(np.shape(array)[0] for array in self.options.reference.values())

    def _chosen_rules(self) -> dict[str, str | dict[str, str]]:
        """Operator -> rule; node -> rule for each node of an operator whose nodes do not all have the same."""
        chosen: dict[str, dict[str, str]] = {}
        for step in self.flow.steps:
            rule = self.plan.rule(step.node)
            if rule is not None:
                chosen.setdefault(step.node.op, {})[step.node.name] = rule.name
        return {op: nodes if len(set(nodes.values())) > 1 else next(iter(nodes.values())) for op, nodes in chosen.items()}

    @staticmethod
    def _listed(values: Sequence[str]) -> str:
        return ", ".join(repr(value) for value in values)


def _everything(tensor: Tensor) -> Tensor:
    """Sum over all elements, in float32 at least."""
    wide = tensor if tensor.dtype == np.float64 else cast(tensor, np.dtype(np.float32))
    return wide.emitter.op("ReduceSum", wide, keepdims=0, shape=())


def _concat_shape(samples: Tensor, references: Tensor, like: Tensor | None) -> Tensor:
    parts = [samples, references]
    if like is not None and like.rank > 1:
        parts.append(shape_of(like, 1))
    return concat(parts, axis=0)
