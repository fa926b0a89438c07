"""The command `onnxlift plot`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import click
import numpy as np

from onnxlift.arrays import Array, check_writable, replacing
from onnxlift.cli_options import check_kept
from onnxlift.errors import DataError, OptionError, shown
from onnxlift.explainer import CONTRIBUTIONS
from onnxlift.feed import Port
from onnxlift.formats import Form, Rows, Stored, open_data, whole
from onnxlift.plot.drawing import Drawing, Kind, Options, drawing
from onnxlift.plot.logos import Window
from onnxlift.plot.page import page
from onnxlift.plot.saved import RESULTS, Samples, Selection, chosen, select
from onnxlift.plot.sheet import rendered
from onnxlift.plot.style import plain
from onnxlift.report import print_fields, print_json

_FORMATS = (".png", ".svg", ".html")
_PATH = click.Path(path_type=Path)


def _samples(ctx: click.Context, param: click.Parameter, value: str) -> Samples:
    try:
        parts = [int(part) for part in value.split(",") if part.strip()]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is neither a count such as 8 nor indices such as 0,3,5") from error
    return parts if "," in value or not parts else parts[0]


def _window(ctx: click.Context, param: click.Parameter, value: str | None) -> Window | None:
    if value is None:
        return None
    try:
        start, stop = (int(part) for part in value.split(":"))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not like 100:180") from error
    return start, stop


@click.command("plot", short_help="Draw contributions: images, logos, bars, tokens, a report.")
@click.argument("contributions", type=_PATH)
@click.option("--out", required=True, type=_PATH, help="The .png, .svg or .html file to write.")
@click.option("--data", type=_PATH, help="What was explained, as `explain` takes it.")
@click.option("--genome", type=_PATH, metavar="FASTA", help="What the regions of a BED file are of.")
@click.option("--as", "kind", type=click.Choice(("auto", *get_args(Kind))), default="auto", show_default=True,
              help="The kind of picture; auto chooses by the shape, and says so.")  # fmt: skip
@click.option("--input", "name", metavar="NAME", help="The explained input, where there are several.")
@click.option("--samples", callback=_samples, default="8", show_default=True, metavar="COUNT|I,J,...",
              help="How many of the first samples, or which: 0,3,5 (a single one: 3,).")  # fmt: skip
@click.option("--title", metavar="TEXT", help="The title. [default: names the input]")
@click.option("--unit", metavar="TEXT", default="t(x)", show_default=True,
              help="What contributions add up to, for the labels: logit.")  # fmt: skip
@click.option("--channels", type=click.Choice(("first", "last")), help="image, logo: where the channels are.")
@click.option("--alphabet", metavar="LETTERS", help="logo: the letters in the order of the channels. [default: ACGT]")
@click.option("--window", callback=_window, metavar="START:STOP", help="logo: the positions to draw.")
@click.option("--names", metavar="FILE|A,B,...", help="bars: the names of the features; in a file, one a line.")
@click.option("--top", type=click.IntRange(1), metavar="COUNT", help="bars: how many features. [default: 12]")
@click.option("--tokens", type=_PATH, metavar="FILE",
              help="tokens: a line for each sample, its tokens separated by spaces; or a line for each token, and an "
              "empty line between samples.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("-q", "--quiet", is_flag=True, help="Print less.")
def plot_command(
    contributions: Path,
    out: Path,
    data: Path | None,
    genome: Path | None,
    kind: Any,
    name: str | None,
    samples: Samples,
    title: str | None,
    unit: str,
    names: str | None,
    tokens: Path | None,
    as_json: bool,
    quiet: bool,
    **options: Any,
) -> None:
    """Draw CONTRIBUTIONS, which `onnxlift explain --out` wrote, together with the data that were explained.

    A .html file is a report that shows each sample with its prediction, its contributions and their totals.
    Needs matplotlib and logomaker: pip install 'onnxlift[plot]'.

    \b
    Examples:
      onnxlift plot contributions.npz --data images.npz --out digits.png --unit logit
      onnxlift plot contributions.npz --data sequences.npz --out logo.svg --as logo --window 40:120
      onnxlift plot contributions.zarr --data peaks.narrowPeak --genome hg38.fa --out logo.png
      onnxlift plot contributions.npz --data table.npy --out bars.png --names names.txt
      onnxlift plot contributions.npz --data data.npz --out report.html --samples 0,3,5
    """
    suffix = out.suffix.lower()
    if suffix not in _FORMATS:
        raise OptionError(f"--out {out} ends in none of {', '.join(_FORMATS)}: name the format by the suffix")
    check_writable(out)
    check_kept([out], (contributions, data, genome, tokens, names))
    with open_data(contributions) as results:
        if not isinstance(results, dict):
            raise DataError(f"{contributions} is a single array: give what `onnxlift explain --out` wrote")
        with _explained(data, results, name, options["channels"], genome) as explained:
            selection = _selected(results, explained, name, samples, str(contributions), str(data))
    shown_with = Options(
        names=None if names is None else _names(names),
        tokens=None if tokens is None else _tokens(tokens, selection),
        **options,
    )
    drawn = drawing(selection, kind, title=title, unit=unit, options=shown_with)
    notes = list(drawn.notes)
    # A report writes its texts and tokens itself; only the names of features are in its figures.
    if drawn.boxes and (suffix != ".html" or drawn.kind == "bars"):
        hint = "" if drawn.kind == "bars" else ": a .html report shows any character"
        notes.append(f"the font lacks {''.join(drawn.boxes[:10])!r} and shows boxes{hint}")
    if suffix == ".html":
        content = page(drawn).encode()
    else:
        content = rendered(drawn.figure(), "svg" if suffix == ".svg" else "png")
    with replacing(out) as file:
        file.write(content)
    _tell(drawn, notes, out, len(content), as_json=as_json, quiet=quiet)


def _selected(
    results: Mapping[str, Rows],
    explained: Stored | None,
    name: str | None,
    samples: Samples,
    source: str,
    data_source: str,
) -> Selection:
    """The samples to draw, and no more of them in memory: results and data may be larger than that."""
    ends = [results[key] for key in RESULTS if key in results]
    lengths = {rows.shape[0] if len(rows.shape) == 1 else 0 for rows in ends}
    count = lengths.pop() if len(ends) == len(RESULTS) and len(lengths) == 1 else 0
    wanted = chosen(samples, count) if count else None  # else it is one sample, or what `select` refuses

    def few(rows: Rows) -> Array:
        if wanted is None or rows.shape[:1] != (count,):
            return whole(rows)
        return np.concatenate([rows[row : row + 1] for row in wanted])

    found = {key: few(rows) for key, rows in results.items()}
    data = {key: few(rows) for key, rows in explained.items()} if isinstance(explained, dict) else explained
    if data is not None and not isinstance(data, dict):
        data = few(data)
    selection = select(
        found,
        data,
        input=name,
        samples=samples if wanted is None else len(wanted),
        source=source,
        data_source=data_source,
    )
    if wanted is None:
        return selection
    everything = np.stack([whole(rows) for rows in ends]).astype(np.float64)
    return replace(selection, samples=wanted, everything=everything)


def _explained(
    path: Path | None, results: Mapping[str, Rows], name: str | None, channels: str | None, genome: Path | None
) -> AbstractContextManager[Stored | None]:
    """The data, if there are some; sequences and images become arrays of the shape of their contributions."""
    if path is None:
        return nullcontext()
    shapes = {key.removesuffix(CONTRIBUTIONS): results[key].shape for key in results if key.endswith(CONTRIBUTIONS)}
    inputs = [
        Port(each, "tensor(float)", ("N", *shape[1:]), "data", each, True)
        for each, shape in shapes.items()
        if name in (None, each)
    ]
    axes = {port.name: 1 if channels == "first" else len(port.shape) - 1 for port in inputs} if channels else {}
    return open_data(path, inputs=inputs, one_hot=axes, form=Form(genome))


def _tell(drawn: Drawing, notes: list[str], out: Path, size: int, *, as_json: bool, quiet: bool) -> None:
    selection = drawn.selection
    if as_json:
        print_json(
            {
                "file": str(out),
                "kind": drawn.kind,
                "guessed": drawn.why or None,
                "input": selection.name,
                "shape": list(selection.contributions.shape[1:]),
                "samples": selection.samples,
                "of": selection.count,
                "notes": notes,
            }
        )
        return
    if not quiet:
        guessed = f", because {drawn.why} (--as chooses another)" if drawn.why else ""
        print_fields(
            plain(drawn.labels.title),
            {
                "drawn as": drawn.kind + guessed,
                "input": f"{plain(selection.name)} {shown(selection.contributions.shape[1:])}",
                "samples": f"{_listed(selection.samples)} of {selection.count}",
                "wrote": f"{out} ({size / 1000:.3g} KB)",
            },
        )
    for note in notes:
        click.echo(f"warning: {note}", err=True)


def _listed(samples: list[int]) -> str:
    first, last = samples[0], samples[-1]
    if len(samples) > 2 and samples == list(range(first, last + 1)):
        return f"{first} to {last}"
    return ", ".join(map(str, samples))


def _lines(path: str | Path, option: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError as error:
        raise OptionError(f"cannot read {option} {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{option} {path} is not text in UTF-8: {error}") from error


def _names(value: str) -> list[str]:
    """Names from a file, one a line, or from the option itself."""
    if os.path.isfile(value):
        return [line for line in _lines(value, "--names") if line.strip()]
    return value.split(",")


def _tokens(path: Path, selection: Selection) -> list[list[str]]:
    """The tokens of all samples: a line for each sample, or a line for each token with empty lines between samples."""
    lines = _lines(path, "--tokens")
    filled = [line for line in lines if line.strip()]
    if len(filled) == selection.count and (selection.count > 1 or len(filled[0].split()) > 1):
        return [line.split() for line in filled]
    blocks: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            blocks[-1].append(line.strip())
        elif blocks[-1]:
            blocks.append([])
    blocks = [block for block in blocks if block]
    if len(blocks) == selection.count:
        # A single sample may also be running text of several lines.
        several = selection.count == 1 and any(len(line.split()) > 1 for line in blocks[0])
        return [" ".join(blocks[0]).split()] if several else blocks
    raise DataError(
        f"--tokens {path} has {len(filled)} lines in {len(blocks)} blocks, for {selection.count} samples: give a line "
        "for each sample, or a line for each token and an empty line between samples"
    )
