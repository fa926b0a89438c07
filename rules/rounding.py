"""Round, the stairs of a quantised model: m_y goes straight through, and a factor per sample makes it complete. Ours.

Rescale's dy/dx of a stair is 0 where x and r are on one step, and 1/|dx| where the smallest dx crosses an edge. It is
complete, and right on average; but layer upon layer of it multiply to noise, in which the contributions of a quantised
network hardly resemble those of the network that was quantised. Rounding moves y by half a step at most, so that
m_x = m_y is nearly complete, and with

    k = sum(m_y (dy - dx)) / sum |m_y dx|,   m_x = m_y (1 + k sign(m_y dx))

it is, in each sample: what rounding adds or takes is shared by all in proportion to what they contribute. Where one
element alone contributes, this is dy/dx again. The saturation of the integers is not Round's but Clip's, which keeps
its own slope.
"""

from __future__ import annotations

from onnxlift.functions import absolute, cast, sign, where, widen
from onnxlift.registry import rule
from onnxlift.rules.elementwise import steps
from onnxlift.rules.proportional import beside, per_sample
from onnxlift.site import Site
from onnxlift.tensor import Tensor


@rule("straight-through", "Round")
def round_(site: Site) -> list[Tensor]:
    """m_x = m_y (1 + k sign(m_y dx)) with the k that makes a sample complete; dy/dx m_y where samples are not apart."""
    x, y = site.x, site.y
    apart = (x.shape or (None,))[0] == site.samples is not None
    if isinstance(site.samples, int) and site.samples != 1 and (x.shape or ()).count(site.samples) > 1:
        apart = False  # which of these axes counts samples is not told
    if not x.rank or (site.batched and not apart):
        return [site.m * steps(site)]
    through = widen(site.m) * widen(x.d)
    missing = per_sample(site, x, widen(site.m) * widen(y.d) - through)
    size = per_sample(site, x, absolute(through))
    k = where(size.equals(0), 0.0, missing / where(size.equals(0), 1.0, size))
    return [cast(widen(site.m) * (1 + beside(site, x, k) * sign(through)), x.dtype)]
