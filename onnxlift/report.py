"""What the command line prints: tables for people, one JSON object for scripts."""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxlift.arrays import size_of
from onnxlift.flow import names
from onnxlift.jobs import Outcome
from onnxlift.metadata import conserves, explains
from onnxlift.ports import all_nodes
from onnxlift.rewrite import Inspection
from onnxlift.verify import Verification

_UNLIMITED = 10_000  # columns where output is piped: a line per row, for grep
_SHOWN_SAMPLES = 5
_STATES = {True: ("PASSED", "green"), False: ("FAILED", "bold red"), None: ("SKIPPED", "yellow")}


def console() -> Console:
    """Standard output, as wide as the terminal; lines are not broken where there is none."""
    screen = Console(highlight=False, soft_wrap=False)
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        screen = Console(highlight=False, width=_UNLIMITED)
    return screen


def print_json(value: object) -> None:
    """One JSON object on standard output; numbers that JSON lacks become null."""
    print(json.dumps(_plain(value), indent=2, allow_nan=False))


def print_fields(title: str, fields: Mapping[str, str]) -> None:
    """A title, and named facts below it."""
    screen = console()
    screen.print(Text(title, style="bold"))
    grid = Table.grid(padding=(0, 2))
    for name, text in fields.items():
        grid.add_row(Text(f"  {name}", style="dim"), Text(text))
    screen.print(grid)


# ------------------------------------------------------------------------------------------------ rewrite


def rewriting(model: onnx.ModelProto, explainer: onnx.ModelProto, about: Mapping[str, Any]) -> dict[str, Any]:
    """What `rewrite` did, for JSON."""
    old = {value.name for value in (*model.graph.input, *model.graph.output)}
    return {
        **about,
        "explains": explains(about),
        "added_inputs": {value.name: _type(value) for value in explainer.graph.input if value.name not in old},
        "added_outputs": {value.name: _type(value) for value in explainer.graph.output if value.name not in old},
        "nodes": {"model": len(model.graph.node), "explainer": len(explainer.graph.node)},
    }


def print_rewriting(source: str, destination: str, facts: Mapping[str, Any], verbose: bool) -> None:
    """What `rewrite` did, for people."""
    what, _, against = facts["explains"].partition(" by ")
    fields = {
        "explains": what.removeprefix("explains "),
        "by": against,
        "takes": _listed(facts["added_inputs"]) or "nothing new",
        "gives": _listed(facts["added_outputs"]),
        "rules": ", ".join(
            f"{op} {counted(rule.values()) if isinstance(rule, dict) else rule}" for op, rule in facts["rules"].items()
        ),
        **_noted(facts.get("notes", ())),
        "nodes": f"{facts['nodes']['model']} -> {facts['nodes']['explainer']}",
        "size": f"{_bytes(os.path.getsize(source))} -> {_bytes(os.path.getsize(destination))}",
    }
    print_fields(f"{source} -> {destination}", fields)
    if verbose:
        table = _table("op", "node", "rule")
        for op, rule in facts["rules"].items():
            for node, name in rule.items() if isinstance(rule, dict) else [("all", rule)]:
                table.add_row(Text(op), Text(node), Text(name))
        console().print(table)


# ------------------------------------------------------------------------------------------------ explain


def explaining(outcome: Outcome, path: Path) -> dict[str, Any]:
    """What `explain` did, for JSON. `complete` is null where the rule does not conserve."""
    about, arrays, found = outcome.description, outcome.arrays, outcome.found
    adds_up = conserves(about)
    named = {name: arrays[f"{name}_contributions"] for name in about["inputs"] if f"{name}_contributions" in arrays}
    whose = ", ".join(f"contributions of {name!r} {list(facts.shape)}" for name, facts in named.items())
    return {
        "explains": explains(about),
        "provider": "; ".join(outcome.providers),
        "samples": found.samples,
        "largest_relative_gap": found.relative_gap,
        "largest_gap": found.gap,
        "conserves": adds_up,
        "complete": found.complaint is None if adds_up else None,
        "complaint": found.complaint,
        "arrays": {name: f"{np.dtype(facts.dtype)} {list(facts.shape)}" for name, facts in arrays.items()},
        "summary": f"{whose or 'no contributions'}; {found}",
        "notes": list(outcome.notes),
        "file": str(path),
    }


def print_explaining(facts: Mapping[str, Any], verbose: bool) -> None:
    """What `explain` did, for people."""
    fields = {
        "runs": facts["provider"].removeprefix("runs "),
        "result": facts["summary"],
        "wrote": f"{facts['file']} ({_bytes(size_of(Path(facts['file'])))})",
    }
    if verbose:
        fields["arrays"] = _listed(facts["arrays"])
    print_fields(facts["explains"], fields)


# ------------------------------------------------------------------------------------------------ inspect


def inspection(found: Inspection) -> dict[str, Any]:
    """The plan of a model, for JSON."""
    flow = found.flow
    reasons: dict[str, list[str]] = {}
    for problem in found.problems:
        reasons.setdefault(problem.node.name, []).append(problem.reason)
    active = set().union(*(each.active for each in flow.all_flows))
    nodes = []
    for step in flow.all_steps:
        rule = found.rules[step.node.name]
        importance = [name for name in (*names(step.node.inputs), *step.roots) if name in active]
        entry = {"node": step.node.name, "op": _operator(step.node), "rule": rule.name if rule else None}
        entry["equation"] = rule.equation if rule else None
        entry |= {"importance": list(dict.fromkeys(importance)), "problem": "; ".join(reasons.get(step.node.name, []))}
        nodes.append(entry)
    stops = [{"node": stop.node.name, "op": _operator(stop.node), "reason": stop.reason} for stop in flow.stops]
    problems = [entry for entry in nodes if entry["problem"]]
    return {
        "inputs": list(flow.sources),
        "output": flow.target,
        "stepped_over": found.stepped_over,
        "nodes": nodes,
        "stops": stops,
        "reveal_cancel": [name for name, rule in found.rules.items() if rule and rule.signed],
        "notes": found.notes,
        "totals": {
            "nodes": sum(1 for _ in all_nodes(found.graph)),
            "on_path": len(nodes),
            "stops": len(stops),
            "problems": len(problems),
        },
        "can_be_rewritten": not found.problems,
    }


def print_inspection(path: str, facts: Mapping[str, Any], *, quiet: bool, verbose: bool) -> None:
    """The plan of a model, for people."""
    screen, totals = console(), facts["totals"]
    if not quiet:
        table = _table("node", "op", "rule", "importance in", *(["equation"] if verbose else []))
        for entry in facts["nodes"]:
            rule = Text("none", style="bold red") if entry["problem"] else Text(entry["rule"])
            importance = Text(", ".join(entry["importance"]))
            equation = [Text(entry["equation"] or "")] if verbose else []
            table.add_row(Text(entry["node"]), Text(entry["op"]), rule, importance, *equation)
        screen.print(table)
        print_reasons("Importance stops", facts["stops"], "reason", "yellow")
        problems = [entry for entry in facts["nodes"] if entry["problem"]]
        print_reasons("Importance cannot pass", problems, "problem", "bold red")
    over = f" (the input of {facts['stepped_over']})" if facts["stepped_over"] else ""
    verdict = "can be rewritten"
    if totals["problems"]:
        ops = counted(entry["op"] for entry in facts["nodes"] if entry["problem"])
        verdict = f"cannot be rewritten: importance cannot pass {ops}"
    fields = {
        "explains": f"{facts['output']!r}{over}",
        "by": ", ".join(map(repr, facts["inputs"])),
        "nodes": f"{totals['nodes']}; on the path {totals['on_path']}, importance stops at {totals['stops']}",
        "rules": counted(entry["rule"] for entry in facts["nodes"] if not entry["problem"]) or "none",
        **({"RevealCancel": ", ".join(facts["reveal_cancel"])} if facts["reveal_cancel"] else {}),
        **_noted(facts["notes"]),
        "verdict": verdict,
    }
    print_fields(path, fields)


def print_reasons(
    title: str,
    entries: Sequence[Mapping[str, Any]],
    key: str,
    style: str,
    columns: Sequence[str] = ("node", "op", "why"),
) -> None:
    """A table of nodes, or of what `columns` says, and of what each has under `key`; nothing if there are none."""
    if not entries:
        return
    screen = console()
    screen.print(Text(title, style=style))
    table = _table(*columns)
    for entry in entries:
        table.add_row(Text(entry["node"]), Text(entry["op"]), Text(entry[key]))
    screen.print(table)


# ------------------------------------------------------------------------------------------------- verify


def verification(found: Verification) -> dict[str, Any]:
    """The checks of a model or explainer, for JSON."""
    e = found.explanation
    columns = (e.target, e.target_reference, e.difference, e.gap, e.relative_gap, found.allowed)
    keys = ("target", "target_reference", "difference", "gap", "relative_gap", "allowed_gap")
    rows = zip(*(np.ravel(column).tolist() for column in columns), strict=True)
    places = [" target ".join(map(str, place)) or "0" for place in np.ndindex(e.gap.shape)]
    return {
        "passed": found.passed,
        "explains": found.explains,
        "provider": found.provider,
        "data": found.data,
        "checks": [vars(check) for check in found.checks],
        "samples": [{"sample": i} | dict(zip(keys, row, strict=True)) for i, row in zip(places, rows, strict=True)],
        "residuals": dict(found.residuals),
    }


def print_verification(facts: Mapping[str, Any], *, quiet: bool, verbose: bool) -> None:
    """The checks of a model or explainer, for people."""
    screen = console()
    if not quiet:
        print_fields(facts["explains"], {"runs": facts["provider"].removeprefix("runs "), "data": facts["data"]})
    table = _table("check", "result", "")
    for check in facts["checks"]:
        state, style = _STATES[check["passed"]]
        table.add_row(Text(check["name"]), Text(state, style=style), Text(check["detail"]))
    screen.print(table)
    if quiet:
        return
    rows = sorted(enumerate(facts["samples"]), key=lambda row: -_last(row[1]["relative_gap"]))
    shown = rows if verbose else rows[:_SHOWN_SAMPLES]
    title = "samples" if len(shown) == len(rows) else f"the worst {len(shown)} of {len(rows)} samples"
    table = _table("sample", "t(x)", "t(r)", "|t(x) - t(r)|", "gap", "relative", title=title, numbers=True)
    for _, row in sorted(shown, key=lambda row: row[0]):
        values = (row["target"], row["target_reference"], abs(row["difference"]))
        table.add_row(
            row["sample"], *(f"{value:.5g}" for value in values), f"{row['gap']:.2g}", f"{row['relative_gap']:.2g}"
        )
    screen.print(table)
    if facts["residuals"]:
        table = _table("node", "does not conserve", title="the nodes that lose most")
        worst = _last(max(facts["residuals"].values(), key=_last))
        for node, residual in list(facts["residuals"].items())[:_SHOWN_SAMPLES]:
            if _last(residual) < worst / 100:  # rounding
                break
            table.add_row(Text(node), f"{residual:.3g}")
        screen.print(table)


# ------------------------------------------------------------------------------------------------ helpers


def _table(*columns: str, title: str | None = None, numbers: bool = False) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if numbers else "left", overflow="fold")
    return table


def _noted(notes: Sequence[str]) -> dict[str, str]:
    """The field of notes, a line for each, where there are any."""
    return {"notes": "\n".join(notes)} if notes else {}


def _operator(node: Any) -> str:
    return f"{node.domain}.{node.op}" if node.domain else str(node.op)


def _type(value: onnx.ValueInfoProto) -> str:
    kind = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    dims = (dim.dim_param or str(dim.dim_value or "?") for dim in kind.shape.dim)
    return f"{dtype} [{', '.join(dims)}]"


def _listed(types: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {kind}" for name, kind in types.items())


def counted(values: Iterable[str]) -> str:
    """Each value and how often it occurs."""
    return ", ".join(f"{value} {count}" for value, count in Counter(values).most_common())


def _bytes(count: int) -> str:
    size = float(count)
    for unit in ("bytes", "KB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} GB"


def _last(value: float) -> float:
    """NaN sorts as the worst."""
    return math.inf if math.isnan(value) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
