"""Guided backpropagation and deconvnet, which change the gradient of Relu (METHOD section 9). They do not conserve.

The gradient itself needs no rules: a multiplier at x = r is the derivative, so that it is the walk at the input alone.
"""

from __future__ import annotations

from onnxlift.functions import maximum, where
from onnxlift.registry import rule
from onnxlift.site import Site
from onnxlift.tensor import Tensor


@rule("guided-backprop", "Relu", default=False, elementwise=True, conserves=False)
def guided_backpropagation(site: Site) -> list[Tensor]:
    """m_x = 1{x > 0} P(m_y) (Springenberg et al. 2014)."""
    return [where(site.x.x > 0, maximum(site.m, 0), 0.0)]


@rule("deconvnet", "Relu", default=False, elementwise=True, conserves=False)
def deconvnet(site: Site) -> list[Tensor]:
    """m_x = P(m_y), whatever x is (Zeiler and Fergus 2013)."""
    return [maximum(site.m, 0)]
