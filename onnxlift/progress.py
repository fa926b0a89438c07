"""The progress bar of what takes long."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def bar(samples: int, shown: bool | None, *, more: bool = True) -> Iterator[Callable[[int], None]]:
    """A bar over so many samples on stderr; what it yields moves it on.

    `shown`: whether it is; None: where stderr is a terminal and there is `more` than one step.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    shown = console.is_terminal and more if shown is None else shown
    columns = (TextColumn("explaining"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=console.is_terminal, disable=not shown) as progress:
        task = progress.add_task("explaining", total=samples)
        yield lambda done: progress.update(task, advance=done)
