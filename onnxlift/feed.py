"""What an explainer takes, and the user's arrays checked and converted to exactly that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from onnxlift.arrays import Array
from onnxlift.batching import Tile
from onnxlift.errors import DataError, shown
from onnxlift.metadata import must_be_one_hot
from onnxlift.shuffling import check_one_hot
from onnxlift.spec import Ahead, recorded

Data = ArrayLike | Mapping[str, ArrayLike]

_DTYPES = {"float": "float32", "double": "float64"}


@dataclass(frozen=True)
class Port:
    """One graph input of an explainer.

    `role`: "data", "reference", "target" or "weights". `of`: the data input that a reference belongs to.
    `shape`: ints and symbols. `split`: the leading axis counts samples.
    """

    name: str
    kind: str
    shape: tuple[int | str | None, ...]
    role: str
    of: str
    split: bool

    @property
    def dtype(self) -> np.dtype[Any]:
        """The element type. Raises DataError where NumPy has none."""
        name = self.kind.removeprefix("tensor(").removesuffix(")")
        if not self.kind.startswith("tensor(") or name in ("string", "bfloat16") or name.startswith("float8"):
            raise DataError(
                f"input {self.name!r} is of type {self.kind}, which onnxlift cannot feed: run the explainer with "
                "ONNX Runtime directly"
            )
        return np.dtype(_DTYPES.get(name, name))


@dataclass(frozen=True)
class Feed:
    """Arrays ready to run, by graph input. `split` names those whose leading axis counts the `samples`.

    `samples` is None where there is no batch axis; `references` is K. `built`: graph inputs that are made when their
    samples run, by a function of the first and the last sample (exclusive). `along`: the axis that counts references,
    of the inputs that can be given some of them at a time. `first`: the number of the first sample, for messages.
    """

    arrays: Mapping[str, Array]
    split: frozenset[str]
    samples: int | None
    references: int
    built: Mapping[str, Callable[[int, int], Array]] = field(default_factory=dict)
    along: Mapping[str, int] = field(default_factory=dict)
    first: int = 0

    def rows(self, tile: Tile, fixed: int | None) -> dict[str, Array]:
        """The split arrays of a tile, contiguous; with `fixed`, their last row is repeated up to that many."""
        rows = {name: self.arrays[name][tile.start : tile.stop] for name in self.split - self.built.keys()}
        rows |= {name: build(tile.start, tile.stop) for name, build in self.built.items()}
        samples = tile.stop - tile.start
        if fixed is not None and samples < fixed:
            index = np.minimum(np.arange(fixed), samples - 1)
            rows = {name: array[index] for name, array in rows.items()}
        return {name: np.ascontiguousarray(self._of(tile, name, array)) for name, array in rows.items()}

    def common(self, tile: Tile) -> dict[str, Array]:
        """The other arrays: those of all samples that have the tile's references."""
        return {name: self._of(tile, name, self.arrays[name]) for name in self.arrays.keys() - self.split}

    def _of(self, tile: Tile, name: str, array: Array) -> Array:
        """The references of a tile."""
        if name not in self.along:
            return array
        return array[(slice(None),) * self.along[name] + (slice(tile.first, tile.last),)]


class Intake:
    """The graph inputs of an explainer, from its session and its metadata.

    `ports` by name; `given` names those that need a reference; `batch` is the batch axis's size, its symbol, or None
    where there is none; `neurons` is the explained tensor's shape per sample; `one_hot` is the channel axis of inputs
    whose data must be one-hot, by name. `seed`: of references that are made here.
    """

    def __init__(self, inputs: Sequence[Any], description: Mapping[str, Any], seed: int = 0) -> None:
        self._about = description
        self._recorded = recorded(description)
        self._seed = seed
        self.given: list[str] = description["references"]
        shapes = {value.name: tuple(value.shape) for value in inputs}
        self.neurons: list[int | str | None] = description["output_shape"][int(description["batched"]) :]
        self.batch: int | str | None = shapes[self.given[0]][0] if description["batched"] else None
        self.ports = {value.name: self._port(value.name, value.type, shapes[value.name]) for value in inputs}
        self.one_hot = {name: axis for name, axis in must_be_one_hot(description).items() if name in self.ports}

    def _port(self, name: str, kind: str, shape: tuple[int | str | None, ...]) -> Port:
        base = name.removesuffix("_reference")
        if self._about["reference"] in ("paired", "shared", "grouped") and name != base and base in self.given:
            split = self.batch is not None and self._about["reference"] != "shared"
            return Port(name, kind, shape, "reference", base, split)
        role = "data"
        if name == "target" and self._about["target"] == "input":
            role = "target"
        elif name == "target_weights" and self._about["target"] == "weights":
            role = "weights"
        split = self.batch is not None and bool(shape) and (role != "data" or shape[0] == self.batch)
        return Port(name, kind, shape, role, name, split)

    def of_role(self, role: str) -> list[Port]:
        """The inputs of one role, in the graph's order."""
        return [port for port in self.ports.values() if port.role == role]

    def feed(
        self,
        data: Data,
        reference: Data | None = None,
        target: ArrayLike | None = None,
        target_weights: ArrayLike | None = None,
        *,
        first: int = 0,
    ) -> Feed:
        """Check and convert one call's arrays. `first`: the number of the first sample. Raises DataError."""
        arrays = self.arrays(data, reference, target, target_weights)
        samples, split = self._fitted(arrays)
        for name, array in arrays.items():
            _check_finite(self.ports[name], array, first if name in split else None)
        self._check_one_hot(arrays, first)
        self._check_target(arrays, first)
        built = self._makers(self._made(arrays), arrays, first)
        if samples is None:
            arrays |= {name: build(0, 1)[0] for name, build in built.items()}
            built = {}
        axis = {"shared": 0, "grouped": 1}.get(self._about["reference"])
        along: dict[str, int] = {}
        if axis is not None:
            along = {port.name: axis for port in self.of_role("reference") if isinstance(port.shape[axis], str)}
        return Feed(arrays, frozenset(split), samples, self._references(arrays), built, along, first)

    def cut(self, named: Mapping[str, Any]) -> tuple[int | None, frozenset[str]]:
        """N (None: no batch axis), and the arrays with a row for each sample; only shapes and dtypes are looked at.

        `named`: by graph input, whatever has a `shape` and a `dtype`. Raises DataError where `feed` would for these.
        """
        hollow = {}
        for name, rows in named.items():
            _array(name, np.empty(0, rows.dtype), self.ports[name].dtype)
            hollow[name] = np.broadcast_to(0, rows.shape)
        samples, split = self._fitted(hollow)
        return samples, frozenset(name for name in split & named.keys() if named[name].shape == hollow[name].shape)

    def _fitted(self, arrays: dict[str, Array]) -> tuple[int | None, set[str]]:
        """N, and the inputs whose leading axis counts samples; one row for all samples is repeated in `arrays`.

        Raises DataError: an array is missing, or its shape does not fit.
        """
        made = self._made(arrays)
        for port in self.ports.values():
            if port.name not in arrays and port not in made:
                hint = "" if port.role == "data" else f" ({self._option(port.role)})"
                raise DataError(f"the array of input {port.name!r} is missing{hint}: give it")
        samples = self._samples(arrays)
        split = {name for name, port in self.ports.items() if port.split}
        for port in self.of_role("data"):  # a fixed extent may be the batch, or happen to equal it
            leading = arrays[port.name].shape[:1]
            if isinstance(self.batch, int) and port.name not in self.given and leading != (samples,):
                split -= {port.name} if leading == (self.batch,) else set()
        for port in (port for port in self.ports.values() if port not in made):
            if samples is not None and port.role != "data" and port.split:
                arrays[port.name] = _spread(arrays[port.name], len(port.shape), samples)
            self._check_shape(port, arrays, samples if port.name in split else None)
        return samples, split

    def _made(self, arrays: Mapping[str, Array]) -> list[Port]:
        """The inputs whose references are to be made: all, where the metadata say how and none is given."""
        ports = self.of_role("reference")
        return ports if self._recorded and not any(port.name in arrays for port in ports) else []

    def _makers(self, ports: Sequence[Port], arrays: Mapping[str, Array], first: int) -> dict[str, Ahead]:
        """What makes the references of each input, from the checked samples. Raises DataError where it cannot."""
        makers = {}
        for port in ports:
            assert self._recorded is not None
            builder, axes = self._recorded
            x, along = arrays[port.of], axes[port.of]
            if self.batch is None:
                x, along = x[None], [axis + 1 for axis in along]
            builder.check(port.of, x, along, first)
            makers[port.name] = Ahead(builder, x, along, self._seed)
        return makers

    def arrays(
        self,
        data: Data,
        reference: Data | None = None,
        target: ArrayLike | None = None,
        target_weights: ArrayLike | None = None,
    ) -> dict[str, Array]:
        """What a call gives, by graph input and in its dtype; some may be missing. Raises DataError."""
        named = self.named(data, reference, target, target_weights)
        return {name: _array(name, value, self.ports[name].dtype) for name, value in named.items()}

    def named(self, data: Any, reference: Any = None, target: Any = None, target_weights: Any = None) -> dict[str, Any]:
        """What a call gives, by graph input, whatever the arrays are. Raises DataError for names that do not fit."""
        named: dict[str, Any] = {}
        if isinstance(data, Mapping):
            named.update(data)
        else:
            ports = self.of_role("data")
            if len(ports) != 1:
                names = ", ".join(repr(port.name) for port in ports)
                raise DataError(f"the model has {len(ports)} inputs: give a mapping with the arrays of {names}")
            named[ports[0].name] = data
        extra: dict[str, Any] = {}
        if isinstance(reference, Mapping):
            bare = {name: name if name in self.given else name.removesuffix("_reference") for name in reference}
            extra |= {f"{bare[name]}_reference": array for name, array in reference.items()}
        elif reference is not None:
            if len(self.given) != 1:
                wanted = ", ".join(map(repr, self.given))
                raise DataError(f"references are needed for {wanted}: give them as a mapping from these names")
            extra[f"{self.given[0]}_reference"] = reference
        extra |= {} if target is None else {"target": target}
        extra |= {} if target_weights is None else {"target_weights": target_weights}
        for name in extra:
            role = {"target": "target", "target_weights": "weights"}.get(name, "reference")
            if name not in self.ports or self.ports[name].role != role:
                raise DataError(f"the explainer takes no {name!r}: {self._option(role)}")
            if name in named:
                raise DataError(f"{name!r} is given twice, in the data and as an argument: leave one out")
        named |= extra
        for name in named:
            if name not in self.ports:
                raise DataError(f"no input {name!r} in the explainer: it takes {', '.join(map(repr, self.ports))}")
        return named

    def _option(self, role: str) -> str:
        option = "reference" if role == "reference" else "target"
        return f"it was rewritten with {option}={self._about[option]!r}"

    def _samples(self, arrays: Mapping[str, Array]) -> int | None:
        """N, where there is a batch axis."""
        if self.batch is None:
            return None
        first = self.given[0]
        if not arrays[first].ndim:
            raise DataError(f"input {first!r} is a single number, but needs shape {shown(self.ports[first].shape)}")
        samples = len(arrays[first])
        if samples == 0:
            raise DataError(f"input {first!r} has no samples: its shape is {list(arrays[first].shape)}")
        return samples

    def _references(self, arrays: Mapping[str, Array]) -> int:
        """K: over how many references each sample is averaged."""
        first = arrays.get(f"{self.given[0]}_reference")
        if first is None and self._recorded:
            return self._recorded[0].k
        match self._about["reference"]:
            case "shared" if first is not None:
                return len(first)
            case "grouped" if first is not None:
                return int(first.shape[1])
        return int(self._about.get("reference_rows") or 1)

    def _check_shape(self, port: Port, arrays: Mapping[str, Array], samples: int | None) -> None:
        """Rank, fixed extents, as many rows as there are samples, and a reference like what it belongs to."""
        shape = arrays[port.name].shape
        wanted: list[int | str | None] = list(port.shape)
        if len(shape) != len(wanted):
            hint = "; add the missing axis in front, array[None]" if len(shape) == len(wanted) - 1 else ""
            raise DataError(f"input {port.name!r} has shape {list(shape)}, expected {shown(wanted)}{hint}")
        if port.role == "reference":
            lead = {"shared": 1, "grouped": 2}.get(self._about["reference"], 0)
            if lead and shape[lead - 1] == 0:
                raise DataError(f"input {port.name!r} has no references: its shape is {list(shape)}")
            wanted[lead:] = arrays[port.of].shape[min(lead, 1) :]
            first = arrays[f"{self.given[0]}_reference"].shape
            if 0 < lead <= len(first) and not isinstance(port.shape[lead - 1], int):
                wanted[lead - 1] = first[lead - 1]
        if samples is not None:
            wanted[0] = samples
        fits = all(not isinstance(dim, int) or dim == size for dim, size in zip(wanted, shape, strict=True))
        if not fits or 0 in shape:
            hint = f": one row per sample of {self.given[0]!r}" if shape[1:] == tuple(wanted[1:]) else ""
            raise DataError(f"input {port.name!r} has shape {list(shape)}, expected {shown(wanted)}{hint}")

    def _check_one_hot(self, arrays: Mapping[str, Array], first: int) -> None:
        """One-hot data where the numbers mean something for no other; only 0 for an unknown letter."""
        why = "hypothetical contributions" if "hypothetical" in self._about["emit"] else "normalised weights"
        for name, axis in self.one_hot.items():
            try:
                check_one_hot(arrays[name], axis, batched=self.batch is not None, first=first)
            except DataError as error:
                raise DataError(f"input {name!r} must be one-hot for {why}: {error}") from error

    def _check_target(self, arrays: Mapping[str, Array], first: int) -> None:
        """Indices inside the explained tensor, where its shape is known."""
        if "target" not in arrays or self.ports["target"].role != "target":
            return
        lead = int(self.batch is not None)
        limits = self.neurons
        index = arrays["target"].reshape(-1, len(limits)) if lead else arrays["target"][None]
        upper = np.array([dim if isinstance(dim, int) else np.iinfo(np.int64).max for dim in limits])
        bad = np.flatnonzero(((index < 0) | (index >= upper)).any(axis=1))
        if bad.size:
            sample = f" of sample {first + bad[0]}" if lead else ""
            value = index[bad[0]].tolist()
            raise DataError(
                f"target {value[0] if len(value) == 1 else value}{sample} is out of range: tensor "
                f"{self._about['output']!r} has shape {shown(limits)} per sample, counted from 0"
            )


def _array(name: str, value: ArrayLike, dtype: np.dtype[Any]) -> Array:
    """`value` as an array of `dtype`, contiguous; refused where a value would change beyond rounding."""
    try:
        array = np.asarray(value)
    except (ValueError, TypeError) as error:
        raise DataError(f"input {name!r} is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        what = "text or Python objects" if array.dtype.kind in "OSU" else str(array.dtype)
        raise DataError(f"input {name!r} holds {what}, expected numbers ({dtype})")
    if array.dtype == dtype:
        return array
    with np.errstate(over="ignore", invalid="ignore"):
        converted = array.astype(dtype)
        exact = dtype.kind == "f" or np.array_equal(converted, array)
    if not exact:
        raise DataError(f"input {name!r} takes {dtype}, and its {array.dtype} values do not fit: convert them first")
    return converted


def _spread(array: Array, rank: int, samples: int) -> Array:
    """One reference, target or weights for all samples: repeated along the batch axis."""
    if array.ndim == rank - 1 and rank <= 2:
        array = array[None]
    if array.ndim == rank and len(array) == 1:
        return np.broadcast_to(array, (samples, *array.shape[1:]))
    return array


def _check_finite(port: Port, array: Array, first: int | None) -> None:
    """Raises DataError for a number that is not finite. `first`: of the samples, None where the array has none."""
    if array.dtype.kind != "f":
        return
    finite = np.isfinite(array)
    if finite.all():
        return
    place = np.argwhere(~finite)[0]
    value = "NaN" if np.isnan(array[tuple(place)]) else "an infinite value"
    where = f" at {place.tolist()}" if first is None else f" in sample {first + place[0]}"
    count = int(np.count_nonzero(~finite))
    among = f"samples {first} to {first + len(array) - 1}" if first else "all"
    raise DataError(
        f"input {port.name!r} has {value}{where} ({count} such value{'s' * (count > 1)} in {among}, as {array.dtype}): "
        "contributions need finite numbers"
    )
