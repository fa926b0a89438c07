"""An explainer as a web page: static files, with which ONNX Runtime runs the explainer in the visitor's browser.

The page itself is in `web/`: plain HTML, CSS and JavaScript modules, copied as they are. What is particular to one
explainer is in `page.json`.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime

from onnxlift.errors import DataError, OptionError, shown
from onnxlift.explainer import GAP, TARGET_OUTPUT, TARGET_REFERENCE
from onnxlift.files import load, save, save_with_weights, weights_elsewhere
from onnxlift.metadata import conserves, served
from onnxlift.serving.web_runtime import RUNTIME_VERSION, WASM, runtime_files
from onnxlift.target import PASSED_OVER, PRE_ACTIVATION

_MOST_BYTES = 2_000_000_000  # of a file, which a browser holds as one array
_MOST_SAMPLE_BYTES = 64 << 20  # as the page takes
_MODEL = "explainer.onnx"
_BASES = 4
_SMALLEST_IMAGE = 8  # pixels of a side, where an input has no axis of channels


def package_web(
    explainer: Path,
    folder: Path,
    *,
    title: str | None = None,
    labels: Path | None = None,
    sample: Path | None = None,
    scale: float | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    runtime: Path | None = None,
) -> dict[str, Any]:
    """Write the page of an explainer into `folder`, which exists and is empty. Returns what `page.json` says.

    title: of the page; default: the explainer's name. labels: a text file with a line for each neuron of the explained
    output. sample: a file that the page offers to explain, as a visitor would enter it. scale, mean, std: of an image,
    value = (pixel / scale - mean) / std with one number or one for each channel; default: 255, 0, 1.
    runtime: the folder of an installed `onnxruntime-web`, instead of npm.
    Raises OptionError: no explainer, or one that takes what the page cannot give; an option that does not fit; npm is
    missing or fails. DataError: `labels` is no text. ModelError: the explainer or its weights cannot be read.
    """
    model = load(explainer, weights=False)
    about = served(model, explainer)
    weights = weights_elsewhere(model, explainer.parent)
    if max(weights, explainer.stat().st_size) > _MOST_BYTES:
        raise OptionError(f"{explainer} has {weights / 1e9:.2g} GB of weights, and a browser holds 2 GB at most")
    page = {
        "title": explainer.stem if title is None else title,
        "onnxlift": about["version"],
        **_contents(model, about, explainer),
        "sample": None if sample is None else f"sample{sample.suffix.lower()}",
    }
    page["labels"] = _labels(labels, page["classes"])
    page["preprocessing"] = _preprocessing(page["input"], scale, mean, std)
    if sample is not None and not (sample.is_file() and sample.stat().st_size <= _MOST_SAMPLE_BYTES):
        raise OptionError(f"the sample {sample} is not a file of at most {_MOST_SAMPLE_BYTES >> 20} MB")
    binaries = runtime_files(runtime)
    try:
        _copy_page(folder)
        for name, content in binaries.items():
            (folder / name).write_bytes(content)
        if sample is not None:
            shutil.copyfile(sample, folder / page["sample"])
        if weights:
            save_with_weights(model, folder / _MODEL, explainer.parent)
        else:
            save(model, folder / _MODEL)
        page["runtime"] = {"version": RUNTIME_VERSION, "file": WASM}
        page["model"], page["weights"] = _MODEL, [f"{_MODEL}.data"] if weights else []
        loaded = [WASM, _MODEL, *page["weights"]]
        page["files"] = {name: (folder / name).stat().st_size for name in loaded}
        (folder / "page.json").write_text(json.dumps(page, indent=1), encoding="utf-8")
    except OSError as error:
        raise OptionError(f"cannot write the page: {error}. Choose another folder.") from error
    return page


# ------------------------------------------------------------------------------------------------ what the page needs


def _contents(model: onnx.ModelProto, about: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The part of `page.json` that follows from the explainer. Raises OptionError where the page cannot serve it."""
    inputs = {value.name: value for value in model.graph.input}
    outputs = {value.name: value for value in model.graph.output}
    name = _only_input(inputs, about, path)
    contributions = f"{name}_contributions"
    missing = {contributions, TARGET_OUTPUT, TARGET_REFERENCE, GAP} - outputs.keys()
    if missing:
        raise _refused(path, f"has no output {sorted(missing)[0]!r}", "leave out --emit")
    for value in (inputs[name], outputs[contributions], *(outputs[key] for key in (TARGET_OUTPUT, GAP))):
        if value.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
            raise _refused(path, f"has {value.name!r} in another type than float32", "convert the model")
    if about.get("targets") is not None:
        raise _refused(path, "explains several neurons at once", "let the visitor choose with --target input")
    neurons = about["output_shape"][int(about["batched"]) :]
    classes = neurons[0] if len(neurons) == 1 and isinstance(neurons[0], int) else None
    if about["target"] == "input" and classes is None:
        raise _refused(path, f"takes the index of a neuron among {shown(neurons)}", "fix the neuron with --target")
    prediction = _prediction(model, about) if classes is not None or not neurons else None
    explained = prediction or about["output"]
    before = f"before its {about['stepped_over'].split()[0]}" if about.get("stepped_over") else None
    reference = "stored references" if about["reference"] == "baked" else about["reference"]
    target = about["target"]
    return {
        "description": f"Contributions of {name!r} to {explained!r}{f', {before},' if before else ''} compared with "
        f"{reference}; rule {about['rule']}.",
        "input": {"name": name, **_kind(inputs[name], about, path)},
        "contributions": contributions,
        "conserves": conserves(about),
        "classes": 1 if classes is None else classes,
        "prediction": prediction and {"name": prediction, "op": _op_of(model, prediction)},
        "explained": {"name": explained, "before": before},
        "target": target[0] if isinstance(target, list) and len(target) == 1 else target,
        "targetShape": [1] * len(inputs["target"].type.tensor_type.shape.dim) if about["target"] == "input" else None,
    }


def _only_input(inputs: Mapping[str, onnx.ValueInfoProto], about: Mapping[str, Any], path: Path) -> str:
    """The name of the input that a visitor gives. Raises OptionError: there are others, or it is not explained."""
    known = {"target"} if about["target"] == "input" else {"target_weights"} if about["target"] == "weights" else set()
    references = {f"{name}_reference" for name in about["references"]} & inputs.keys()
    if references:
        raise _refused(path, "takes references at run time", "store one, as --reference zeros does")
    if "target_weights" in known:
        raise _refused(path, "takes weights of the neurons", "let the visitor choose one with --target input")
    names = [name for name in inputs if name not in known]
    if len(names) != 1:
        raise _refused(path, f"takes the inputs {', '.join(names)}", "package a model of one input")
    if about["inputs"] != names:
        raise _refused(path, f"explains {about['inputs'][0]!r} inside of the model", "explain an input itself")
    return names[0]


def _kind(value: onnx.ValueInfoProto, about: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """What the input is: its kind, its shape for one sample with None for a free length, and where its axes are."""
    dims = [dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim]
    batch = [1] if about["batched"] else []
    size, dims = dims[: len(batch)], dims[len(batch) :]
    if size not in ([], [None], [1]):
        raise _refused(path, "runs batches of a fixed size", "export the model with a free batch axis, or of size 1")
    found = _image(dims) or _sequence(dims, about["one_hot"].get(value.name, 0) - len(batch))
    if found is None and len(dims) == 1 and dims[0]:
        found = {"kind": "vector", "length": dims[0]}
    if found is None:
        raise _refused(
            path,
            f"takes samples of shape {shown(dims)}",
            "it takes images [C, H, W] or [H, W, C] of 1 or 3 channels, DNA [4, L] or [L, 4], and numbers [F]; sizes "
            f"that vary, except for L, are fixed with --shape {value.name}=1,...",
        )
    return {**found, "shape": [*batch, *dims]}


def _image(dims: Sequence[int | None]) -> dict[str, Any] | None:
    """An image of fixed size, with channels first or last, or grey without an axis of them."""
    if None in dims or not all(dims):
        return None
    if len(dims) == 3 and (dims[0] in (1, 3) or dims[2] in (1, 3)):
        last = dims[0] not in (1, 3)
        channels, height, width = (dims[2], *dims[:2]) if last else dims
    elif len(dims) == 2 and _BASES not in dims and min(d or 0 for d in dims) >= _SMALLEST_IMAGE:
        last, channels, (height, width) = True, 1, dims
    else:
        return None
    return {"kind": "image", "channels": channels, "height": height, "width": width, "channelsLast": last}


def _sequence(dims: Sequence[int | None], named: int) -> dict[str, Any] | None:
    """DNA, one-hot along the axis of 4, which `named` is where there are two."""
    axes = [axis for axis, extent in enumerate(dims) if extent == _BASES]
    if len(dims) != 2 or not axes or (len(axes) == 2 and named not in axes):
        return None
    axis = named if named in axes else axes[0]
    return {"kind": "sequence", "length": dims[1 - axis], "positionsFirst": axis == 1}


def _prediction(model: onnx.ModelProto, about: Mapping[str, Any]) -> str | None:
    """The output that shows what the model predicts: the explained one, or what its final activation makes of it."""
    follows = {about["output"]}
    if about.get("stepped_over"):
        for node in model.graph.node:
            if node.op_type in (*PRE_ACTIVATION, *PASSED_OVER) and node.input[0] in follows:
                follows.update(node.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    fitting = [name for name in about["outputs"] if name in follows and kinds[name] == onnx.TensorProto.FLOAT]
    return about["output"] if about["output"] in fitting else next(iter(fitting), None)


def _op_of(model: onnx.ModelProto, output: str) -> str:
    """The operator that makes an output."""
    return next((node.op_type for node in model.graph.node if output in node.output), "")


def _labels(path: Path | None, classes: int) -> list[str]:
    """A name for each neuron of the explained output; none for a single neuron."""
    if path is None:
        return [f"class {k}" for k in range(classes)] if classes > 1 else []
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except OSError as error:
        raise OptionError(f"cannot read --labels {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"--labels {path} is not text in UTF-8: {error}") from error
    if len(lines) != classes:
        raise OptionError(f"--labels {path} has {len(lines)} lines, and the explained output {classes} neurons")
    return lines


def _preprocessing(
    taken: Mapping[str, Any], scale: float | None, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Any] | None:
    """How a pixel becomes a value, with one number for each channel; None for what is no image."""
    if taken["kind"] != "image":
        if scale is not None or mean or std:
            raise OptionError(
                f"scale, mean and std are for images, and the explainer takes a {taken['kind']}: leave them out"
            )
        return None
    channels = taken["channels"]
    found: dict[str, Any] = {"scale": 255.0 if scale is None else scale}
    for name, values, default in (("mean", mean, 0.0), ("std", std, 1.0)):
        if len(values) not in (0, 1, channels):
            raise OptionError(f"{name} has {len(values)} numbers for {channels} channels: give one, or one for each")
        found[name] = [*values] if len(values) == channels else [*(values or (default,))] * channels
    positive = [found["scale"], *found["std"]]
    if not all(map(math.isfinite, (*positive, *found["mean"]))) or min(positive) <= 0:
        raise OptionError("scale and std must be numbers above 0, and mean finite numbers")
    return found


# ------------------------------------------------------------------------------------------------ files


def _copy_page(folder: Path) -> None:
    """The page's own files, and the licences of the runtime, which every release of ONNX Runtime carries."""
    shutil.copytree(Path(__file__).with_name("web"), folder, dirs_exist_ok=True)
    licences = folder / "licences"
    licences.mkdir()
    for name in ("LICENSE", "ThirdPartyNotices.txt"):
        shutil.copyfile(Path(onnxruntime.__file__).parent / name, licences / f"onnxruntime-{name}")


def _refused(path: Path, what: str, remedy: str) -> OptionError:
    return OptionError(f"{path} {what}, which the page cannot offer: {remedy}")
