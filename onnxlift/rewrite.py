"""The rewriter: what is explained and attributed to, the run at the reference, the walk back, the outputs."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxlift.rules  # noqa: F401 - fills the registry
from onnxlift import registry
from onnxlift.batch import find_batch, fix_batch, free_batch
from onnxlift.chooser import Chooser
from onnxlift.errors import OptionError, RuleError, listed
from onnxlift.explainer import EMITS, METADATA_KEY, Results, Seed
from onnxlift.files import load, save, save_with_weights, weights_elsewhere
from onnxlift.flow import Flow, Problem, is_float, trace
from onnxlift.fusion import fuse
from onnxlift.graph import Graph
from onnxlift.lowering import Lowerer
from onnxlift.metadata import description
from onnxlift.model import normal_form
from onnxlift.one_hot import OneHot, one_hot_axes
from onnxlift.options import Options
from onnxlift.path import along_the_path, at_input, averaged, behind_the_inputs, lifted, mean_over_steps
from onnxlift.plan import Plan, PlanSpec, as_plan, preset
from onnxlift.reference import Filled, ReferenceSpec, are_several, given_inputs, placed_seed, run_twice
from onnxlift.rows import RowEmitter
from onnxlift.sources import attributed, check_apart
from onnxlift.spec import parse
from onnxlift.static import Shapes, inner_sizes, with_shapes
from onnxlift.target import (
    TargetSpec,
    described_target,
    explained_tensor,
    how_many,
    may_be_out_of_range,
    seed,
    without_common_part,
)
from onnxlift.tensor import Tensor
from onnxlift.through import stack_states
from onnxlift.walk import Values, Walk

log = logging.getLogger("onnxlift")

Model = onnx.ModelProto | str | os.PathLike[str]

OWN_FILE = 1 << 30
"""Bytes of weights from which an explainer keeps them in a file of their own."""


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """A big graph is millions of objects that live to the end: searched for garbage, again and again, they take longer
    the more there are, and a third of the time for 10,000 nodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_collector_paused()
def rewrite(
    model: Model,
    *,
    inputs: Sequence[str] | None = None,
    output: str | None = None,
    target: TargetSpec = None,
    reference: ReferenceSpec = "paired",
    rule: str = "rescale",
    plan: PlanSpec | None = None,
    pre_activation: bool = True,
    expose: Sequence[str] = (),
    emit: Sequence[str] = ("contributions",),
    one_hot: OneHot = None,
    keep: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> onnx.ModelProto:
    """Rewrite a model into one that also computes the DeepLIFT contributions of its inputs.

    Args:
        model: path of an ONNX file, or a ModelProto (not changed).
        inputs: graph inputs, or internal tensors such as an embedding's output, to attribute to; default: every float
            graph input that the explained tensor depends on, or, of a model that has none, where tokens or bytes become
            floats: what they look up in the largest table (its references are still ids, `<input>_reference`).
        output: the tensor explained, a graph output or an internal tensor; default: the first float output. A final
            Softmax or Sigmoid is stepped over to its logits (LIFTPAD 2.4, DeepLIFT 3.6) unless `pre_activation` is
            False.
        target: which neuron of that tensor: an int or a tuple (index after the batch axis), "argmax", "input" (a graph
            input `target`, int64, `[N]` or `[N, axes]`), "weights" (a graph input `target_weights` of the explained
            tensor's shape), or None where there is one neuron per sample. A list of T indices explains all of them and
            runs the model only once for it; what is told of a target has an axis of T behind the batch then.
        reference: "paired" (graph input `<input>_reference` of the input's shape), "shared" (`[K, ...]`, averaged),
            "grouped" (`[N, K, ...]`, averaged); the same for all samples: "zeros", "constant:0.5",
            "frequencies:0.3,0.2,0.2,0.3" (along the channels of a one-hot input), or a dict of arrays to bake in
            (leading axis 1 or K); or made of each sample by `Explainer`, where a call gives none: "shuffle:K" and
            "dinuc-shuffle:K" (grouped), "blur:SIGMA" or, with the axes of the image, "blur:SIGMA:1,2" (paired), and
            of a model that reads tokens, "token:0", or "token:0:101,102" where 101 and 102 stay (paired).
        rule: the preset: "rescale", "reveal-cancel", "genomics" (RevealCancel behind dense layers), "liftpad", "lifft",
            "dfd"; or of the gradient family, which does not conserve: "gradient", "guided-backprop" and "deconvnet",
            whose contributions are the multipliers themselves, "gradient-x-input" and "integrated-gradients" (50
            intervals; "integrated-gradients:20" has 20), which multiply them with x - r.
        plan: choices per node, tried before the preset: an `onnxlift.Plan`, a TOML file, or the profile of another
            package: "deeplift", "captum", "shap", "tangermeme".
        pre_activation: step over a final Softmax or Sigmoid.
        expose: internal tensors `T` to emit: `T`, `T/multiplier` and `T/contributions`. Where RevealCancel tells m+ and
            m- apart, `T/multiplier` is their mean, and `T/multiplier/plus` and `T/multiplier/minus` are emitted too.
        emit: of "contributions", "multipliers", "hypothetical" (of one-hot inputs, what every letter would contribute
            at every position; contributions are then put on the letter that is there) and "reference_outputs".
        one_hot: the channel axis of one-hot inputs, an int or axes by input name, for "hypothetical", for the
            normalised weights of LIFTPAD (eq. 20) and for references by name; default: none, or for "hypothetical" and
            shuffles the only axis of 4 channels, for frequencies that of as many.
        keep: which of the model's outputs the explainer returns; default: all. An output that is left out costs nothing
            that the explained one does not need.
        shapes: the extents of all axes of graph inputs, by name, `{"x": (8, 3, 224, 224)}`: their dynamic axes are
            fixed, and no shape is computed at run time. Also of `x_reference`, to fix the number of references.

    Returns:
        The explainer: the model's inputs and outputs unchanged, the reference and target inputs asked for, and the
        outputs `<input>_contributions` (shape and dtype of the input), `target_output` and `target_reference` (t(x)
        and t(r), `[N]`, averaged over references) and `completeness_gap` (`[N]`, t(x) - t(r) - sum of contributions;
        scalars where there is no batch axis).

    Raises:
        ModelError: the model cannot be read. OptionError: an argument does not fit it. RuleError: importance would have
        to pass nodes without a rule; all of them are named.
    """
    options = Options(
        inputs, output, target, reference, rule, plan, pre_activation, expose, emit, one_hot, keep, shapes
    )
    return _rewriter(load(model), options).run()


@_collector_paused()
def rewrite_file(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    inputs: Sequence[str] | None = None,
    output: str | None = None,
    target: TargetSpec = None,
    reference: ReferenceSpec = "paired",
    rule: str = "rescale",
    plan: PlanSpec | None = None,
    pre_activation: bool = True,
    expose: Sequence[str] = (),
    emit: Sequence[str] = ("contributions",),
    one_hot: OneHot = None,
    keep: Sequence[str] | None = None,
    shapes: Shapes | None = None,
) -> onnx.ModelProto:
    """Rewrite file to file, which also works for models over 2 GB.

    Weights in external data are not read. An explainer beside the model refers to the same files; in another folder it
    holds its weights or, from 1 GB on, has its own copy of them beside it (`NAME.data`).

    The arguments are those of `rewrite`. Returns the explainer as written.
    """
    options = Options(
        inputs, output, target, reference, rule, plan, pre_activation, expose, emit, one_hot, keep, shapes
    )
    folder, beside = Path(source).resolve().parent, Path(destination).resolve().parent
    if Path(source).resolve() == Path(destination).resolve():
        raise OptionError(f"{os.fspath(destination)!r} is the model itself; give the explainer another name")
    model = load(source, weights=False)
    if folder == beside:
        explainer = _rewriter(model, options, folder).run()
        save(explainer, destination)
    elif weights_elsewhere(model, folder) < OWN_FILE:
        explainer = _rewriter(load(source), options).run()
        save(explainer, destination)
    else:
        explainer = _rewriter(model, options, folder).run()
        save_with_weights(explainer, destination, folder)
    return explainer


@_collector_paused()
def rewrite_in_place(model: onnx.ModelProto, folder: Path, **options: Any) -> onnx.ModelProto:
    """The explainer of a model that was loaded without its weights, which lie in `folder` and stay there."""
    return _rewriter(model, Options(**options), folder).run()


@dataclass
class Inspection:
    """What the rewriter would do with a model, without doing it."""

    flow: Flow
    rules: dict[str, registry.Rule | None]
    stepped_over: str | None
    problems: list[Problem]
    notes: list[str]
    graph: Graph


def inspect(model: Model, **options: object) -> Inspection:
    """Plan the rewriting of a model and report it. Takes the arguments of `rewrite`; never raises a RuleError."""
    rewriter = _rewriter(load(model), Options(**options))  # type: ignore[arg-type]
    problems = rewriter.flow.problems
    if not problems:
        try:
            rewriter.walk()
        except _Refused as refused:
            problems = refused.problems
    flow, chooser = rewriter.flow, rewriter.chooser
    rules = {step.node.name: chooser.rule(step.node) for step in flow.all_steps}
    return Inspection(flow, rules, rewriter.stepped_over, problems, rewriter.all_notes, rewriter.graph)


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
    """The rewriter for a model. Several references or targets need a free batch axis: a fixed one is freed."""
    lowerer = Lowerer(registry.is_known)
    sizes = inner_sizes(model, options.shapes) if options.shapes else None
    normal = normal_form(model, folder=folder, replace=lowerer, sizes=sizes)
    rewriter = _Rewriter(normal, options, lowerer.refused, folder=folder)
    size = rewriter.batch.dim if rewriter.batch else None
    many = are_several(options.reference) or how_many(options.target) is not None
    if isinstance(size, int) and (many or rewriter.preset.at == "path"):
        freed = _Rewriter(normal_form(free_batch(normal, size)), options, lowerer.refused, fixed=size, folder=folder)
        if freed.batch is not None and freed.batch.led:
            return freed
    return rewriter


def _as_it_is(m: Tensor) -> Tensor:
    return m


def _kept(outputs: list[str], keep: Sequence[str] | None) -> list[str]:
    """Those of the model's outputs that the explainer returns, in their order. Raises OptionError for another name."""
    unknown = [name for name in keep or () if name not in outputs]
    if unknown:
        raise OptionError(f"`keep` names {unknown[0]!r}, but the outputs of the model are {listed(outputs)}")
    return outputs if keep is None else [name for name in outputs if name in keep]


class _Rewriter:
    """One rewriting: the choices that the options leave open, then the steps.

    `refused`: why nodes have no rule, by their first output. `fixed`: the size of the model's batch axis, where `model`
    has it freed. `folder`: where the model's weights lie, if they were not loaded.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        options: Options,
        refused: Mapping[str, str],
        *,
        fixed: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.options = options
        self.folder = folder
        self.fixed = fixed
        self.preset = preset(options.rule)
        self.graph = Graph(model, refused)
        self.chooser = Chooser(self.graph, as_plan(options.plan), self.preset)
        kept = {*options.expose, *(options.inputs or ()), options.output, *self.graph.outputs}
        if fuse(self.graph, self.chooser, kept):
            self.chooser = Chooser(self.graph, self.chooser.plan, self.preset)
        self.emitter = RowEmitter(self.graph)
        self.inputs = self.graph.inputs
        self.originals = _kept(self.graph.outputs, options.keep)
        self._check_names()
        self.output, self.activation = explained_tensor(self.graph, options.output, options.pre_activation)
        self.sources, self.notes = attributed(self.graph, options.inputs, self.output, self.chooser.rule)
        self.flow = trace(self.graph, self.sources, self.output, self.chooser.rule)
        check_apart(self.graph, self.flow)
        self.chooser.check(self.flow)
        self.one_hot = one_hot_axes(self.graph, self.sources, options.one_hot, needed="hypothetical" in options.emit)
        self.given = given_inputs(self.graph, self.sources)
        self.batch = find_batch(self.graph, self.flow, self.given)
        if self.batch is not None and 0 in self.one_hot.values():
            raise OptionError("`one_hot` names axis 0, which counts samples: the channels are on one behind it")
        self.reference, self.builder = self._reference()

    @property
    def stepped_over(self) -> str | None:
        """The final activation that is stepped over, for people."""
        return f"{self.activation.op} {self.activation.name!r}" if self.activation else None

    @property
    def all_notes(self) -> list[str]:
        """What a user should know of the choices made."""
        return [*self.notes, *self.chooser.notes(self.flow)]

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
        if self.options.shapes:
            explainer = with_shapes(explainer, self.options.shapes, self.folder)
        for note in (description(explainer) or {})["notes"]:
            log.info(note)
        return explainer

    def walk(self, *, measure: bool = False) -> Results:
        """Emit the run at the reference and the walk back."""
        options, chooser, batched = self.options, self.chooser, self.batch is not None
        emitter, flow, preset, targets = self.emitter, self.flow, self.preset, how_many(options.target)
        stack_states(self.graph, flow)
        wanted = [self.output, *(self._replayable() if "reference_outputs" in options.emit else ())]
        constrained = self.one_hot if self.normalizes else {}
        runs = run_twice(emitter, flow, self.given, self.batch, self.reference, wanted, constrained, targets)
        walked = runs
        lift: Callable[[Tensor], Tensor] = _as_it_is
        if preset.at == "input":  # multipliers at x = r are derivatives
            walked = at_input(emitter, runs)
            lift = partial(lifted, walked, runs)
        elif preset.at == "path":
            walked = along_the_path(emitter, flow, runs, self.batch, self.inputs, self.given, preset.steps)
            lift = partial(mean_over_steps, steps=preset.steps, targets=targets)
        value = Values(emitter, flow, runs)
        found = value if walked is runs else Values(emitter, flow, walked)
        weights = self._seed()
        seeds = {self.output: found(self.output).spread(placed_seed(walked, weights))}
        problems: list[Problem] = []
        if preset.at == "path" and self.batch is not None and self.batch.led:
            first, flow = behind_the_inputs(flow, chooser)
            bent = Walk(emitter, first, found, chooser, batched=batched)
            bent.back(seeds)
            seeds, problems = averaged(bent, value, lift), bent.problems
            found, lift = value, _as_it_is
        walk = Walk(emitter, flow, found, chooser, batched=batched, measure=measure, exposed=options.expose)
        walk.back(seeds)
        problems += walk.problems
        if problems:
            raise self._refused(problems)
        return Results(
            walk,
            value,
            Seed(weights, placed_seed(runs, weights), self._may_miss()),
            preset,
            lift,
            self.one_hot,
            normalized=self.normalizes,
            batch_axes=None if self.batch is None else self.batch.axes,
        )

    @property
    def normalizes(self) -> bool:
        """Whether one-hot inputs get normalised weights: their axis is named then, not found for something else."""
        return self.chooser.normalize_one_hot and self.options.one_hot is not None

    def _seed(self) -> Tensor:
        """The multiplier of the explained tensor, with the batch of the model."""
        y = self.emitter.tensor(self.output)
        if self.batch is not None and y.shape:
            y.shape = (self.batch.dim, *y.shape[1:])
        weights = seed(self.emitter, y, self.options.target, self.batch is not None)
        if self.chooser.normalize_softmax and self.activation is not None and self.activation.op == "Softmax":
            weights = without_common_part(weights, self.activation)
        return weights

    def _may_miss(self) -> bool:
        """Whether only a run tells that the target is a neuron of the explained tensor."""
        return may_be_out_of_range(self.options.target, self.emitter.tensor(self.output), self.batch is not None)

    def _replayable(self) -> list[str]:
        """The float outputs that can be computed at the reference too."""
        graph = self.graph
        return [name for name in self.originals if graph.dtype(graph.tensors[name]) and is_float(graph, name)]

    def _reference(self) -> tuple[ReferenceSpec | Filled, dict[str, object] | None]:
        """The reference as the graph takes it, and what the metadata say of how the runtime makes it."""
        spec, one_hot, batched = self.options.reference, self.options.one_hot, self.batch is not None
        if not isinstance(spec, str):
            return spec, None
        named = parse(spec)
        shapes = {name: self.graph.shape(self.graph.tensors[name]) for name in self.given}
        if not named.is_given:
            return Filled(named.numbers(shapes, one_hot, batched)), None
        if named.builder is None:
            return named.kind, None
        axes = {name: named.builder.axes_of(name, shape, one_hot, batched) for name, shape in shapes.items()}
        return named.kind, {"spec": spec, "axes": axes}

    def _check_names(self) -> None:
        options = self.options
        if self.preset.at == "path" and options.expose:
            raise OptionError("integrated gradients are those of the inputs: `expose` has no meaning for them")
        if not self.preset.contributes and "hypothetical" in options.emit:
            raise OptionError(f"rule {options.rule!r} has multipliers only, and so no hypothetical contributions")
        unknown = set(self.options.emit) - set(EMITS)
        if unknown:
            raise OptionError(f"cannot emit {listed(sorted(unknown))}: choose from {listed(EMITS)}")
        for name in self.options.expose:
            if name not in self.graph.tensors or name in self.graph.inside:
                where = "inside of an If, Loop or Scan" if name in self.graph.inside else "not in the model"
                raise OptionError(f"tensor {name!r} cannot be exposed: it is {where}")

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
            "target": described_target(target),
            "targets": how_many(target),
            "reference": self._reference_kind(),
            "builder": self.builder,
            "reference_rows": self._baked_rows(),
            "rule": options.rule,
            "plan": self._plan_name(),
            "conserves": self.preset.conserves,
            "rows_per_pair": self.preset.steps * (how_many(target) or 1),
            "one_hot": self.one_hot,
            "normalize_one_hot": self.normalizes,
            "inputs": self.sources,
            "references": self.given,
            "outputs": self.originals,
            "expose": list(options.expose),
            "emit": list(options.emit),
            "batched": self.batch is not None,
            "rules": self._chosen_rules(),
            "notes": self.all_notes,
        }

    def _plan_name(self) -> str | list[str] | None:
        """The profile, the plan file's name, or the choices of a Plan in words; None where no plan was given."""
        spec = self.options.plan
        if isinstance(spec, Plan):
            return [str(choice) for choice in spec.choices]
        return None if spec is None else Path(spec).name

    def _reference_kind(self) -> str:
        """How the graph takes the reference; in the words of the options where it does not."""
        if isinstance(self.reference, str):
            return self.reference
        return self.options.reference if isinstance(self.options.reference, str) else "baked"

    def _baked_rows(self) -> int | None:
        """How many references are stored in the explainer for every sample."""
        if isinstance(self.options.reference, str) or self.batch is None:
            return None
        return max(len(np.atleast_1d(array)) for array in self.options.reference.values())

    def _chosen_rules(self) -> dict[str, str | dict[str, str]]:
        """Operator -> rule; node -> rule for each node of an operator whose nodes do not all have the same."""
        chosen: dict[str, dict[str, str]] = {}
        for step in self.flow.all_steps:
            rule = self.chooser.rule(step.node)
            if rule is not None:
                chosen.setdefault(step.node.op, {})[step.node.name] = rule.name
        return {
            op: nodes if len(set(nodes.values())) > 1 else next(iter(nodes.values())) for op, nodes in chosen.items()
        }
