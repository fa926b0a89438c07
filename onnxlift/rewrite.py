"""The rewriter: what is explained and attributed to, the run at the reference, the walk back, the outputs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx

import onnxlift.rules  # noqa: F401 - fills the registry
from onnxlift import registry
from onnxlift.batch import find_batch, fix_batch, free_batch
from onnxlift.errors import OptionError, RuleError, listed
from onnxlift.explainer import EMITS, METADATA_KEY, Results
from onnxlift.files import load, save
from onnxlift.flow import Flow, Problem, dependents, is_float, reads, trace
from onnxlift.graph import Graph
from onnxlift.model import normal_form
from onnxlift.plan import Plan, resolve
from onnxlift.reference import ReferenceSpec, are_several, given_inputs, run_twice
from onnxlift.target import TargetSpec, as_index, explained_tensor, seed
from onnxlift.tensor import Emitter
from onnxlift.walk import Walk

log = logging.getLogger("onnxlift")

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

    def __post_init__(self) -> None:
        for option in ("inputs", "expose", "emit"):
            names: object = getattr(self, option)
            if names is not None and (isinstance(names, str) or not isinstance(names, Iterable)):
                raise OptionError(f"`{option}` must be a list of names, not {names!r}")
            setattr(self, option, None if names is None else tuple(names))
        reference: object = self.reference
        if not isinstance(reference, str | Mapping):
            raise OptionError(f"the reference must be a name or a dict of arrays, not {type(reference).__name__}")
        if not isinstance(self.reference, str):
            try:
                self.reference = {name: np.asarray(array) for name, array in self.reference.items()}
            except ValueError as error:
                raise OptionError(f"a reference is no array: {error}") from error


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
    options = Options(inputs, output, target, reference, rule, plan, pre_activation, expose, emit)
    return _rewriter(load(model), options).run()


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
    options = Options(inputs, output, target, reference, rule, plan, pre_activation, expose, emit)
    folder, beside = Path(source).resolve().parent, Path(destination).resolve().parent
    if Path(source).resolve() == Path(destination).resolve():
        raise OptionError(f"{os.fspath(destination)!r} is the model itself; give the explainer another name")
    keep = folder == beside
    model = load(source, weights=not keep)
    explainer = _rewriter(model, options, folder if keep else None).run()
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


def inspect(model: Model, **options: object) -> Inspection:
    """Plan the rewriting of a model and report it. Takes the arguments of `rewrite`; never raises a RuleError."""
    rewriter = _Rewriter(normal_form(load(model)), Options(**options))  # type: ignore[arg-type]
    problems = rewriter.flow.problems
    if not problems:
        try:
            rewriter.walk()
        except _Refused as refused:
            problems = refused.problems
    rules = {step.node.name: rewriter.plan.rule(step.node) for step in rewriter.flow.steps}
    return Inspection(rewriter.flow, rules, rewriter.stepped_over, problems, rewriter.graph)


def rewrite_with_residuals(model: Model, options: Options) -> tuple[onnx.ModelProto, dict[str, str]]:
    """The explainer with one more output per node: what its rule fails to conserve. Output name -> node name."""
    explainer = _rewriter(load(model), options).run(measure=True)
    ends = "/residual"
    names = [output.name for output in explainer.graph.output if output.name.endswith(ends)]
    return explainer, {name: name.removesuffix(ends) for name in names}


class _Refused(RuleError):
    """Importance cannot pass some nodes."""

    def __init__(self, message: str, problems: list[Problem]) -> None:
        super().__init__(message)
        self.problems = problems


def _rewriter(model: onnx.ModelProto, options: Options, folder: Path | None = None) -> _Rewriter:
    """The rewriter for a model. Several references need a free batch axis: a fixed one is freed where it can be."""
    normal = normal_form(model, folder=folder)
    rewriter = _Rewriter(normal, options)
    size = rewriter.batch.dim if rewriter.batch else None
    if isinstance(size, int) and are_several(options.reference):
        freed = _Rewriter(normal_form(free_batch(normal, size)), options, fixed=size)
        if freed.batch is not None and freed.batch.led:
            return freed
    return rewriter


class _Rewriter:
    """One rewriting: the choices that the options leave open, then the steps.

    `fixed`: the size of the model's batch axis, where `model` has it freed.
    """

    def __init__(self, model: onnx.ModelProto, options: Options, *, fixed: int | None = None) -> None:
        self.options = options
        self.fixed = fixed
        self.plan = resolve(options.rule, options.plan)
        self.graph = Graph(model)
        self.emitter = Emitter(self.graph)
        self.originals = self.graph.outputs
        self._check_names()
        self.output, self.stepped_over = explained_tensor(self.graph, options.output, options.pre_activation)
        self.sources = self._sources()
        self.flow = trace(self.graph, self.sources, self.output, self.plan.rule)
        self._check_sources()
        self.given = given_inputs(self.graph, self.sources)
        self.batch = find_batch(self.graph, self.flow, self.given)

    def run(self, *, measure: bool = False) -> onnx.ModelProto:
        """The explainer."""
        if self.flow.problems:
            raise self._refused(self.flow.problems)
        results = self.walk(measure=measure)
        results.write(self.originals, self.options.emit, self.options.expose)
        if self.stepped_over:
            log.info("explaining %r, the input of %s", self.output, self.stepped_over)
        explainer = self.graph.export({METADATA_KEY: json.dumps(self._description())})
        if self.fixed is not None and self.batch is not None:
            fix_batch(explainer, self.batch.dim, self.fixed)
        return explainer

    def walk(self, *, measure: bool = False) -> Results:
        """Emit the run at the reference and the walk back."""
        options, batched = self.options, self.batch is not None
        wanted = [self.output, *(self._replayable() if "reference_outputs" in options.emit else ())]
        runs = run_twice(self.emitter, self.flow, self.given, self.batch, options.reference, wanted)
        y = self.emitter.tensor(self.output)
        if self.batch is not None and y.shape:
            y.shape = (self.batch.dim, *y.shape[1:])
        weights = seed(self.emitter, y, options.target, batched)
        lifted = runs.crossed.x(weights) if runs.crossed else weights
        walk = Walk(self.emitter, self.flow, runs, self.plan, measure=measure)
        walk.back(lifted)
        if walk.problems:
            raise self._refused(walk.problems)
        return Results(walk, weights, lifted, batched)

    def _replayable(self) -> list[str]:
        """The float outputs that can be computed at the reference too."""
        graph = self.graph
        closed = [handle.name for node in graph.nodes if len(reads(node)) > len(node.inputs) for handle in node.outputs]
        behind = dependents(graph, closed)
        floats = [name for name in self.originals if graph.dtype(graph.tensors[name]) and is_float(graph, name)]
        return [name for name in floats if name not in behind]

    def _sources(self) -> list[str]:
        """The attributed tensors; by default every float graph input that the explained tensor depends on."""
        graph, asked = self.graph, self.options.inputs
        if asked is None:
            floats = [name for name in graph.inputs if is_float(graph, name)]
            found = [name for name in floats if name in trace(graph, [name], self.output, self.plan.rule).active]
            if not found:
                raise OptionError(
                    f"tensor {self.output!r} depends on no float graph input (the inputs are "
                    f"{listed(graph.inputs)}): name internal tensors to attribute to with `inputs`"
                    f"{self._embedding_hint()}"
                )
            return found
        if not asked:
            raise OptionError("`inputs` is empty: name at least one tensor to attribute to")
        for name in asked:
            if name not in graph.tensors:
                raise OptionError(f"no tensor {name!r} in the model; its inputs are {listed(graph.inputs)}")
            if not is_float(graph, name):
                raise OptionError(
                    f"tensor {name!r} is {graph.dtype(graph.tensors[name])}, not a float, and has no contributions: "
                    f"name the float tensor that is computed from it{self._embedding_hint()}"
                )
            if graph.is_constant(graph.tensors[name]):
                raise OptionError(f"tensor {name!r} is a constant of the model: nothing can be attributed to it")
        return list(dict.fromkeys(asked))

    def _embedding_hint(self) -> str:
        """The first float tensor that is looked up by an integer input: usually the embedding."""
        for node in self.graph.nodes:
            looked_up = node.op == "Gather" and not self.graph.is_constant(node.inputs[1])
            if looked_up and is_float(self.graph, node.outputs[0].name):
                return f", for instance {node.outputs[0].name!r}"
        return ""

    def _check_sources(self) -> None:
        for name in self.sources:
            below = dependents(self.graph, [name]) if len(self.sources) > 1 else {name}
            inner = [other for other in self.sources if other != name and other in below]
            if inner:
                raise OptionError(f"{inner[0]!r} is computed from {name!r}: attribute to one of the two at a time")
        for name in self.sources:
            if name not in self.flow.active and not self.flow.problems:
                raise OptionError(f"tensor {self.output!r} does not depend on {name!r} through float tensors")

    def _check_names(self) -> None:
        unknown = set(self.options.emit) - set(EMITS)
        if unknown:
            raise OptionError(f"cannot emit {listed(sorted(unknown))}: choose from {listed(EMITS)}")
        for name in self.options.expose:
            if name not in self.graph.tensors:
                raise OptionError(f"no tensor {name!r} in the model to expose")

    def _refused(self, problems: list[Problem]) -> _Refused:
        """All nodes that importance cannot pass, in one paragraph."""
        lines = [f"{problem.node.name!r} ({problem.node.op}): {problem.reason}" for problem in problems]
        count = len(lines)
        message = (
            f"importance cannot pass {count} node{'s' if count > 1 else ''} between {listed(self.sources)} and "
            f"{self.output!r}: {'; '.join(lines)}. Attribute to a tensor behind them with `inputs`, or explain a "
            "tensor in front of them with `output`."
        )
        return _Refused(message, problems)

    def _description(self) -> dict[str, object]:
        options, target = self.options, self.options.target
        return {
            "version": version("onnxlift"),
            "output": self.output,
            "output_shape": list(self.graph.shape(self.graph.tensors[self.output]) or ()),
            "stepped_over": self.stepped_over,
            "target": target if isinstance(target, str | None) else list(as_index(target)),
            "reference": options.reference if isinstance(options.reference, str) else "baked",
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
        return max(len(np.atleast_1d(array)) for array in self.options.reference.values())

    def _chosen_rules(self) -> dict[str, str | dict[str, str]]:
        """Operator -> rule; node -> rule for each node of an operator whose nodes do not all have the same."""
        chosen: dict[str, dict[str, str]] = {}
        for step in self.flow.steps:
            rule = self.plan.rule(step.node)
            if rule is not None:
                chosen.setdefault(step.node.op, {})[step.node.name] = rule.name
        return {
            op: nodes if len(set(nodes.values())) > 1 else next(iter(nodes.values())) for op, nodes in chosen.items()
        }
