"""The command `onnxlift convert`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import click

from onnxlift.cli_options import check_kept
from onnxlift.errors import DataError
from onnxlift.feed import Port
from onnxlift.formats import Form, Rows, Stored, open_data
from onnxlift.formats.layouts import LAYOUTS, LayoutInput, Written, check_layout, regions_of, write_layout
from onnxlift.formats.layouts.source import input_of
from onnxlift.report import print_fields, print_json

_PATH = click.Path(path_type=Path)
_AXES = {"first": 1, "last": -1}


@click.command("convert", short_help="Write contributions in the layout of another tool.")
@click.argument("result", type=_PATH)
@click.argument("out", type=_PATH)
@click.option("--layout", required=True, type=click.Choice(list(LAYOUTS)), help="What the other tool reads.")
@click.option("--data", type=_PATH, help="What was explained; for bigwig the BED file of it.")
@click.option("--genome", type=_PATH, help="The FASTA file that a BED file is of; for bigwig also a chrom.sizes file.")
@click.option("--input", "name", metavar="NAME", help="The explained input, where there are several.")
@click.option("--channels", type=click.Choice(list(_AXES)), help="Where the channels are, if the shape does not tell.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print less.")
def convert_command(
    result: Path,
    out: Path,
    layout: str,
    data: Path | None,
    genome: Path | None,
    name: str | None,
    channels: str | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Write RESULT, which `onnxlift explain --out` wrote, to OUT as another tool reads it.

    \b
    modisco     two .npz for `modisco motifs -s OUT.onehot.npz -a OUT.npz`
    chrombpnet  .h5 as `chrombpnet contribs_bw` writes it, and of a BED file OUT.interpreted_regions.bed
    bpnet       .h5 as `bpnet-shap` writes it
    bigwig      .bw, the contribution of every base, for genome browsers
    captum      .npy or .npz for captum's visualisation: images as [N, H, W, C]

    The first three take hypothetical contributions: explain with --emit contributions --emit hypothetical.

    \b
    Examples:
      onnxlift convert out.npz hypothetical.npz --layout modisco --data sequences.npz
      onnxlift convert out.zarr scores.h5 --layout chrombpnet --data peaks.narrowPeak --genome hg38.fa
      onnxlift convert out.npz track.bw --layout bigwig --data peaks.narrowPeak --genome hg38.chrom.sizes
      onnxlift convert out.npz attributions.npy --layout captum
    """
    check_kept(LAYOUTS[layout].files(out), (result, data, genome))
    with open_data(result) as results:
        if not isinstance(results, dict):
            raise DataError(f"{result} is a single array: give the file that `onnxlift explain --out` wrote")
        about = LayoutInput(
            input=name,
            axis=_AXES.get(channels or ""),
            regions=() if data is None else regions_of(data),
            genome=genome,
        )
        check_layout(layout, out, results, about)
        with _letters(layout, results, data, about) as letters:
            done = write_layout(layout, results, letters, out, about=about)
    _tell(layout, done, as_json=as_json, quiet=quiet)


@contextmanager
def _letters(
    layout: str, results: Mapping[str, Rows], data: Path | None, about: LayoutInput
) -> Iterator[Stored | None]:
    """The data, where the layout holds them too."""
    if data is None or not LAYOUTS[layout].letters:
        yield None
        return
    name = input_of(results, LAYOUTS[layout].scores, about.input)
    rows = results[name + LAYOUTS[layout].scores]
    port = Port(name, "tensor(float)", ("N", *rows.shape[1:]), "data", name, True)
    axes = {} if about.axis is None else {name: about.axis % len(rows.shape)}
    with open_data(data, inputs=[port], one_hot=axes, form=Form(genome=about.genome)) as stored:
        yield stored


def _tell(layout: str, written: Written, *, as_json: bool, quiet: bool) -> None:
    files = [str(file) for file in written.files]
    if as_json:
        print_json({"layout": layout, "files": files, "notes": list(written.notes)})
        return
    if not quiet:
        sizes = (f"{file} ({file.stat().st_size / 1000:.3g} KB)" for file in written.files)
        print_fields(f"layout {layout}", {"wrote": ", ".join(sizes)})
    for note in written.notes:
        click.echo(f"warning: {note}", err=True)
