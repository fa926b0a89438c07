"""The command `onnxlift explain`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxlift import cli_options, cli_reference, report
from onnxlift.files import load
from onnxlift.formats import Form
from onnxlift.formats.layouts import LAYOUTS
from onnxlift.jobs import ENGINES, Task, check_out, run
from onnxlift.metadata import conserves, description

_PATH = click.Path(path_type=Path)


@click.command("explain", short_help="Compute the contributions of the samples in a file.")
@click.argument("model", metavar="EXPLAINER_OR_MODEL", type=_PATH)
@click.argument("data", type=_PATH)
@click.option("--out", required=True, type=_PATH,
              help="What to write: .npz, .h5, or a folder .zarr or .parquet.")  # fmt: skip
@click.option("--layout", type=click.Choice(list(LAYOUTS)),
              help="Write what another tool reads instead, as `onnxlift convert` does.")  # fmt: skip
@click.option("--batch-size", type=click.IntRange(1), help="How many samples run at once. [default: what is fastest]")
@click.option("--chunk-size", type=click.IntRange(1), metavar="COUNT",
              help="How many samples make a part. [default: 64 MiB of data and results]")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the parts that are there, if there are any.")
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True,
              help="What makes the parts: this process, or the Ray cluster that RAY_ADDRESS names.")  # fmt: skip
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 where contributions do not add up; a rule that does not conserve passes.",
)
@cli_options.FORM
@cli_options.RUNNING
@cli_options.TARGET
@cli_options.REFERENCE
@cli_options.SEED
@cli_options.PLANNING
@cli_options.EMITTING
@cli_options.PRINTING
def explain_command(
    model: Path,
    data: Path,
    out: Path,
    layout: str | None,
    batch_size: int | None,
    chunk_size: int | None,
    resume: bool,
    engine: str,
    strict: bool,
    genome: Path | None,
    image_scale: float,
    image_mean: tuple[float, ...],
    image_std: tuple[float, ...],
    tolerance: float,
    providers: tuple[str, ...],
    seed: int,
    as_json: bool,
    verbose: bool,
    quiet: bool,
    **options: Any,
) -> int:
    """Explain the samples of DATA: arrays in .npy, .npz, Zarr, Parquet or HDF5, or FASTA, BED, images.

    A file of several arrays may hold what the explainer takes besides: INPUT_reference, target, target_weights.
    The options below --providers are for a plain model, which is rewritten first; with an explainer that takes
    references at run time, --reference FILE or mean:FILE gives them, and --seed is that of shuffles.

    Only a chunk of the samples is in memory. Those that are done are kept in OUT.parts until all are: where the
    process is killed, the same call with --resume goes on.

    \b
    Examples:
      onnxlift explain explainer.onnx data.npz --out contributions.npz
      onnxlift explain model.onnx images.npy --out contributions.npz --target argmax --reference zeros
      onnxlift explain model.onnx dna.npy --out contributions.npz --target 0 --reference dinuc-shuffle:20
      onnxlift explain model.onnx dna.npy --out out.npz --target 0 --reference shuffle:9 --emit hypothetical
      onnxlift explain explainer.onnx data.zarr --out contributions.zarr --engine ray --resume
    """
    cli_options.check_kept([out] if layout is None else LAYOUTS[layout].files(out), (model, data, genome))
    check_out(out, layout)
    original = load(model, weights=False)
    about, reference = description(original), None
    if about is not None and options["reference"] is not None:
        reference = cli_reference.at_run_time(about, options["reference"], seed)
        options["reference"] = None if reference is not None else options["reference"]
    task = Task(
        model,
        data,
        Form(genome, image_scale, image_mean, image_std),
        options=cli_options.chosen(None if about else original, options, seed),
        reference=reference,
        batch_size=batch_size,
        tolerance=tolerance,
        seed=seed,
        providers=cli_options.providers(providers),
    )
    shown = False if quiet or as_json else None
    try:
        outcome = run(task, out, layout=layout, engine=engine, chunk_size=chunk_size, resume=resume, progress=shown)
    except KeyboardInterrupt:
        if Path(f"{out}.parts").exists():
            click.echo(f"note: finished parts are kept in {out}.parts: --resume goes on with them", err=True)
        raise
    facts = report.explaining(outcome, out)
    if as_json:
        report.print_json(facts)
    elif not quiet:
        report.print_explaining(facts, verbose)
        for note in outcome.notes:
            click.echo(f"note: {note}", err=True)
    complaint = outcome.found.complaint
    if complaint and not as_json:
        click.echo(f"warning: {complaint}", err=True)
    if strict and not conserves(outcome.description) and not quiet:
        rule = outcome.description["rule"]
        click.echo(f"note: --strict has nothing to check, as rule {rule} does not conserve", err=True)
    return int(strict and complaint is not None)
