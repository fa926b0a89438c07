"""Products of tensors: the midpoint rule, exact and never singular (METHOD section 5).

With a constant factor (b = b0) it is the factor itself: the linear rule is the same formula.
"""

from __future__ import annotations

from onnxlift.functions import absolute, logical_and, sign, swap_last, unsqueeze, where
from onnxlift.registry import rule
from onnxlift.rules.linear import mixed, summed
from onnxlift.signed import Parts, by_sign, scaled
from onnxlift.site import Site, Value, unbroadcast
from onnxlift.tensor import Tensor, limits


def _scaled_operands(site: Site) -> list[Parts]:
    """Every operand scaled by its weight, which is elementwise."""
    weights = _weights(site)
    values = [site.input(index) for index in range(2)]
    return summed(site, [scaled(x.parts, w) for x, w in zip(values, weights, strict=True) if w is not None])


def _weights(site: Site) -> list[Tensor | None]:
    """What each operand of Mul or Div is multiplied with; None for one that carries no importance."""
    a, b = site.input(0), site.input(1)
    if site.op == "Mul":
        if sum(site.inverses) == 1:
            return _by_inverse(site, a, b) if site.inverses[1] else _by_inverse(site, b, a)[::-1]
        return [b.mid if a.active else None, a.mid if b.active else None]
    return quotient_weights(a, b, site.y)


def _by_inverse(site: Site, a: Value, v: Value) -> list[Tensor | None]:
    """What a and v = 1/b are multiplied with in y = a v: what a quotient a / b is given, told by v.

    With b' = (v + v0) / (2 v v0) that is 1/b' = 2 v v0 / (v + v0), and -y'/b' db = (y + y0) / (v + v0) dv.
    """
    if not v.active:
        return [v.mid if a.active else None, None]
    total, large = v.x + v.r, limits(v.x).largest
    same = logical_and(sign(v.x) * sign(v.r) > 0, absolute(total) <= large)
    total = where(same, total, 1.0)
    w_a = where(same, v.x * (v.r / total) * 2, v.mid) if a.active else None
    return [w_a, where(same, (site.y.x + site.y.r) / total, a.mid)]


def quotient_weights(a: Value, b: Value, y: Value) -> list[Tensor | None]:
    """What the operands of y = a / b are multiplied with: 1/b' and -y'/b', with ' for midpoints.

    That is the midpoint rule of y b = a, solved for dy. No term is then larger than what the larger of b and b0 makes
    of it, where METHOD's (1/b + 1/b0)/2 and -a' / (b b0), the Shapley values, are huge and cancel if one of them is
    small: the deviation that a normalisation divides by. They remain where b and b0 differ in sign, and b' may be 0.
    With one operand constant the two are the same.
    """
    if not b.active:
        return [1 / b.x, None]
    v, v0 = (_reciprocal(value) for value in (b.x, b.r))
    w_b = a.mid * v * v0
    if not a.active:
        return [None, -w_b]
    same = sign(b.x) * sign(b.r) > 0
    return [where(same, 1 / b.mid, (v + v0) * 0.5), -where(same, y.mid / b.mid, w_b)]


def _reciprocal(b: Tensor) -> Tensor:
    """1 / b, and 0 at b = 0: a model that divides by 0 selects that quotient away later, where m_y is 0."""
    return where(b.equals(0), 0.0, 1 / b)


@rule("midpoint", "Mul", broadcasts=True, parts=_scaled_operands)
def multiply(site: Site) -> list[Tensor | None]:
    """m_a = (b + b0)/2 m_y, m_b = (a + a0)/2 m_y."""
    return [None if weight is None else site.m * site.weight(weight) for weight in _weights(site)]


@rule("midpoint", "Div", broadcasts=True, parts=_scaled_operands)
def divide(site: Site) -> list[Tensor | None]:
    """m_a = m_y / b', m_b = -y' m_y / b', midpoints ' as y b = a has them; where b changes sign see METHOD 5."""
    b = site.input(1)
    if not b.active:
        return [site.m / site.weight(b.x), None]
    return [None if weight is None else site.m * site.weight(weight) for weight in _weights(site)]


def _midpoints(site: Site) -> list[Tensor | None]:
    """The weight of either factor, the other's midpoint; None for one that carries no importance."""
    a, b = site.input(0), site.input(1)
    return [site.weight(b.mid) if a.active else None, site.weight(a.mid) if b.active else None]


def _factor_parts(site: Site) -> list[Parts]:
    """What either factor brings, with the other's midpoint for a weight, and C's parts."""
    a, b, c = site.input(0), site.input(1), site.optional(2)
    terms = []
    if a.active:
        terms.append(mixed(a.d, b.mid, lambda d, w: _product(site, d, w)))
    if b.active:
        terms.append(mixed(b.d, a.mid, lambda d, w: _product(site, w, d)))
    if site.attribute("alpha", 1.0) < 0:
        terms = [Parts(plus=minus, minus=plus) for plus, minus in terms]
    if c is not None and c.active:
        terms.append(scaled(by_sign(c.d), site.emitter.constant(site.attribute("beta", 1.0), c.dtype)))
    return summed(site, terms)


def _product(site: Site, a: Tensor, b: Tensor) -> Tensor:
    """MatMul of other tensors, or Gemm of them without C."""
    return site.again(a, b, *(None for _ in site.inputs[2:]))


@rule("midpoint", "MatMul", parts=_factor_parts, mixes=True)
def matrix_multiply(site: Site) -> list[Tensor | None]:
    """m_A = m_Y ((B + B0)/2)^T, m_B = ((A + A0)/2)^T m_Y."""
    a, b, m = site.input(0), site.input(1), site.m
    w_a, w_b = _midpoints(site)
    if a.rank == b.rank == 2:  # Gemm transposes on the fly
        return [w_a and gemm_product(m, w_a, 0, 1), w_b and gemm_product(w_b, m, 1, 0)]
    columns, rows = a.rank == 1, b.rank == 1  # a vector is a row on the left, a column on the right
    if rows:
        m = unsqueeze(m, [m.rank])
    if columns:
        m = unsqueeze(m, [m.rank - 1])
    m_a = m_b = None
    if w_a:
        m_a = _fit(m @ swap_last(unsqueeze(w_a, [1]) if rows else w_a), a, columns)
    if w_b:
        m_b = _fit(swap_last(unsqueeze(w_b, [0]) if columns else w_b) @ m, b, rows)
    return [m_a, m_b]


def _fit(m: Tensor, value: Value, vector: bool) -> Tensor:
    """Sum over the stack axes along which a factor was broadcast; drop the axis that a vector was given."""
    if vector:
        return value.like(m) if m.rank == 2 else _sum_stack(m, value)
    return unbroadcast(m, m.shape, value)


def _sum_stack(m: Tensor, value: Value) -> Tensor:
    axes = m.emitter.ints(range(m.rank - 2))
    return value.like(m.emitter.op("ReduceSum", m, axes, keepdims=0, shape=(None, None)))


@rule("midpoint", "Gemm", parts=_factor_parts, mixes=True)
def gemm(site: Site) -> list[Tensor | None]:
    """MatMul and Add: m_A = alpha m_Y B'^T, m_B = alpha A'^T m_Y, m_C = beta m_Y, factors at their midpoints."""
    c, m = site.optional(2), site.m
    alpha, beta = (site.attribute(name, 1.0) for name in ("alpha", "beta"))
    if site.absolute:
        alpha, beta = abs(alpha), abs(beta)
    trans_a, trans_b = site.attribute("transA", 0), site.attribute("transB", 0)
    w_a, w_b = _midpoints(site)

    m_a = m_b = m_c = None
    if w_a:
        m_a = gemm_product(w_a, m, trans_b, 1, alpha) if trans_a else gemm_product(m, w_a, 0, 1 - trans_b, alpha)
    if w_b:
        m_b = gemm_product(m, w_b, 1, trans_a, alpha) if trans_b else gemm_product(w_b, m, 1 - trans_a, 0, alpha)
    if c is not None and c.active:
        m_c = unbroadcast(m if beta == 1 else m * beta, site.y.shape, c)
    return [m_a, m_b, m_c]


def gemm_product(a: Tensor, b: Tensor, trans_a: int, trans_b: int, alpha: float = 1.0) -> Tensor:
    """alpha A' B', where a factor marked so is transposed."""
    flags = {"transA": trans_a or None, "transB": trans_b or None, "alpha": float(alpha) if alpha != 1 else None}
    rows, columns = (a.shape or (None, None))[trans_a], (b.shape or (None, None))[1 - trans_b]
    return a.emitter.op("Gemm", a, b, shape=(rows, columns), **flags)
