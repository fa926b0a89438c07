"""What an explainer file gives back: its outputs, their names, and the description it carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxlift.errors import OptionError
from onnxlift.functions import cast, clip, expand, reduce_sum, reshape, shape_of, unsqueeze
from onnxlift.graph import Handle
from onnxlift.one_hot import centred, hypothetical, off_constraint
from onnxlift.plan import Preset
from onnxlift.rows import TARGETS
from onnxlift.signed import Multiplier
from onnxlift.site import Value
from onnxlift.target import nan_where_out_of_range, weighted_sum
from onnxlift.tensor import Tensor, limits
from onnxlift.walk import Values, Walk

METADATA_KEY = "onnxlift"
"""The entry of metadata_props that holds the description, as JSON."""
GAP = "completeness_gap"
TARGET_OUTPUT = "target_output"
TARGET_REFERENCE = "target_reference"
CONTRIBUTIONS, HYPOTHETICAL = "_contributions", "_hypothetical"
"""What these outputs are called after the name of the input."""
EMITS = ("contributions", "multipliers", "hypothetical", "reference_outputs")


@dataclass(frozen=True)
class Seed:
    """The target's weights: with the batch of the model (or a row for each target), and among all rows of the walk.

    `checked`: only a run tells whether the target is in range, and the weights are NaN where it is not.
    """

    weights: Tensor
    lifted: Tensor
    checked: bool


class Results:
    """The outputs of an explainer, taken from a finished walk.

    `value`: the tensors at the input and at the reference. `lift` brings a multiplier of the walk to their rows.
    `batch_axes`: where attributed tensors have the batch axis; none where the model has none.
    `one_hot`: the channel axis of attributed tensors, by name. `normalized`: with the weights of LIFTPAD eq. 20.
    """

    def __init__(
        self,
        walk: Walk,
        value: Values,
        seed: Seed,
        preset: Preset,
        lift: Callable[[Tensor], Tensor],
        one_hot: Mapping[str, int],
        *,
        normalized: bool,
        batch_axes: Mapping[str, int] | None,
    ) -> None:
        self.walk = walk
        self.value = value
        self.emitter = walk.emitter
        self.graph = walk.emitter.graph
        self.seed = seed
        self.preset = preset
        self.lift = lift
        self.one_hot = one_hot
        self.normalized = normalized
        self.batched = batch_axes is not None
        self.batch_axes = batch_axes or {}
        self.rows = value.runs.rows
        self.targets = self.rows is not None and TARGETS in self.rows.factors

    def write(self, originals: Sequence[str], emit: Sequence[str], expose: Sequence[str]) -> None:
        """Make them the graph's outputs: the model's own first, under their own names."""
        sources = self.walk.flow.sources
        hypothetical = {name: self.hypothetical(name) for name in self.one_hot} if "hypothetical" in emit else {}
        contributions = {name: self.contributions(name, hypothetical.get(name)) for name in sources}
        results = self.completeness(contributions)
        for name in sources:
            if "contributions" in emit:
                results[f"{name}_contributions"] = contributions[name]
            if "multipliers" in emit:
                results[f"{name}_multipliers"] = self.mean_multiplier(name)
        results.update({f"{name}_hypothetical": tensor for name, tensor in hypothetical.items()})
        if "reference_outputs" in emit and self.value.runs.has_outputs:
            at_r = self.value.runs.at_r
            for name in originals:
                if f"{name}_reference" in results:
                    raise OptionError(
                        f"the model's output {name!r} at the reference would be called {name}_reference, "
                        "as one of the explainer's own: leave out emit 'reference_outputs', or rename it"
                    )
                if name in at_r:
                    results[f"{name}_reference"] = at_r[name]
        for name in expose:
            results.update(self.exposed(name))
        results.update({f"{node}/residual": tensor for node, tensor in self.walk.residuals.items()})
        outputs = [self.graph.tensors[name] for name in dict.fromkeys((*originals, *expose))]
        for name, tensor in results.items():
            outputs.append(self.output(name, tensor, outputs))
        self.graph.set_outputs(outputs)

    def multiplier(self, name: str) -> Multiplier:
        """The multiplier of a tensor that importance passes through; 0 for an input that its node does not use."""
        m = self.walk.multiplier(name)
        if m is None and name in self.walk.flow.sources:
            return Multiplier(self.walk.value(name).zeros())
        if m is None:
            raise OptionError(f"no importance passes through tensor {name!r}, so that it cannot be exposed")
        if self.normalized and name in self.one_hot:
            return Multiplier(centred(m.mean, self.one_hot[name]))
        return m

    def mean_multiplier(self, name: str) -> Tensor:
        """A multiplier as it is emitted, averaged over references."""
        return self.mean(self.lift(self.multiplier(name).mean), name)

    def contributions(self, name: str, hypothetical: Tensor | None = None) -> Tensor:
        """c = m d (LIFTPAD eq. 3), part by part, averaged over references; or the multiplier, if that is the score.

        The contribution of a position of a one-hot input, H of the letter there, is put on that letter. Where there is
        none (an unknown base) the channels keep their own.
        """
        if not self.preset.contributes:
            return self.mean_multiplier(name)
        value, m = self.stated(name), self.multiplier(name)
        m = Multiplier(self.lift(m.mean), m.half)
        d = value.map(finite).d if len(self.walk.flow.sources) > 1 else value.d
        c = m.contribution(d, value.parts if m.half else None)
        if self.normalized and name in self.one_hot and (own := self.walk.multiplier(name)) is not None:
            c = c + off_constraint(self.lift(own.mean), value.x, self.one_hot[name])
        if hypothetical is None:
            return self.mean(c, name)
        unknown = 1 - reduce_sum(value.x, [self.one_hot[name]])
        x = self.emitter.tensor(name)
        return (unsqueeze(x, [1]) if self.targets else x) * hypothetical + self.mean(unknown * c, name)

    def hypothetical(self, name: str) -> Tensor:
        """What every letter would contribute at every position (METHOD 8), averaged over references."""
        m = self.lift(self.multiplier(name).mean)
        return self.mean(hypothetical(m, self.stated(name).r, self.one_hot[name]), name)

    def stated(self, name: str) -> Value:
        """A tensor at x and at the reference as it was given."""
        value, r = self.value(name), self.value.runs.stated.get(name)
        return value if r is None else Value(name, value.x, r, True, self.value.runs.pairing)

    def exposed(self, name: str) -> dict[str, Tensor]:
        """An internal tensor's multiplier and contributions; m+ and m- too, where they differ."""
        m = self.multiplier(name)
        if self.rows is not None:  # what is made of them for each sample takes the name
            self.graph.rename(m.mean.handle, self.graph.unused(f"{name}/multiplier/{self.rows.symbol}"))
        results = {
            f"{name}/contributions": self.contributions(name),
            f"{name}/multiplier": self.mean_multiplier(name),
        }
        if m.half is not None:
            results[f"{name}/multiplier/plus"] = self.mean(m.mean + m.half, name)
            results[f"{name}/multiplier/minus"] = self.mean(m.mean - m.half, name)
        return results

    def completeness(self, contributions: dict[str, Tensor]) -> dict[str, Tensor]:
        """t(x), t(r) and t(x) - t(r) - sum of contributions: per sample (and target), or a scalar without a batch."""
        target = self.walk.flow.target
        y = self.emitter.tensor(target)
        if self.targets:
            y = unsqueeze(y, [1])
        t_x = weighted_sum(y, self.seed.weights, int(self.batched) + int(self.targets))
        t_r = self.per_sample(weighted_sum(self.value(target).r, self.seed.lifted, int(self.batched)), t_x)
        gap = t_x - t_r
        for name, c in contributions.items():
            kept = {self.batch_axes.get(name), 1 if self.targets else None}
            axes = [axis for axis in range(self.value(name).rank + int(self.targets)) if axis not in kept]
            gap = gap - reduce_sum(cast(c, t_x.dtype), axes, keepdims=False)
        gap.shape = t_x.shape
        return {TARGET_OUTPUT: t_x, TARGET_REFERENCE: t_r, GAP: gap}

    def mean(self, tensor: Tensor, name: str) -> Tensor:
        """The mean over references of something shaped like a tensor of the model: [N * K * T, ...] -> [N, T, ...].

        For what is attributed to, NaN where the target is out of range: also where a multiplier is 0 whatever the
        target is, because no neuron depends on that element.
        """
        shape = self.emitter.tensor(name).shape
        if self.rows is not None:
            tensor = self.rows.mean(tensor)
            targets = [factor.dim for axis, factor in self.rows.factors.items() if axis == TARGETS]
            shape = None if shape is None else (*shape[:1], *targets, *shape[1:])
        axis = self.batch_axes.get(name)
        if self.seed.checked and (axis is not None or not self.batched):
            tensor = tensor + self.out_of_range(tensor, axis or 0)
        tensor.shape = shape
        return tensor

    def out_of_range(self, tensor: Tensor, axis: int) -> Tensor:
        """0 or, where the target is out of range, NaN: to be added to a tensor whose samples are along `axis`."""
        flag = nan_where_out_of_range(self.seed.weights, int(self.batched))
        behind = tensor.rank - 1 - int(self.targets or axis)
        return cast(reshape(flag, [-1, *[1] * behind] if tensor.rank else []), tensor.dtype)

    def per_sample(self, t_r: Tensor, t_x: Tensor) -> Tensor:
        """t(r) per sample (and target): averaged over references, or one value for all samples."""
        if self.rows is not None:
            t_r = self.rows.mean(t_r)
        elif self.value.runs.pairing.thin:
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


def finite(x: Tensor) -> Tensor:
    """Infinity as a number: a mask of it, an input beside others, has no difference where both runs have it."""
    return clip(x, -limits(x).largest, limits(x).largest)
