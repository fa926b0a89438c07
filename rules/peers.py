"""Rescale, maxima and RevealCancel as other packages compute them, for the profiles of docs/profiles.md.

All of them divide the differences, and below a threshold of |x - r| they take the derivative instead, at x or at r; the
default rule has neither a threshold nor a side. Elsewhere these rules have the default rule's slopes: the float noise
of quotients just above the threshold is not reproduced. A nonlinearity has the rule where the package has one for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxlift import registry
from onnxlift.functions import absolute, where
from onnxlift.registry import rule
from onnxlift.rules import maximum  # noqa: F401 - its rules are varied here
from onnxlift.rules.elementwise import rescale, slope_between
from onnxlift.rules.reveal_cancel import reveal_cancel
from onnxlift.site import Site
from onnxlift.tensor import Tensor


@dataclass(frozen=True)
class Peer:
    """A package: the |x - r| below which it takes the derivative, where it takes it, and which operators it knows."""

    name: str
    threshold: float
    at_reference: bool
    ops: Sequence[str]

    def slope(self, site: Site) -> Tensor:
        """The slope between x and r; where they are nearer than the threshold, at one of them."""
        x, r = site.argument.x, site.argument.r
        near = absolute(site.argument.d) < self.threshold
        pair = (where(near, r, x), r) if self.at_reference else (x, where(near, x, r))
        return slope_between(site, *pair)

    def register(self) -> None:
        """Rule `<name>-rescale` of its operators."""
        side = "r" if self.at_reference else "x"
        equation = f"m_x = dy/dx m_y, and f'({side}) m_y where |dx| < {self.threshold:g} ({self.name})."
        for op in self.ops:
            rescale(f"{self.name}-rescale", op, self.slope, equation)


DEEPLIFT = Peer("deeplift", 1e-7, at_reference=True, ops="Relu LeakyRelu PRelu Sigmoid Tanh".split())
CAPTUM = Peer("captum", 1e-10, at_reference=False, ops="Relu LeakyRelu Elu Sigmoid Tanh Softplus".split())
SHAP = Peer("shap", 1e-6, at_reference=True, ops=(*CAPTUM.ops, "Selu", "Gelu"))
TANGERMEME = Peer("tangermeme", 1e-6, at_reference=False, ops=(*SHAP.ops, "PRelu", "Celu", "Mish", "Clip"))
PEERS = (DEEPLIFT, CAPTUM, SHAP, TANGERMEME)

for peer in PEERS:
    peer.register()


# --- maxima: cross-max-first, but for what did not change ------------------------------------------------------------


def register_maxima(name: str, unchanged: float, *, gradient: bool) -> None:
    """Rule `<name>-max`: where |dx| <= `unchanged`, the maximum of x gets m_y (`gradient`), or every place gets 0.

    Such a place carries no contribution, but its multiplier goes on to what it was computed from. It may have signed
    parts, which cancel; the output counts as one cause here, so that these are not asked for.
    """
    for op in ("MaxPool", "GlobalMaxPool", "ReduceMax", "ReduceMin", "Max", "Min"):
        first, argmax = (registry.find(op, name=variant) for variant in ("cross-max-first", "argmax"))
        assert first is not None
        assert argmax is not None

        def multipliers(
            site: Site, first: registry.Rule = first, argmax: registry.Rule = argmax
        ) -> list[Tensor | None]:
            result: list[Tensor | None] = []
            for value, m, m_i in zip(site.inputs, first.multipliers(site), argmax.multipliers(site), strict=False):
                if value is not None and isinstance(m, Tensor) and isinstance(m_i, Tensor):
                    result.append(where(absolute(value.d) <= unchanged, m_i if gradient else 0.0, m))
                else:
                    result.append(None)
            return result

        at = "m_i = m_y" if gradient else "0"
        multipliers.__doc__ = f"As cross-max-first; {at} at a place with |dx| <= {unchanged:g} ({name})."
        rule(f"{name}-max", op, default=False, broadcasts=first.broadcasts)(multipliers)


register_maxima("captum", 1e-10, gradient=True)
register_maxima("shap", 1e-7, gradient=False)
register_maxima("tangermeme", 0.0, gradient=True)


# --- RevealCancel of the original DeepLIFT ---------------------------------------------------------------------------

PSEUDOCOUNT = DEEPLIFT.threshold


def moved_slopes(site: Site) -> tuple[Tensor, Tensor]:
    """As in rules/reveal_cancel.py, of the moved parts p and n, and to r + p + n instead of x.

    What was added last decides on which side of a kink a point lies: (r + n) + p is beyond r + n, however small p is.
    """
    r = site.argument.r
    p, n = (_moved(part) for part in site.argument.parts)
    s_plus = slope_between(site, r + p, r) + slope_between(site, r + n + p, r + n)
    s_minus = slope_between(site, r + n, r) + slope_between(site, r + p + n, r + p)
    return s_plus * 0.5, s_minus * 0.5


def _moved(t: Tensor) -> Tensor:
    """A part of less than half of the pseudocount is moved by it; 0 itself, of either side, upwards."""
    moved = where(t < 0, t - PSEUDOCOUNT, t + PSEUDOCOUNT)
    return where(absolute(t) < PSEUDOCOUNT / 2, moved, t)


for op in DEEPLIFT.ops:
    reveal_cancel(
        "deeplift-reveal-cancel",
        op,
        moved_slopes,
        "As reveal-cancel, with a side nearer than 5e-8 to 0 moved away from it by 1e-7 (original DeepLIFT).",
    )
