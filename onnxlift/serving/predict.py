"""The model beside its explainer: what answers requests that need no explanation.

ONNX Runtime computes the whole graph whatever outputs are asked for, so predictions have a graph of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from onnx import ModelProto

from onnxlift.equivalence import difference
from onnxlift.errors import OptionError, listed
from onnxlift.explainer import METADATA_KEY
from onnxlift.files import load
from onnxlift.metadata import description
from onnxlift.protobuf import captured
from onnxlift.serving.contract import Contract, Trial, check_types, try_session
from onnxlift.session import open_session
from onnxlift.verify import OUTPUT_TOLERANCE


def cut(explainer: ModelProto, inputs: Collection[str], outputs: Sequence[str]) -> ModelProto:
    """The part of an explainer that computes these of its outputs from these of its inputs: same nodes, names, weights.

    Weights that lie elsewhere stay references to their files. Raises OptionError: there are no such outputs.
    """
    if not outputs:
        raise OptionError(
            "the explainer returns none of the model's outputs, so that predictions cannot be cut out of it: give the "
            "original with --model, or keep an output (`onnxlift rewrite --keep`)"
        )
    needed, nodes = set(outputs), []
    for node in reversed(explainer.graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(node.input, captured(node))
    made = {name for node in nodes for name in node.output}
    model = ModelProto(ir_version=explainer.ir_version, producer_name="onnxlift")
    model.opset_import.extend(explainer.opset_import)
    model.functions.extend(explainer.functions)
    model.metadata_props.extend(entry for entry in explainer.metadata_props if entry.key != METADATA_KEY)
    source, graph = explainer.graph, model.graph
    graph.name = source.name
    graph.node.extend(nodes[::-1])
    graph.input.extend(value for value in source.input if value.name in inputs)
    graph.output.extend(value for value in source.output if value.name in outputs)
    graph.value_info.extend(value for value in source.value_info if value.name in made)
    graph.initializer.extend(tensor for tensor in source.initializer if tensor.name in needed)
    graph.sparse_initializer.extend(tensor for tensor in source.sparse_initializer if tensor.values.name in needed)
    return model


def original(path: Path, data: Collection[str]) -> ModelProto:
    """The file that an explainer was made of, its weights left where they are. `data`: the inputs that it must have.

    Raises OptionError: it is an explainer, or has other inputs.
    """
    model = load(path, weights=False)
    if description(model) is not None:
        raise OptionError(f"--model {path} is an explainer: give the model that it was made of, or leave --model out")
    constants = {tensor.name for tensor in model.graph.initializer}
    names = {value.name for value in model.graph.input} - constants
    if names != set(data):
        raise OptionError(
            f"--model {path} is not the model that the explainer was made of: it takes {listed(sorted(names))}, the "
            f"explainer {listed(sorted(data))}"
        )
    return model


def try_predictions(path: Path, trial: Trial, model: Path | None) -> tuple[Contract, float | None]:
    """Run what answers predictions on the explainer's trial data: what it promises, and how far it is from it.

    That is the largest difference of an output, relative to its largest value: 0 where all bits are the same, None
    where the explainer returns no output of the model. `model`: the file of --model, of which `path` is a copy.
    Raises OptionError where --model computes something else, and as `try_session`.
    """
    session, _ = open_session(str(path))
    shown = model or trial.path
    check_types(shown, session)
    given = {name: trial.given[name] for name in trial.data}
    contract, results = try_session(shown, session, given, batched=trial.contract.joins)
    off = max((difference(trial.results[name], results.get(name)) for name in trial.about["outputs"]), default=None)
    if model and off is not None and not off <= OUTPUT_TOLERANCE:
        raise OptionError(
            f"--model {model} is not the model that the explainer was made of: on the same data their outputs differ "
            f"by {off:.2g} of the largest value"
        )
    return contract, off
