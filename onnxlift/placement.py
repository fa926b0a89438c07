"""Which nodes of an explainer ONNX Runtime's CUDA provider would leave to the CPU, and what would be copied for them.

No GPU is needed: the kernels are a table (kernels.py), and what ONNX Runtime does with it is repeated here, for every
graph and body. Constants are folded. The provider takes every node that it has a kernel for. Nodes that only compute on
shapes, which are on the CPU already, go back there. What is written on one side and read on the other is copied.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from onnxlift.files import load
from onnxlift.kernels import KERNELS, READ_ON_CPU, WRITTEN_ON_CPU
from onnxlift.model import tensor_types
from onnxlift.protobuf import captured, subgraphs

_SMALL_CONSTANT = 100  # elements of a constant that shape arithmetic on the CPU may read
_NEVER_SHAPES = frozenset((TensorProto.FLOAT16, TensorProto.BFLOAT16))
SHAPE = "shape arithmetic"


@dataclass(frozen=True)
class CpuNode:
    """A node on the CPU. `body`: the nodes that it is inside of; `shape`: it computes on shapes only, as it should."""

    node: str
    op: str
    reason: str
    body: tuple[str, ...]
    shape: bool


@dataclass(frozen=True)
class Copy:
    """A tensor that is copied in every run, and inside of a body in every iteration. `to`: "host" or "device"."""

    tensor: str
    to: str
    body: tuple[str, ...]


@dataclass
class Placement:
    """Where the nodes of an explainer run. `nodes`: how many are left when constants are folded."""

    nodes: int = 0
    on_cpu: list[CpuNode] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    onnxruntime: str = field(default_factory=lambda: KERNELS.onnxruntime)

    @property
    def off_gpu(self) -> list[CpuNode]:
        """The nodes on the CPU that are no shape arithmetic."""
        return [node for node in self.on_cpu if not node.shape]

    @property
    def is_on_gpu(self) -> bool:
        """Whether all but shape arithmetic is on the GPU, and nothing is copied."""
        return not self.off_gpu and not self.copies


def cuda_placement(explainer: ModelProto | str | Path, folder: Path | None = None) -> Placement:
    """Where ONNX Runtime's CUDA provider would place the nodes of an explainer (or of any model of its opset).

    `folder`: where the external data of a ModelProto lie that was loaded without them. Operators of other domains than
    ai.onnx count as taken where the provider has a kernel for some type. Raises ModelError: it cannot be read.
    """
    if not isinstance(explainer, ModelProto):
        folder = Path(explainer).resolve().parent
        explainer = load(explainer, weights=False)
    found = Placement()
    constants = {tensor.name for tensor in explainer.graph.initializer}
    _Graph(explainer.graph, (), _Known(tensor_types(explainer, folder), constants), found).place()
    return found


@dataclass(frozen=True)
class _Known:
    """Types of all tensors, and which of them are constants when the model is loaded."""

    types: Mapping[str, TypeProto]
    constants: set[str]

    def extent(self, name: str) -> int | None:
        """How many elements a tensor has, None where that is not known."""
        kind = self.types[name].tensor_type if name in self.types else None
        if kind is None or not kind.HasField("shape") or any(dim.dim_param for dim in kind.shape.dim):
            return None
        return int(math.prod(dim.dim_value for dim in kind.shape.dim))

    def fold(self, node: NodeProto) -> bool:
        """Whether ONNX Runtime computes a node when it loads the model; its outputs are constants then.

        It does not where it cannot tell how large they will be.
        """
        known = set(filter(None, node.input)) <= self.constants and not any(subgraphs(node))
        if node.op_type == "Shape" and not node.domain:
            known = self.extent(node.input[0]) is not None
        elif known:
            known = all(self.extent(name) is not None for name in node.output if name)
        if known:
            self.constants.update(node.output)
        return known

    def is_integer(self, name: str) -> bool:
        """Whether it holds int64 or truth values, as shapes do."""
        elem_type = self.types[name].tensor_type.elem_type if name in self.types else 0
        return elem_type in (TensorProto.INT64, TensorProto.BOOL)


class _Graph:
    """One graph or body, and where its nodes are placed."""

    def __init__(self, graph: GraphProto, body: tuple[str, ...], known: _Known, found: Placement) -> None:
        self._inputs = {value.name for value in graph.input}
        self._body, self._known, self._found = body, known, found
        self._nodes = [node for node in graph.node if not known.fold(node)]
        self._outputs = {value.name for value in graph.output}
        self._cpu: dict[int, str] = {}
        """Number of a node on the CPU -> why."""

    def place(self) -> None:
        """Add this graph, and the bodies of its nodes, to what was found."""
        known, found = self._known, self._found
        for number, node in enumerate(self._nodes):
            obstacle = KERNELS.obstacle(node, known.types)
            if obstacle:
                self._cpu[number] = obstacle
        self._take_shapes_back()
        found.nodes += len(self._nodes)
        copied = self._copied()
        moved = {name for name, _ in copied}
        for number, reason in sorted(self._cpu.items()):
            node = self._nodes[number]
            shape = reason == SHAPE or self._is_harmless(node, moved)
            label = node.name or node.output[0]
            found.on_cpu.append(CpuNode(label, node.op_type, SHAPE if shape else reason, self._body, shape))
        found.copies += [Copy(name, to, self._body) for name, to in copied]
        for node in self._nodes:
            for body in subgraphs(node):
                _Graph(body, (*self._body, node.name or node.output[0]), known, found).place()

    def _take_shapes_back(self) -> None:
        """Leave to the CPU what the provider has a kernel for, but what reads nothing that is on the GPU."""
        on_cpu = {
            name
            for number, node in enumerate(self._nodes)
            if number not in self._cpu and node.op_type in WRITTEN_ON_CPU and not node.domain
            for name in node.output
        }
        for number, node in enumerate(self._nodes):  # sorted, so that one pass meets every node behind its inputs
            if on_cpu.isdisjoint(node.input):
                continue
            if number in self._cpu:
                on_cpu.update(node.output)
            elif all(self._may_stay(node, place, name, on_cpu) for place, name in enumerate(node.input)):
                self._cpu[number] = SHAPE
                on_cpu.update(node.output)

    def _may_stay(self, node: NodeProto, place: int, name: str, on_cpu: set[str]) -> bool:
        """Whether this input lets a node stay on the CPU."""
        known = self._known
        if name in known.types and known.types[name].tensor_type.elem_type in _NEVER_SHAPES:
            return False
        if not name or name in self._inputs:
            return True
        if name in known.constants:
            extent = known.extent(name)
            return extent is not None and extent <= _SMALL_CONSTANT
        return name in on_cpu and place not in _read_on_cpu(node)

    def _copied(self) -> list[tuple[str, str]]:
        """What is copied between the nodes of this graph: tensor, "host" or "device"."""
        made: dict[str, str] = {}
        read: dict[str, set[str]] = defaultdict(set)
        for number, node in enumerate(self._nodes):
            here = "host" if number in self._cpu else "device"
            for place, name in enumerate(node.input):
                read[name].add("host" if place in _read_on_cpu(node) else here)
            if here == "host":
                for name in captured(node):
                    read[name].add("host")
            side = "host" if node.op_type in WRITTEN_ON_CPU and not node.domain else here
            made |= dict.fromkeys(node.output, side)
        copied = []
        for name, sides in read.items():
            if not name or (name in self._known.constants and not self._body):
                continue  # a constant of the main graph lies on either side
            if name in made and sides != {made[name]}:
                copied.append((name, "device" if made[name] == "host" else "host"))
            elif name not in made and len(sides) == 2:
                copied.append((name, "device"))
        return copied

    def _is_harmless(self, node: NodeProto, copied: Iterable[str]) -> bool:
        """Whether a node without a kernel computes on shapes that are on the CPU before and behind it."""
        tensors = {name for name in (*node.input, *node.output) if name}
        return (
            tensors.isdisjoint(copied)
            and tensors.isdisjoint(self._inputs | self._outputs)
            and all(map(self._known.is_integer, tensors))
        )


def _read_on_cpu(node: NodeProto) -> frozenset[int]:
    """The inputs that the node's CUDA kernel reads on the CPU."""
    return READ_ON_CPU.get(node.op_type, frozenset()) if not node.domain else frozenset()
