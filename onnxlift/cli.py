"""The command line: `onnxlift rewrite`, `inspect`, `verify`, and the commands that have modules of their own.

Exit status: 0 all is well, 1 a check failed, 2 the call, the model or the data are refused, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import click

from onnxlift import cli_options, report, report_placement
from onnxlift.arrays import check_writable
from onnxlift.cli_convert import convert_command
from onnxlift.cli_explain import explain_command
from onnxlift.cli_options import chosen
from onnxlift.cli_package import package_command
from onnxlift.cli_plot import plot_command
from onnxlift.cli_serve import serve_command
from onnxlift.errors import OnnxliftError, OptionError
from onnxlift.files import load
from onnxlift.formats import read_all
from onnxlift.metadata import description
from onnxlift.placement import cuda_placement
from onnxlift.rewrite import inspect, rewrite_file, rewrite_in_place
from onnxlift.verify import verify


class _Main(click.Group):
    """A group whose every refusal is one paragraph on stderr and exit status 2."""

    def main(self, *args: Any, **extra: Any) -> Any:
        standalone = extra.get("standalone_mode", True)
        try:
            result = super().main(*args, **{**extra, "standalone_mode": False})
        except click.UsageError as error:
            where = f" See `{error.ctx.command_path} --help`." if error.ctx else ""
            _refuse(f"{error.format_message().rstrip('.')}.{where}")
        except click.ClickException as error:
            _refuse(error.format_message())
        except OnnxliftError as error:
            _refuse(str(error))
        except click.Abort:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except MemoryError as error:
            _refuse(f"out of memory ({str(error) or 'while computing'}): give fewer samples or smaller ones")
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            _refuse(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
        if standalone:
            sys.exit(result if isinstance(result, int) else 0)
        return result


def _refuse(message: str) -> NoReturn:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    sys.exit(2)


_PATH = click.Path(path_type=Path)


@click.group(
    cls=_Main, no_args_is_help=False, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="onnxlift", prog_name="onnxlift", message="%(prog)s %(version)s")
def main() -> None:
    """Rewrite an ONNX model into one that also computes DeepLIFT contributions of its inputs.

    \b
    Start with:
      onnxlift inspect model.onnx
      onnxlift rewrite model.onnx explainer.onnx --target argmax --reference zeros
      onnxlift explain explainer.onnx data.npz --out contributions.npz
      onnxlift package explainer.onnx models --for triton
    """


for command in (explain_command, plot_command, convert_command, package_command, serve_command):
    main.add_command(command)


@main.command("rewrite", short_help="Write the explainer of a model.")
@click.argument("model", type=_PATH)
@click.argument("explainer", type=_PATH)
@cli_options.TARGET
@cli_options.REFERENCE
@cli_options.SEED
@cli_options.PLANNING
@cli_options.EMITTING
@cli_options.PRINTING
def rewrite_command(
    model: Path, explainer: Path, seed: int, as_json: bool, verbose: bool, quiet: bool, **options: Any
) -> None:
    """Rewrite MODEL into EXPLAINER, which also computes contributions.

    \b
    Examples:
      onnxlift rewrite model.onnx explainer.onnx --target argmax --reference zeros
      onnxlift rewrite model.onnx explainer.onnx --target 3 --reference background.npz
      onnxlift rewrite model.onnx explainer.onnx --target 3 --reference shared --rule genomics --plan plan.toml
    """
    check_writable(explainer)
    original = load(model, weights=False)
    if description(original) is not None:
        raise OptionError(f"{model} is an explainer already: give the original model")
    written = rewrite_file(model, explainer, **chosen(original, options, seed))
    about = description(written) or {}
    if seed and about.get("builder") and not quiet:
        click.echo("note: the references are made when the explainer runs: give --seed to `onnxlift explain`", err=True)
    facts = report.rewriting(original, written, about)
    if as_json:
        report.print_json(facts)
    elif not quiet:
        report.print_rewriting(os.fspath(model), os.fspath(explainer), facts, verbose)


@main.command("inspect", short_help="Show which rule each node gets, and what has none; or what a GPU would not run.")
@click.argument("model", metavar="MODEL", type=_PATH)
@click.option(
    "--provider",
    type=click.Choice(["cuda"]),
    help="Show instead which nodes of the explainer ONNX Runtime would not place on the GPU, and what it would copy. "
    "No GPU is needed, and MODEL may be an explainer. Exit with 1 where it is more than shape arithmetic.",
)
@cli_options.TARGET
@cli_options.REFERENCE
@cli_options.PLANNING
@cli_options.EMITTING
@cli_options.PRINTING
def inspect_command(
    model: Path, provider: str | None, as_json: bool, verbose: bool, quiet: bool, **options: Any
) -> int:
    """Show which rule each node of MODEL gets, where importance stops, and which nodes have no rule.

    \b
    Examples:
      onnxlift inspect model.onnx --rule genomics
      onnxlift inspect model.onnx --json | jq .totals
      onnxlift inspect model.onnx --provider cuda --shape x=8,3,224,224
    """
    original = load(model, weights=False)
    about = description(original)
    planned = {"target": "argmax", "reference": "zeros", **chosen(None if about else original, options)}
    if provider is None:
        facts = report.inspection(inspect(model, **planned))
        if as_json:
            report.print_json(facts)
        else:
            report.print_inspection(os.fspath(model), facts, quiet=quiet, verbose=verbose)
        return 0
    folder = model.resolve().parent
    explainer = original if about else rewrite_in_place(original, folder, **planned)
    facts = report_placement.placement(cuda_placement(explainer, folder))
    if as_json:
        report.print_json(facts)
    else:
        report_placement.print_placement(os.fspath(model), facts, quiet=quiet, verbose=verbose)
    return int(not facts["is_on_gpu"])


@main.command("verify", short_help="Check outputs, completeness and batches.")
@click.argument("model", metavar="MODEL_OR_EXPLAINER", type=_PATH)
@click.argument("data", required=False, type=_PATH)
@click.option("--model", "original", type=_PATH, help="The model that the explainer was made of, to compare with.")
@click.option("--samples", type=click.IntRange(1), default=16, show_default=True, help="How many of DATA to use.")
@click.option(
    "--dim",
    "dims",
    multiple=True,
    callback=cli_options.sizes,
    metavar="NAME=SIZE",
    help="Size of a dimension of random data.",
)
@cli_options.RUNNING
@cli_options.TARGET
@cli_options.REFERENCE
@cli_options.PLANNING
@cli_options.PRINTING
def verify_command(
    model: Path,
    data: Path | None,
    original: Path | None,
    samples: int,
    dims: dict[str, int],
    tolerance: float,
    providers: tuple[str, ...],
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Check that outputs are the model's, that contributions add up, and that batches do not mix.

    A plain model is rewritten first, for its largest neuron unless --target says otherwise. Without DATA the checks
    run on random data. Exit status 1 if a check fails; then the nodes that lose most are named.

    \b
    Examples:
      onnxlift verify model.onnx
      onnxlift verify model.onnx data.npz --target 3 --reference zeros
      onnxlift verify explainer.onnx --model model.onnx --dim length=400
    """
    arrays = None if data is None else read_all(data)
    found = verify(
        model,
        arrays,
        original=original,
        samples=samples,
        dims=dims,
        tolerance=tolerance,
        providers=cli_options.providers(providers),
        **chosen(load(model, weights=False), options),
    )
    facts = report.verification(found)
    if as_json:
        report.print_json(facts)
    else:
        report.print_verification(facts, quiet=quiet, verbose=verbose)
    return int(not found.passed)
