"""What an explainer file gives back: its outputs, their names, and the description it carries."""

from __future__ import annotations

from collections.abc import Sequence

from onnxlift.errors import OptionError
from onnxlift.functions import cast, concat, expand, reduce_mean, reduce_sum, reshape, shape_of
from onnxlift.graph import Handle
from onnxlift.reference import PAIRS, Crossed
from onnxlift.site import Value
from onnxlift.target import weighted_sum
from onnxlift.tensor import Tensor
from onnxlift.walk import Walk

METADATA_KEY = "onnxlift"
"""The entry of metadata_props that holds the description, as JSON."""
GAP = "completeness_gap"
TARGET_OUTPUT = "target_output"
TARGET_REFERENCE = "target_reference"
EMITS = ("contributions", "multipliers", "reference_outputs")


class Results:
    """The outputs of an explainer, taken from a finished walk.

    `weights` is the seed with the batch of the model, `lifted` with that of the walk.
    """

    def __init__(self, walk: Walk, weights: Tensor, lifted: Tensor, batched: bool) -> None:
        self.walk = walk
        self.emitter = walk.emitter
        self.graph = walk.emitter.graph
        self.weights = weights
        self.lifted = lifted
        self.batched = batched

    def write(self, originals: Sequence[str], emit: Sequence[str], expose: Sequence[str]) -> None:
        """Make them the graph's outputs: the model's own first, under their own names."""
        sources = self.walk.flow.sources
        contributions = {name: self.contributions(name) for name in sources}
        results = self.completeness(contributions)
        for name in sources:
            if "contributions" in emit:
                results[f"{name}_contributions"] = contributions[name]
            if "multipliers" in emit:
                results[f"{name}_multipliers"] = self.mean(self.multiplier(name), self.walk.value(name))
        if "reference_outputs" in emit:
            at_r = self.walk.runs.at_r
            results.update({f"{name}_reference": at_r[name] for name in originals if name in at_r})
        for name in expose:
            if self.walk.runs.crossed is not None:  # the mean over references takes the name
                self.graph.rename(self.multiplier(name).handle, self.graph.unused(f"{name}/multiplier/{PAIRS}"))
            results[f"{name}/contributions"] = self.contributions(name)
            results[f"{name}/multiplier"] = self.mean(self.multiplier(name), self.walk.value(name))
        results.update({f"{node}/residual": tensor for node, tensor in self.walk.residuals.items()})
        outputs = [self.graph.tensors[name] for name in dict.fromkeys((*originals, *expose))]
        for name, tensor in results.items():
            outputs.append(self.output(name, tensor, outputs))
        self.graph.set_outputs(outputs)

    def multiplier(self, name: str) -> Tensor:
        """The multiplier of a tensor that importance passes through; 0 for an input that its node does not use."""
        m = self.walk.multiplier(name)
        if m is None and name in self.walk.flow.sources:
            return self.walk.value(name).zeros()
        if m is None:
            raise OptionError(f"no importance passes through tensor {name!r}, so that it cannot be exposed")
        return m

    def contributions(self, name: str) -> Tensor:
        """c = m d (LIFTPAD eq. 3), averaged over references."""
        value = self.walk.value(name)
        return self.mean(self.multiplier(name) * value.d, value)

    def completeness(self, contributions: dict[str, Tensor]) -> dict[str, Tensor]:
        """t(x), t(r) and t(x) - t(r) - sum of contributions: per sample, or a scalar without a batch axis."""
        target = self.walk.flow.target
        t_x = weighted_sum(self.emitter.tensor(target), self.weights, self.batched)
        t_r = self.per_sample(weighted_sum(self.walk.value(target).r, self.lifted, self.batched), t_x)
        gap = t_x - t_r
        for name, c in contributions.items():
            axes = range(int(self.batched), self.walk.value(name).rank)
            gap = gap - reduce_sum(cast(c, t_x.dtype), axes, keepdims=False)
        gap.shape = t_x.shape
        return {TARGET_OUTPUT: t_x, TARGET_REFERENCE: t_r, GAP: gap}

    def mean(self, tensor: Tensor, value: Value) -> Tensor:
        """The mean over references of something shaped like `value`: [N * K, ...] -> [N, ...]."""
        model, crossed = self.emitter.tensor(value.name), self.walk.runs.crossed
        if crossed is not None:
            rest = [shape_of(model, 1)] if model.rank > 1 else []
            tensor = mean_over_references(tensor, crossed, rest)
        tensor.shape = model.shape
        return tensor

    def per_sample(self, t_r: Tensor, t_x: Tensor) -> Tensor:
        """t(r) per sample: averaged over references, or one value for all samples."""
        runs = self.walk.runs
        if runs.crossed is not None:
            t_r = mean_over_references(t_r, runs.crossed, [])
        elif runs.pairing.thin:
            t_r = expand(t_r, shape_of(t_x))
        t_r.shape = t_x.shape
        return t_r

    def output(self, name: str, tensor: Tensor, taken: Sequence[Handle]) -> Handle:
        """A graph output of that very name: the tensor itself, or a copy where it has a name already."""
        if tensor.name == name:
            return tensor.handle
        self.graph.check_free(name, "output")
        free = self.graph.is_computed(tensor.handle) and not self.walk.is_named(tensor)
        if free and tensor.name not in self.graph.own and not any(tensor.handle is handle for handle in taken):
            self.graph.rename(tensor.handle, name)
            return tensor.handle
        handle = self.graph.variable(name, tensor.dtype, tensor.shape)
        self.graph.node("Identity", [tensor.handle], [handle], {}, name=name)
        return handle


def mean_over_references(tensor: Tensor, crossed: Crossed, rest: Sequence[Tensor]) -> Tensor:
    """[N * K, ...] -> [N, K, ...] -> [N, ...]; `rest` is the run-time shape behind the batch."""
    wide = reshape(tensor, concat([crossed.samples, crossed.references, *rest], axis=0))
    wide.shape = (None, None, *(tensor.shape or ())[1:])
    return reduce_mean(wide, [1], keepdims=False)
