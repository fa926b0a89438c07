"""Products of tensors: the midpoint rule, exact and never singular (METHOD section 5).

With a constant factor (b = b0) it is the factor itself: the linear rule is the same formula.
"""

from __future__ import annotations

from onnxlift.functions import swap_last, unsqueeze, where
from onnxlift.registry import rule
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import Tensor


@rule("midpoint", "Mul", broadcasts=True)
def multiply(site: Site) -> list[Tensor]:
    """m_a = (b + b0)/2 m_y, m_b = (a + a0)/2 m_y."""
    a, b = site.input(0), site.input(1)
    return [site.m * b.mid if a.active else site.m, site.m * a.mid if b.active else site.m]


@rule("midpoint", "Div", broadcasts=True)
def divide(site: Site) -> list[Tensor | None]:
    """m_a = (1/b + 1/b0)/2 m_y, m_b = -(a + a0) / (2 b b0) m_y."""
    a, b, m = site.input(0), site.input(1), site.m
    if not b.active:
        return [m / b.x, None]
    v, v0 = (_reciprocal(value) for value in (b.x, b.r))
    return [m * ((v + v0) * 0.5) if a.active else None, -m * (a.mid * v * v0)]


def _reciprocal(b: Tensor) -> Tensor:
    """1 / b, and 0 at b = 0: a model that divides by 0 selects that quotient away later, where m_y is 0."""
    return where(b.equals(0), 0.0, 1 / b)


@rule("midpoint", "MatMul")
def matrix_multiply(site: Site) -> list[Tensor | None]:
    """m_A = m_Y ((B + B0)/2)^T, m_B = ((A + A0)/2)^T m_Y."""
    a, b, m = site.input(0), site.input(1), site.m
    if a.rank == b.rank == 2:  # Gemm transposes on the fly
        return [gemm_product(m, b.mid, 0, 1) if a.active else None, gemm_product(a.mid, m, 1, 0) if b.active else None]
    columns, rows = a.rank == 1, b.rank == 1  # a vector is a row on the left, a column on the right
    if rows:
        m = unsqueeze(m, [m.rank])
    if columns:
        m = unsqueeze(m, [m.rank - 1])
    m_a = m_b = None
    if a.active:
        m_a = _fit(m @ swap_last(unsqueeze(b.mid, [1]) if rows else b.mid), a, columns)
    if b.active:
        m_b = _fit(swap_last(unsqueeze(a.mid, [0]) if columns else a.mid) @ m, b, rows)
    return [m_a, m_b]


def _fit(m: Tensor, value: Value, vector: bool) -> Tensor:
    """Sum over the stack axes along which a factor was broadcast; drop the axis that a vector was given."""
    if vector:
        return value.like(m) if m.rank == 2 else _sum_stack(m, value)
    return unbroadcast(m, m.shape, value)


def _sum_stack(m: Tensor, value: Value) -> Tensor:
    axes = m.emitter.ints(range(m.rank - 2))
    return value.like(m.emitter.op("ReduceSum", m, axes, keepdims=0, shape=(None, None)))


@rule("midpoint", "Gemm")
def gemm(site: Site) -> list[Tensor | None]:
    """MatMul and Add: m_A = alpha m_Y B'^T, m_B = alpha A'^T m_Y, m_C = beta m_Y, factors at their midpoints."""
    a, b, c, m = site.input(0), site.input(1), site.optional(2), site.m
    alpha, beta = site.attribute("alpha", 1.0), site.attribute("beta", 1.0)
    trans_a, trans_b = site.attribute("transA", 0), site.attribute("transB", 0)

    m_a = m_b = m_c = None
    if a.active:
        m_a = gemm_product(b.mid, m, trans_b, 1, alpha) if trans_a else gemm_product(m, b.mid, 0, 1 - trans_b, alpha)
    if b.active:
        m_b = gemm_product(m, a.mid, 1, trans_a, alpha) if trans_b else gemm_product(a.mid, m, 1 - trans_a, 0, alpha)
    if c is not None and c.active:
        m_c = unbroadcast(m if beta == 1 else m * beta, site.y.shape, c)
    return [m_a, m_b, m_c]


def gemm_product(a: Tensor, b: Tensor, trans_a: int, trans_b: int, alpha: float = 1.0) -> Tensor:
    """alpha A' B', where a factor marked so is transposed."""
    flags = {"transA": trans_a or None, "transB": trans_b or None, "alpha": float(alpha) if alpha != 1 else None}
    rows, columns = (a.shape or (None, None))[trans_a], (b.shape or (None, None))[1 - trans_b]
    return a.emitter.op("Gemm", a, b, shape=(rows, columns), **flags)
