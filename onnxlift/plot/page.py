"""A report as one file of HTML: no scripts, nothing loaded from elsewhere, every text from a file escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape

import numpy as np

from onnxlift.arrays import Array
from onnxlift.errors import shown
from onnxlift.plot.drawing import Drawing
from onnxlift.plot.saved import Selection, sums
from onnxlift.plot.sheet import Format, Labels, rendered
from onnxlift.plot.strips import Strips, Token
from onnxlift.plot.style import number, plain, signed

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #f5f5f3; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 26px; line-height: 1.25; margin: 12px 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 0 0 10px; }
p { margin: 4px 0; overflow-wrap: anywhere; }
.faint { color: #5f5f5f; }
.note { background: #fff4cc; border-left: 4px solid #d9a400; padding: 6px 12px; margin: 12px 0; }
section { background: #fff; border: 1px solid #e0e0dc; border-radius: 6px; padding: 18px 24px; margin: 18px 0; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: 4px 14px 4px 0; white-space: nowrap; }
th { color: #5f5f5f; font-weight: 600; border-bottom: 1px solid #c8c8c4; vertical-align: bottom; }
td { border-bottom: 1px solid #eeeeea; }
th:first-child, td:first-child { text-align: left; }
tr.total td { font-weight: 600; border-top: 1px solid #c8c8c4; }
dl { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 0 0 14px; }
dt { color: #5f5f5f; font-size: 13px; }
dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; display: block; margin: -16px 0 -12px -24px; }
.tokens { line-height: 2.1; }
.tokens span { display: inline-block; max-width: 100%; padding: 3px 5px; margin-right: 2px; line-height: 1.4; }
.tokens span { border: 1px solid #c8c8c8; unicode-bidi: isolate; overflow-wrap: anywhere; }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_HEAD = "sample", "prediction", "t(x)", "t(r)", "t(x) − t(r)", "contributions", "above 0", "below 0", "gap"
_LARGEST_OUTPUTS = 3


def page(drawing: Drawing) -> str:
    """The report of a drawing."""
    selection, labels = drawing.selection, drawing.labels
    rows = range(len(selection.samples))
    shape = shown(selection.contributions.shape[1:])
    about = f"input {plain(selection.name)}, {shape} for each sample; {len(rows)} of {selection.count} samples"
    notes = "".join(f'<p class="note">{_text(note)}</p>' for note in drawing.notes)
    samples = "".join(_sample(drawing, row) for row in rows)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{_text(labels.title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{_text(labels.title)}</h1>
<p class="faint">{_text(about)}</p>
{notes}
<section>
<h2>Totals</h2>
<div class="scroll">{_totals(selection)}</div>
<p class="faint">{_text(_explained(selection, labels, drawing.picture.legend(labels)))}</p>
</section>
{samples}
</main>
</body>
</html>
"""


def _explained(selection: Selection, labels: Labels, legend: str) -> str:
    of = "" if selection.alone else f" (those of {plain(selection.name)} alone are shown here)"
    return (
        "t(x) is the explained neuron at the sample, t(r) the same at the reference. Contributions add up to "
        f"t(x) − t(r){of}, and the gap is by how much they miss it. All pictures have one scale, the {labels.axis}; "
        f"{legend}."
    )


def _totals(selection: Selection) -> str:
    lines = []
    for row, sample in enumerate(selection.samples):
        t, r, gap = selection.ends(row)
        said = ", ".join(f"{name} = {value}" for name, value in selection.predictions(row).items())
        parts = (signed(value) for value in sums(selection.contributions[row]))
        lines.append([str(sample), said, number(t), number(r), signed(t - r), *parts, _short(gap)])
    body = "".join(f"<tr>{_cells('td', line)}</tr>" for line in lines)
    t, r, gap = selection.everything
    finite = np.abs(gap[np.isfinite(gap)])
    with np.errstate(invalid="ignore", over="ignore"):
        means = [number(t.mean()), number(r.mean()), signed((t - r).mean()), "", "", ""]
    largest = f"at most {_short(finite.max())}" if finite.size == gap.size else f"{gap.size - finite.size} not finite"
    total = [f"mean of all {selection.count}", "", *means, largest]
    return f'<table><tr>{_cells("th", _HEAD)}</tr>{body}<tr class="total">{_cells("td", total)}</tr></table>'


def _sample(drawing: Drawing, row: int) -> str:
    selection = drawing.selection
    t, r, gap = selection.ends(row)
    whole, up, down = sums(selection.contributions[row])
    facts = {name: _output(values[row]) for name, values in selection.outputs.items()}
    facts |= {"t(x)": number(t), "t(r)": number(r), "t(x) − t(r)": signed(t - r)}
    facts |= {"contributions": f"{signed(whole)} ({signed(up)} above 0, {signed(down)} below)", "gap": _short(gap)}
    listed = "".join(f"<div><dt>{_text(name)}</dt><dd>{_text(value)}</dd></div>" for name, value in facts.items())
    heading = f"<h2>Sample {selection.samples[row]}</h2>"
    return f"<section>\n{heading}\n<dl>{listed}</dl>\n{_picture(drawing, row)}\n</section>\n"


def _picture(drawing: Drawing, row: int) -> str:
    """Tokens as text, which a reader can select and search; everything else as an embedded picture."""
    if isinstance(drawing.picture, Strips):
        return _strip(drawing.picture.strips[row], drawing.picture.limit, drawing.labels)
    labels = Labels("", drawing.labels.unit, [""] * len(drawing.labels.captions))
    figure = drawing.picture.draw([row], labels)
    kind: Format = "png" if drawing.kind == "image" else "svg"
    media = {"png": "image/png", "svg": "image/svg+xml"}[kind]
    content = base64.b64encode(rendered(figure, kind)).decode()
    sample = drawing.selection.samples[row]
    words = escape(f"{drawing.kind}: {plain(drawing.labels.axis)}, sample {sample}")
    width = round(figure.get_size_inches()[0] * 96)
    return f'<img width="{width}" alt="{words}" src="data:{media};base64,{content}">'


def _strip(strip: Sequence[Token], limit: float, labels: Labels) -> str:
    spans = "".join(
        f'<span style="background:{token.background};color:{token.ink}" title="{escape(_value(token))}">'
        f"{_text(token.text)}</span>\u200b"  # where a line may break
        for token in strip
    )
    legend = f"{labels.legend}; full colour is ±{number(limit)}"
    return f'<p class="tokens">{spans}</p><p class="faint">{_text(legend)}</p>'


def _value(token: Token) -> str:
    return "not finite" if token.missing else signed(token.value)


def _output(values: Array) -> str:
    """A number, the largest of several with their indices, or the shape."""
    if values.size == 1:
        return number(values.item())
    if values.ndim != 1:
        return f"of shape {shown(values.shape)}"
    order = np.argsort(-np.nan_to_num(values.astype(np.float64), nan=-np.inf), kind="stable")[:_LARGEST_OUTPUTS]
    return "; ".join(f"[{k}] {number(values[k])}" for k in order) + ("; …" if values.size > len(order) else "")


def _short(value: float) -> str:
    """A gap: two digits say all."""
    return f"{value:.2g}".replace("-", "−")


def _cells(tag: str, values: Iterable[str]) -> str:
    return "".join(f"<{tag}>{_text(value)}</{tag}>" for value in values)


def _text(text: object) -> str:
    return escape(plain(text))
