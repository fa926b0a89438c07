"""Is an explainer right: same outputs as the model, contributions that add up, batches that do not mix?"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Unpack

import numpy as np
from onnx import ModelProto

from onnxlift.arrays import Array
from onnxlift.equivalence import difference, equivalence
from onnxlift.errors import OptionError
from onnxlift.explanation import Explanation
from onnxlift.feed import Data, Intake, Port
from onnxlift.files import load
from onnxlift.metadata import conserves, description, explains
from onnxlift.model import normal_form
from onnxlift.options import Options
from onnxlift.rewrite import Model, rewrite, rewrite_with_residuals
from onnxlift.rows import REFERENCES
from onnxlift.runtime import CompletenessWarning, Explainer, RewriteOptions
from onnxlift.session import Provider, open_session

OUTPUT_TOLERANCE = 1e-5
BATCH_TOLERANCE = 1e-4
_BATCH, _REFERENCES, _EXTENT = 4, 2, 32  # of random data, where the model leaves them open
_MOST_ELEMENTS = 1 << 28  # of one random array


@dataclass(frozen=True)
class Check:
    """One check. `passed` is None where it could not be made; `figure` is what was measured."""

    name: str
    passed: bool | None
    detail: str
    figure: float | None = None


@dataclass(frozen=True)
class Verification:
    """What `verify` found. `data` says on what; `explanation` and `allowed` (`[N]`) show it sample by sample.

    `residuals`: where contributions do not add up, what each node fails to conserve, the largest first.
    """

    explains: str
    provider: str
    data: str
    checks: Sequence[Check]
    explanation: Explanation
    allowed: Array
    residuals: Mapping[str, float] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """No check failed."""
        return not any(check.passed is False for check in self.checks)


def verify(
    model: Model,
    data: Data | None = None,
    *,
    original: Model | None = None,
    samples: int = 16,
    dims: Mapping[str, int] | None = None,
    tolerance: float = 1e-3,
    providers: Sequence[Provider] | None = None,
    **options: Unpack[RewriteOptions],
) -> Verification:
    """Check a model (rewritten here, with `options` of `rewrite`; target "argmax" by default) or an explainer.

    Args:
        model: path or ModelProto of either.
        data: what to check on, as for `Explainer`; its first `samples` samples are used. References that are missing
            are other samples. Default: seeded random data (standard normal; one-hot where it must be; integers 0 and
            1, masks of ones).
        original: the model that an explainer was made of; without it, outputs cannot be compared.
        dims: sizes of symbolic dimensions of random data; default: 4 samples, 2 references, 32 for others.
        tolerance: of the completeness gap relative to |t(x) - t(r)|.

    Raises:
        OnnxliftError: as `rewrite` and `Explainer`.
    """
    source: Model = model
    plain = description(load(model, weights=False)) is None
    if plain:
        if original is not None:
            raise OptionError("an original is asked for only beside an explainer, and this is a plain model")
        model = load(model)  # read once, for everything below
        options["target"] = "argmax" if options.get("target") is None else options["target"]
        original, source = model, rewrite(model, **options)
    left = RewriteOptions() if plain else options  # those an explainer refuses
    explainer = Explainer(source, providers=providers, tolerance=tolerance, progress=False, **left)
    named, note = trial_data(explainer.intake, data, dims or {}, samples)
    arrays = explainer.intake.feed(named).arrays
    checks = []
    if plain:
        checks.append(_same("normal form", load(model), normal_form(load(model)), arrays))
    if original is not None:
        checks.append(_same("outputs", load(original), load(source), arrays))
    else:
        checks.append(Check("outputs", None, "not compared: name the original model"))
    explainer.batch_size = samples  # together, to be compared with one by one
    explanation = _explain(explainer, named)
    allowed = explainer.allowed_gap(explanation)
    completeness = _completeness(explainer, explanation)
    checks += [completeness, _batches(explainer, named, explanation)]
    residuals = {}
    if plain and completeness.passed is False:
        residuals = _residuals(model, Options(**options), arrays, providers)
    return Verification(
        explains(explainer.description), explainer.provider_line, note, checks, explanation, allowed, residuals
    )


def trial_data(
    intake: Intake, data: Data | None, dims: Mapping[str, int], samples: int, seed: int = 0
) -> tuple[dict[str, Array], str]:
    """Arrays for every input of an explainer, by name, and a note that says where they come from.

    Raises OptionError for a size of a dimension that does not exist, DataError for data that do not fit.
    """
    rng = np.random.default_rng(seed)
    symbols = {dim for port in intake.ports.values() for dim in port.shape if isinstance(dim, str)}
    if unknown := sorted(set(dims) - symbols):
        raise OptionError(
            f"no dimension {unknown[0]!r} in the inputs: they have {', '.join(sorted(symbols)) or 'none'}"
        )
    sizes = dict.fromkeys(sorted(symbols), _EXTENT)
    sizes |= {REFERENCES: _REFERENCES} if REFERENCES in symbols else {}
    sizes |= {intake.batch: _BATCH} if isinstance(intake.batch, str) else {}
    sizes |= dims
    if data is None:
        named = {name: _random(rng, port, sizes, intake) for name, port in intake.ports.items()}
        shown = ", ".join(f"{symbol} = {size}" for symbol, size in sizes.items())
        return named, f"random data, seed {seed}" + (f", {shown}" if shown else "")
    named = intake.arrays(data)
    rows = _rows(intake, named, samples)
    if rows is not None:
        named = {name: array[rows] if intake.ports[name].split else array for name, array in named.items()}
        sizes[str(intake.batch)] = len(rows)
    notes = ["the given data" if rows is None else f"{len(rows)} of the given samples"]
    for port in intake.ports.values():
        if port.name in named or port.role == "data":  # what data are missing, the intake says
            continue
        if port.role == "reference" and port.of in named and rows is not None:
            named[port.name] = _other_samples(port, named[port.of])
            notes.append("other samples as references")
        else:
            named[port.name] = _random(rng, port, sizes, intake)
            notes.append(f"random {port.name}")
    return named, ", ".join(dict.fromkeys(notes))


def _rows(intake: Intake, named: Mapping[str, Array], samples: int) -> Array | None:
    """Which samples to take: the first ones, or as many as a fixed batch axis needs; None where there is none."""
    first = named.get(intake.given[0])
    if intake.batch is None or first is None or not first.ndim or not len(first):
        return None
    count = intake.batch if isinstance(intake.batch, int) else min(samples, len(first))
    return np.arange(count) % len(first)


def _other_samples(port: Port, x: Array) -> Array:
    """References from the data itself: the next samples; zeros where there is only one."""
    following = [np.roll(x, -k, axis=0) if len(x) > 1 else np.zeros_like(x) for k in (1, 2)]
    if not port.split:
        return following[0][:_REFERENCES]
    return following[0] if len(port.shape) == x.ndim else np.stack(following, axis=1)


def _random(rng: np.random.Generator, port: Port, sizes: Mapping[str, int], intake: Intake) -> Array:
    shape = [dim if isinstance(dim, int) else sizes.get(str(dim), _EXTENT) for dim in port.shape]
    if math.prod(shape) > _MOST_ELEMENTS:
        raise OptionError(
            f"random data of shape {shape} for input {port.name!r} are too big: choose smaller dimensions"
        )
    if port.role == "target":
        limits = [dim if isinstance(dim, int) else 1 for dim in intake.neurons]
        index = rng.integers(0, limits, size=(*shape[: int(port.split)], len(limits)))
        return np.asarray(index.reshape(shape))
    if port.of in intake.one_hot:
        axis = intake.one_hot[port.of] + len(shape) - len(intake.ports[port.of].shape)  # [N, K, ...] has one more
        letters = rng.integers(0, shape[axis], size=shape[:axis] + shape[axis + 1 :])
        return np.moveaxis(np.eye(shape[axis], dtype=port.dtype)[letters], -1, axis)
    if port.dtype.kind == "f":
        return rng.standard_normal(shape).astype(port.dtype)
    if "mask" in port.name.lower():
        return np.ones(shape, port.dtype)
    return rng.integers(0, 2, size=shape).astype(port.dtype)


def _same(name: str, original: ModelProto, other: ModelProto, arrays: Mapping[str, Array]) -> Check:
    """Whether two models have the same outputs."""
    worst = equivalence(original, other, arrays)
    if not worst:
        return Check(name, None, "not compared: the explainer returns none of the model's outputs")
    figure = max(worst.values())
    where = max(worst, key=lambda output: worst[output])
    compared = {
        "normal form": "the prepared model against the original",
        "outputs": "the explainer against the original",
    }
    detail = f"{compared[name]}: largest relative difference {figure:.2g}"
    if figure > OUTPUT_TOLERANCE:
        detail += f" in {where!r}, allowed {OUTPUT_TOLERANCE:g}"
    return Check(name, figure <= OUTPUT_TOLERANCE, detail, figure)


def _explain(explainer: Explainer, named: Mapping[str, Array]) -> Explanation:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompletenessWarning)
        return explainer(named)


def _completeness(explainer: Explainer, explanation: Explanation) -> Check:
    difference = np.abs(explanation.difference)
    complaint = explainer.complaint(explanation)
    figure = float(np.max(explanation.relative_gap))
    if not conserves(explainer.description):
        rule = explainer.description["rule"]
        return Check("completeness", None, f"not applicable: rule {rule!r} does not conserve", figure)
    if complaint:
        return Check("completeness", False, complaint.split("; run")[0], figure)
    if np.all(difference <= explainer.rounding(explanation)):
        return Check("completeness", None, "t(x) equals t(r) up to rounding: nothing to add up", figure)
    detail = f"largest |gap| {np.max(np.abs(explanation.gap)):.2g}, |t(x) - t(r)| from {difference.min():.3g} to "
    return Check("completeness", True, f"{detail}{difference.max():.3g}: {figure:.2g} relative", figure)


def _batches(explainer: Explainer, named: Mapping[str, Array], together: Explanation) -> Check:
    """Whether a batch of N explains as N batches of one do."""
    if not isinstance(explainer.intake.batch, str) or len(together.gap) < 2:
        return Check("batches", None, "not compared: there is one sample, or no batch axis of free size")
    explainer.batch_size = 1
    alone = _scores(_explain(explainer, named))
    figure = 0.0
    for name, array in _scores(together).items():
        figure = max(figure, difference(array, alone[name]))
    allowed = max(BATCH_TOLERANCE, 64 * explainer.eps)
    detail = f"{len(together.gap)} samples at once against one by one: largest relative difference {figure:.2g}"
    return Check("batches", figure <= allowed, detail, figure)


def _scores(explanation: Explanation) -> dict[tuple[str, str], Array]:
    """All that is said of the inputs."""
    kinds = {
        "contributions": explanation.contributions,
        "multipliers": explanation.multipliers,
        "hypothetical": explanation.hypothetical,
    }
    return {(kind, name): array for kind, arrays in kinds.items() for name, array in arrays.items()}


def _residuals(
    model: Model, options: Options, arrays: Mapping[str, Array], providers: Sequence[Provider] | None
) -> dict[str, float]:
    """What each node's rule fails to conserve, over all samples, the largest first."""
    proto, nodes = rewrite_with_residuals(model, options)
    session, _ = open_session(proto.SerializeToString(), providers)
    values = session.run(list(nodes), {port.name: arrays[port.name] for port in session.get_inputs()})
    found = {node: abs(float(value)) for node, value in zip(nodes.values(), values, strict=True)}
    return dict(sorted(found.items(), key=lambda item: -np.nan_to_num(item[1], nan=np.inf)))
