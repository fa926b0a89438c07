"""Tests that need servers, clusters or browsers, run by `make test-serving`, and the table of what they measure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from serving.explainers import Local
    from serving.triton import Triton

BUILD = Path(__file__).parents[2] / "build" / "serving"


class Table:
    """What tests measured, by section, in the order of the tests."""

    def __init__(self) -> None:
        self.sections: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)

    def add(self, section: str, check: str, figure: str) -> None:
        """One line of a section: what was checked, and what came out, with its unit."""
        self.sections[section].append((check, figure))

    def markdown(self) -> str:
        return "\n".join(
            f"## {section}\n| check | figure |\n|---|---|\n"
            + "".join(f"| {check} | {figure} |\n" for check, figure in lines)
            for section, lines in self.sections.items()
        )


_TABLE = pytest.StashKey[Table]()


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    """Collects figures: printed at the end of the run, and written to build/serving/table.md."""
    return pytestconfig.stash.setdefault(_TABLE, Table())


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash.get(_TABLE, None)
    if table is None or not table.sections:
        return
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "table.md").write_text(table.markdown(), encoding="utf-8")
    terminalreporter.section("figures", sep="-")
    terminalreporter.write(table.markdown())


# What the fixtures below import is not needed by the tests of jobs and of the browser.


@pytest.fixture(scope="session")
def explainers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The files of `explainers.SERVED` by name."""
    from serving.explainers import SERVED

    folder = tmp_path_factory.mktemp("explainers")
    return {served.name: served.write(folder) for served in SERVED}


@pytest.fixture(scope="session")
def local(explainers: dict[str, Path]) -> dict[str, Local]:
    """The same, run without a server."""
    from serving.explainers import Local

    return {name: Local(path) for name, path in explainers.items()}


@pytest.fixture(scope="session")
def triton(explainers: dict[str, Path], tmp_path_factory: pytest.TempPathFactory, table: Table) -> Iterator[Triton]:
    """A Triton server with all explainers and their predict entries, for the tests that leave it as it is."""
    from serving.triton import add_entries, package, serving

    folder = tmp_path_factory.mktemp("triton")
    for name, path in explainers.items():
        package(path, folder / name)
        add_entries(folder / name, folder / "repository")
    with serving(folder / "repository", folder) as server:
        table.add("Triton", f"from start to ready, {2 * len(explainers)} models", f"{server.ready_after:.1f} s")
        yield server
