"""dy / sum(dx'): one multiplier for all inputs of a neuron (LIFTPAD eq. 15)."""

from __future__ import annotations

OPERATORS = ["*", "Mul"]
