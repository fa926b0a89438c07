"""The command `onnxlift package`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import click

from onnxlift import cli_options
from onnxlift.errors import OptionError, shown
from onnxlift.metadata import explains
from onnxlift.report import print_fields, print_json
from onnxlift.serving.contract import Tensor
from onnxlift.serving.package import Repository, making, package_triton
from onnxlift.serving.triton import Accelerator, Backend, Serving

_PATH = click.Path(path_type=Path)
_OF_SERVERS = {
    "name": "--name",
    "model": "--model",
    "version": "--version",
    "max_batch": "--max-batch-size",
    "queue_delay": "--queue-delay",
    "backend": "--backend",
    "accelerator": "--accelerator",
    "dims": "--dim",
}
_OF_WEB = {
    "title": "--title",
    "labels": "--labels",
    "sample": "--sample",
    "scale": "--image-scale",
    "mean": "--image-mean",
    "std": "--image-std",
    "runtime": "--runtime",
}


@click.command("package", short_help="Write the folder that a model server or a browser takes.")
@click.argument("explainer", type=_PATH)
@click.argument("folder", metavar="DIR", type=_PATH)
@click.option("--for", "tool", type=click.Choice(("triton", "kserve", "web")), required=True,
              help="A Triton model repository; one with an InferenceService for KServe; a web page.")  # fmt: skip
@click.option("--name", metavar="NAME", help="servers: what clients call it. [default: the name of the file]")
@click.option("--model", type=_PATH, metavar="FILE",
              help="servers: the original, for predictions. [default: its part of the explainer]")  # fmt: skip
@click.option("--version", type=click.IntRange(1), help="servers: the number of this version. [default: 1]")
@click.option("--max-batch-size", "max_batch", type=click.IntRange(1, 1 << 20), metavar="COUNT",
              help="servers: how many samples run together at most. [default: 32]")  # fmt: skip
@click.option("--queue-delay", type=click.IntRange(0, 10**9), metavar="MICROSECONDS",
              help="servers: how long a request waits for others. [default: 500]")  # fmt: skip
@click.option("--backend", type=click.Choice(get_args(Backend)),
              help="servers: what runs the graph; python is for builds of Triton without the other. "
              "[default: onnxruntime]")  # fmt: skip
@click.option("--accelerator", type=click.Choice(get_args(Accelerator)),
              help="servers: where it runs; auto is a GPU where there is one. [default: auto]")  # fmt: skip
@click.option("--dim", "dims", multiple=True, callback=cli_options.sizes, metavar="NAME=SIZE",
              help="servers: size of a dynamic dimension in the trial run and the warm-up; repeatable. "
              "[default: 32]")  # fmt: skip
@click.option("--title", metavar="TEXT", help="web: the title of the page. [default: the name of the file]")
@click.option("--labels", type=_PATH, metavar="FILE", help="web: the names of the neurons, one a line.")
@click.option(
    "--sample", type=_PATH, metavar="FILE", help="web: an image or a sequence that the page offers to explain."
)
@click.option("--image-scale", "scale", type=float, metavar="NUMBER",
              help="web: value = (pixel / scale - mean) / std. [default: 255]")  # fmt: skip
@click.option(
    "--image-mean",
    "mean",
    callback=cli_options.numbers,
    metavar="NUMBER,...",
    help="web: one, or one for each channel.",
)
@click.option(
    "--image-std", "std", callback=cli_options.numbers, metavar="NUMBER,...", help="web: one, or one for each channel."
)
@click.option("--runtime", type=_PATH, metavar="DIR",
              help="web: an installed onnxruntime-web. [default: npm fetches it]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing.")
def package_command(
    explainer: Path, folder: Path, tool: str, as_json: bool, quiet: bool, dims: dict[str, int], **options: Any
) -> None:
    """Write DIR, which a server or a browser takes as it is, for EXPLAINER. DIR must not exist, or be empty.

    Servers get two entries: NAME explains, NAME_predict is the model alone. EXPLAINER runs once on random data, to see
    that samples stay apart; references that come at run time are sent with each request.
    For servers: pip install 'onnxlift[triton]'.

    \b
    Examples:
      onnxlift package explainer.onnx models --for triton
      onnxlift package explainer.onnx models --for triton --name digits --max-batch-size 64 --accelerator cuda
      onnxlift package explainer.onnx service --for kserve --model model.onnx
      onnxlift package explainer.onnx page --for web --labels labels.txt --image-mean 0.485,0.456,0.406
    """
    given = {name: value for name, value in options.items() if value not in (None, ())} | (
        {"dims": dims} if dims else {}
    )
    foreign = sorted(given.keys() & (_OF_SERVERS if tool == "web" else _OF_WEB).keys())
    if foreign:
        flags = {**_OF_SERVERS, **_OF_WEB}
        raise OptionError(
            f"{', '.join(flags[name] for name in foreign)} has no meaning with --for {tool}: leave it out"
        )
    with making(folder) as partial:
        if tool == "web":
            from onnxlift.serving.web import package_web

            page = package_web(explainer, partial, **given)
            facts: dict[str, Any] = {"page": page}
            fields = {"explains": page["description"], "takes": f"{page['input']['kind']} {page['input']['name']!r}"}
        else:
            own = {name: given.pop(name) for name in ("name", "model", "dims") if name in given}
            repository = package_triton(
                explainer, partial, serving=Serving(**given), for_kserve=tool == "kserve", **own
            )
            facts = _facts(repository)
            fields = _fields(repository)
        written = sorted(file for file in partial.rglob("*") if file.is_file())
        files = {file.relative_to(partial).as_posix(): file.stat().st_size for file in written}
    if as_json:
        print_json({"folder": str(folder), "for": tool, **facts, "files": files})
    elif not quiet:
        total = sum(files.values()) / 1e6
        print_fields(f"{explainer} -> {folder}", {**fields, "wrote": f"{len(files)} files, {total:.3g} MB"})


def _facts(repository: Repository) -> dict[str, Any]:
    """What was packaged, for JSON. `predictions_off`: null where there was nothing to compare with."""
    return {
        "explains": explains(repository.trial.about),
        "entries": {
            name: {
                "batches": contract.joins,
                "inputs": {tensor.name: [tensor.datatype, tensor.shape] for tensor in contract.inputs},
                "outputs": {tensor.name: [tensor.datatype, tensor.shape] for tensor in contract.outputs},
            }
            for name, contract in repository.entries.items()
        },
        "serving": vars(repository.serving),
        "predictions_off": repository.off,
        "notes": repository.trial.notes,
    }


def _fields(repository: Repository) -> dict[str, str]:
    """What was packaged, for people."""
    trial, serving, off = repository.trial, repository.serving, repository.off
    together = f"up to {serving.max_batch} samples together" if trial.contract.joins else "every request alone"
    compared = "not compared: the explainer returns none"
    if off is not None:
        found = f"off by {off:.2g}" if off else "same bits"
        compared = f"{found}, against the explainer's outputs in a trial run"
    return {
        "explains": explains(trial.about).removeprefix("explains "),
        **{
            name: f"{_listed(contract.inputs)} -> {_listed(contract.outputs)}"
            for name, contract in repository.entries.items()
        },
        "runs": f"{serving.backend} backend, accelerator {serving.accelerator}, {together}",
        "predictions": compared,
        **({"notes": "\n".join(trial.notes)} if trial.notes else {}),
    }


def _listed(tensors: Iterable[Tensor]) -> str:
    return ", ".join(f"{tensor.name} {tensor.datatype} {shown(tensor.shape)}" for tensor in tensors)
