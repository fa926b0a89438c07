"""If, Loop and Scan (METHOD section 10): the bodies are led back through with the rules of their nodes."""

from __future__ import annotations

from onnxlift.registry import rule
from onnxlift.site import Site
from onnxlift.tensor import Tensor


@rule("through-bodies", "If")
def branches(site: Site) -> list[Tensor | None]:
    """m of what a branch reads = what the branch that x takes makes of m_y, with its values at x and at r."""
    return site.through.branches()


@rule("through-bodies", "Loop", "Scan")
def iterations(site: Site) -> list[Tensor | None]:
    """m of a state before an iteration = what the body makes of m behind it, from the last iteration to the first."""
    return site.through.iterations()
