"""Attention of com.microsoft: what ONNX Runtime's kernels compute, or NumPy where the CPU provider has none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lowered import Array, Case, check, f, half, refusal

B, S, L, P, N, H = 2, 4, 5, 3, 2, 4
D = N * H
LENGTHS = ["batch", "length"]
REACH = {"k1": ["k", "past_k"], "v1": ["v", "past_v"], "qk": ["q", "k", "past_k", "bias"]}


def ints(*values: Any) -> Array:
    return np.array(values, np.int32)


def named(names: str, **arrays: Array | None) -> dict[str, Array | None]:
    """Inputs in the operator's order; those not given are omitted."""
    assert arrays.keys() <= set(names.split())
    return {name: arrays.get(name) for name in names.split()}


# --- Attention -------------------------------------------------------------------------------------------------------

ATTENTION = "x w b mask past bias"


def attention(attributes: dict[str, Any] | None = None, sizes: tuple[int, int, int] = (D, D, D), **more: Array) -> Case:
    inputs = named(ATTENTION, x=f(B, S, 6), w=f(6, sum(sizes)) / 2, b=f(sum(sizes)), **more)
    active = [name for name in ("x", "past", "bias") if inputs[name] is not None]
    return Case(
        "Attention",
        inputs,
        active,
        {"num_heads": N, **(attributes or {})},
        outputs=["y", "present"] if "past" in more or sizes == (D, D, D) else ["y"],
        fed=["mask"] if "mask" in more else [],
        dims={"x": LENGTHS},
        reach={"present": ["x", "past"]},
    )


MASKS = {
    "lengths": ints(3, 2),
    "ends and starts": ints(4, 3, 1, 0),
    "keys": ints([1, 1, 0, 1], [1, 0, 0, 0]),
    "queries and keys": np.tril(np.ones((B, S, S), np.int32))[:, ::-1].copy(),
    "one for all keys": ints([1], [1]),
}

SELF = {
    "plain": attention(),
    "scale": attention({"scale": 0.3}),
    "causal": attention({"unidirectional": 1}),
    "bias": attention(bias=f(1, 1, S, S)),
    "bias of each head": attention(bias=f(B, N, S, S), mask=MASKS["keys"]),
    "narrow values": attention({"qkv_hidden_sizes": [D, D, 6]}, (D, D, 6)),
    "past": attention({"unidirectional": 1}, past=f(2, B, N, P, H)),
    "past and mask": attention(past=f(2, B, N, P, H), mask=np.ones((B, P + S), np.int32)),
    **{f"mask: {name}": attention(mask=mask) for name, mask in MASKS.items()},
    "mask, causal": attention({"unidirectional": 1}, mask=MASKS["keys"]),
    "mask of little weight": attention({"mask_filter_value": -2.0}, mask=MASKS["keys"]),
}


@pytest.mark.parametrize("case", SELF.values(), ids=SELF)
def test_attention(case: Case) -> None:
    check(case)


# --- MultiHeadAttention ----------------------------------------------------------------------------------------------

MULTI_HEAD = "q k v b mask bias past_k past_v"


def multi_head(attributes: dict[str, Any] | None = None, outputs: str = "y", **more: Array | None) -> Case:
    inputs = named(MULTI_HEAD, **{"q": f(B, S, D), "k": f(B, L, D), "v": f(B, L, D), **more})
    active = [name for name in ("q", "k", "v", "bias", "past_k", "past_v") if inputs[name] is not None]
    attributes = {"num_heads": N, **(attributes or {})}
    fed = ["mask"] if "mask" in more else []
    dims = {"q": LENGTHS, "k": ["batch"], "v": ["batch"]}
    return Case("MultiHeadAttention", inputs, active, attributes, outputs.split(), fed, dims, reach=REACH)


def attend(q: Array, k: Array, v: Array) -> Array:
    logits = np.einsum("bsnh,btnh->bnst", q, k) / np.sqrt(H)
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.einsum("bnst,btnh->bsnh", e / e.sum(-1, keepdims=True), v).reshape(B, S, D)


ALL = "y k1 v1 qk"
CROSS = {
    "plain": multi_head(),
    "all outputs": multi_head(outputs=ALL),
    "bias of the projections": multi_head(b=f(3 * D), outputs=ALL),
    "narrow values": multi_head(v=f(B, L, 6), b=f(2 * D + 6), outputs=ALL),
    "scale": multi_head({"scale": 0.3}),
    "causal": multi_head({"unidirectional": 1}),
    "causal, longer": multi_head({"unidirectional": 1}, k=f(B, 3, D), v=f(B, 3, D)),
    "mask": multi_head(mask=ints([1, 1, 0, 1, 0], [1, 1, 1, 1, 0]), outputs=ALL),
    "mask of queries": multi_head(mask=np.tril(np.ones((B, S, L), np.int32))),
    "lengths": multi_head(mask=ints(3, 5)),
    "bias": multi_head(bias=f(1, N, S, L)),
    "bias and mask": multi_head(bias=f(B, 1, S, L), mask=ints([1, 1, 0, 1, 0], [1, 1, 1, 1, 0])),
    "past": multi_head(past_k=f(B, N, P, H), past_v=f(B, N, P, H), outputs=ALL),
    "past, causal": multi_head({"unidirectional": 1}, past_k=f(B, N, P, H), past_v=f(B, N, P, H), outputs="y k1 v1"),
    "past and mask": multi_head(
        past_k=f(B, N, P, H), past_v=f(B, N, P, H), mask=np.ones((B, P + L), np.int32), outputs=ALL
    ),
    "heads of another sequence": multi_head(k=f(B, N, L, H), v=f(B, N, L, H), b=f(3 * D), outputs=ALL),
}
PACKED = {
    "packed": multi_head(q=f(B, S, N, 3, H), k=None, v=None),
    "packed keys": multi_head(k=f(B, L, N, 2, H), v=None),
}


@pytest.mark.parametrize("case", CROSS.values(), ids=CROSS)
def test_multi_head_attention(case: Case) -> None:
    check(case)


def test_packed_multi_head_attention() -> None:
    def all_packed(q: Array, *_: Any, **__: Any) -> Array:
        return attend(*(q[:, :, :, k] for k in range(3)))

    def keys_packed(q: Array, k: Array, *_: Any, **__: Any) -> Array:
        return attend(q.reshape(B, S, N, H), k[:, :, :, 0], k[:, :, :, 1])

    for case, expected in zip(PACKED.values(), (all_packed, keys_packed), strict=True):
        case.expected = expected
        check(case)


# --- DecoderMaskedMultiHeadAttention ---------------------------------------------------------------------------------

DECODER = "q k v mask bias past_k past_v filled beams from_beam b"


def decoder(outputs: str = "y k1 v1 qk", **more: Array | None) -> Case:
    self_attention = {"past_k": f(B, N, 6, H), "past_v": f(B, N, 6, H), "filled": ints(P)}
    inputs = named(DECODER, **{"q": f(B, 1, D), "k": f(B, 1, D), "v": f(B, 1, D), **self_attention, **more})
    active = [name for name in ("q", "k", "v", "bias", "past_k", "past_v") if inputs[name] is not None]
    shared = inputs["past_k"] is not None
    attributes = {"num_heads": N, "past_present_share_buffer": int(shared), "output_qk": int("qk" in outputs)}
    fed = [name for name in ("mask", "filled") if inputs[name] is not None]
    return Case("DecoderMaskedMultiHeadAttention", inputs, active, attributes, outputs.split(" "), fed, reach=REACH)


DECODERS = {
    "plain": decoder(),
    "bias of the projections": decoder(b=f(3 * D)),
    "mask and bias": decoder(mask=ints([1, 0, 1, 1], [1, 1, 1, 1]), bias=f(1, N, 1, P + 1)),
    "cross": decoder("y   qk", k=f(B, N, L, H), v=f(B, N, L, H), past_k=None, past_v=None, filled=None, b=f(3 * D)),
}


@pytest.mark.parametrize("case", DECODERS.values(), ids=DECODERS)
def test_decoder_masked_multi_head_attention(case: Case) -> None:
    check(case)


# --- GroupQueryAttention ---------------------------------------------------------------------------------------------

HEADS, GROUPS, SIZE, PLACES = 4, 2, 16, 6  # the kernel turns heads of 16 elements or more
GROUPED = "q k v past_k past_v last total cos sin positions bias sink k_scale v_scale q_norm k_norm"
ANGLES = f(12, SIZE // 2)
TABLES = {"cos": np.cos(ANGLES), "sin": np.sin(ANGLES)}


def grouped(attributes: dict[str, Any] | None = None, *, new: int = S, samples: int = B, **more: Array | None) -> Case:
    inputs = named(
        GROUPED,
        **{
            "q": f(samples, new, HEADS * SIZE),
            "k": f(samples, new, GROUPS * SIZE),
            "v": f(samples, new, GROUPS * SIZE),
            "last": np.full(samples, new - 1, np.int32),
            "total": np.array(new, np.int32),
            **more,
        },
    )
    active = [name for name in ("q", "k", "v", "past_k", "past_v", "bias") if inputs[name] is not None]
    attributes = {"num_heads": HEADS, "kv_num_heads": GROUPS, **(attributes or {})}
    dims = {"q": ["batch", "length"], "k": ["batch", "length"], "v": ["batch", "length"], "last": ["batch"]}
    fed = [name for name in ("last", "total", "positions") if inputs[name] is not None]
    reach = {"k1": ["q"], "v1": ["q"]} if inputs["k"] is None else REACH
    return Case("GroupQueryAttention", inputs, active, attributes, ["y", "k1", "v1"], fed, dims, reach=reach)


def with_past(attributes: dict[str, Any] | None = None, *, last: Array, new: int = 1, **more: Array | None) -> Case:
    samples = len(last)
    past = {f"past_{name}": f(samples, GROUPS, PLACES, SIZE) for name in "kv"}
    total = np.array(last.max() + 1, np.int32)
    return grouped(attributes, new=new, samples=samples, last=last, total=total, **past, **more)


ROTARY = {"do_rotary": 1}
PACKED_SIZE = (HEADS + 2 * GROUPS) * SIZE
GROUPINGS = {
    "plain": grouped(),
    "no groups": grouped({"kv_num_heads": HEADS}, k=f(B, S, HEADS * SIZE), v=f(B, S, HEADS * SIZE)),
    "scale and softcap": grouped({"scale": 0.3, "softcap": 0.7}),
    "window": grouped({"local_window_size": 2}),
    "not causal": grouped({"causal": 0}),
    "rotary": grouped(ROTARY, **TABLES),
    "rotary, interleaved": grouped({**ROTARY, "rotary_interleaved": 1}, **TABLES),
    "rotary, positions": grouped(ROTARY, **TABLES, positions=np.arange(S)[None].repeat(B, 0) + 2),
    "bias, softcap": grouped({"softcap": 0.7}, bias=f(B, 1, S, S)),
    "smooth": grouped({"smooth_softmax": 1}),
    "sink": grouped(sink=f(HEADS)),
    "packed": grouped(q=f(B, S, PACKED_SIZE), k=None, v=None),
    "packed, rotary": grouped(ROTARY, q=f(B, S, PACKED_SIZE), k=None, v=None, **TABLES),
    "padded prompt": grouped(last=ints(S - 1, 1)),
    "padded prompt, not causal": grouped({"causal": 0}, last=ints(S - 1, 1)),
    "past": with_past(last=ints(6, 6)),
    "past of two lengths": with_past(ROTARY, last=ints(4, 6), **TABLES),
    "past, partly filled": with_past(ROTARY, last=ints(3, 2), **TABLES),
    "past, bias, window": with_past({"local_window_size": 3}, last=ints(4, 6), bias=f(1, HEADS, 1, 7)),
    "past, several new": with_past(ROTARY, new=S, last=ints(PLACES + S - 1), **TABLES),
    "past, several new, positions": with_past(
        ROTARY, new=2, last=ints(PLACES + 1), **TABLES, positions=np.array([[8, 3]])
    ),
}


@pytest.mark.parametrize("case", GROUPINGS.values(), ids=GROUPINGS)
def test_group_query_attention(case: Case) -> None:
    check(case)


def test_group_query_attention_in_half_precision() -> None:
    check(half(GROUPINGS["past of two lengths"]))
    check(half(GROUPINGS["bias, softcap"]))


def test_group_query_attention_with_normalized_heads() -> None:
    """Only the CUDA kernel normalises heads: the same as normalising in front."""

    def normalized(x: Array, weight: Array) -> Array:
        heads = x.reshape(B, S, -1, SIZE)
        heads = heads / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-3) * weight
        return heads.reshape(x.shape)

    case = grouped({"qk_norm_epsilon": 1e-3}, q_norm=f(SIZE), k_norm=f(SIZE))

    def expected(q: Array, k: Array, v: Array, *rest: Array, **_: Any) -> list[Array]:
        q, k = normalized(q, rest[-2]), normalized(k, rest[-1])
        q, k, v = (x.reshape(B, S, -1, SIZE).transpose(0, 2, 1, 3) for x in (q, k, v))
        logits = q @ k.repeat(2, 1).swapaxes(2, 3) / np.sqrt(SIZE)
        e = np.where(np.tril(np.ones((S, S))), np.exp(logits), 0)
        y = e / e.sum(-1, keepdims=True) @ v.repeat(2, 1)
        return [y.transpose(0, 2, 1, 3).reshape(B, S, -1), k, v]

    case.expected = expected
    check(case)


# --- positions -------------------------------------------------------------------------------------------------------

COS, SIN = TABLES["cos"], TABLES["sin"]
POSITIONS = np.array([[7, 3, 3, 0], [11, 1, 2, 5]])
FLAT, SPREAD = f(B, S, 2 * SIZE), f(B, 2, S, SIZE)


def rotary(x: Array, attributes: dict[str, Any] | None = None, positions: Array = POSITIONS, pairs: int = 8) -> Case:
    inputs = {"x": x, "positions": positions, "cos": COS[:, :pairs].copy(), "sin": SIN[:, :pairs].copy()}
    dims = {"x": ["batch", "length"] if x.ndim == 3 else ["batch"]}
    return Case("RotaryEmbedding", inputs, ["x"], attributes or {}, fed=["positions"], dims=dims)


ROTATIONS = {
    "flat": rotary(FLAT),
    "flat, interleaved": rotary(FLAT, {"interleaved": 1}),
    "heads": rotary(SPREAD),
    "heads, interleaved": rotary(SPREAD, {"interleaved": 1}),
    "one position": rotary(FLAT, positions=np.array([3])),
    "one position, heads": rotary(SPREAD, positions=np.array([3])),
    "a part": rotary(FLAT, {"num_heads": 2, "rotary_embedding_dim": 8}, pairs=4),
    "a part, interleaved": rotary(FLAT, {"num_heads": 2, "rotary_embedding_dim": 8, "interleaved": 1}, pairs=4),
}


@pytest.mark.parametrize("case", ROTATIONS.values(), ids=ROTATIONS)
def test_rotary_embedding(case: Case) -> None:
    check(case)


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("x", [FLAT, SPREAD], ids=["flat", "heads"])
def test_multimodal_rotary_embedding(x: Array, layout: int) -> None:
    positions = np.stack([POSITIONS, POSITIONS[::-1], POSITIONS // 2])
    inputs = {"x": x, "positions": positions, "cos": COS, "sin": SIN}
    attributes = {"num_heads": 2, "mrope_section": [2, 3, 3] if layout == 0 else [4, 2, 2], "mrope_layout": layout}
    check(Case("MRotaryEmbedding", inputs, ["x"], attributes, fed=["positions"], dims={"x": ["batch"]}))


def test_gemma_rotary_embedding() -> None:
    def expected(e: Array, q: Array, turned_q: Array, k: Array, turned_k: Array) -> list[Array]:
        cos, sin = np.cos(e)[:, None], np.sin(e)[:, None]
        return [q * cos + turned_q * sin, k * cos + turned_k * sin]

    names = ["q", "turned_q", "k", "turned_k"]
    reach = {"y": names[:2], "z": names[2:]}
    inputs = {"e": f(B, S, H), **{name: f(B, N, S, H).astype(np.float16) for name in names}}
    check(Case("GemmaRotaryEmbedding", inputs, names, {}, ["y", "z"], ["e"], reach=reach, expected=expected, rtol=2e-3))


def test_gated_relative_position_bias() -> None:
    inputs = {"x": f(B, S, D), "b": f(D), "p": f(1, N, S, S), "w": f(H, 6), "c": f(6), "a": f(1, N, 1, 1)}

    def expected(x: Array, b: Array, p: Array, w: Array, c: Array, a: Array, **_: Any) -> Array:
        q = (x + b).reshape(B, S, N, H).transpose(0, 2, 1, 3)
        gates = 1 / (1 + np.exp(-(q @ w + c).reshape(B, N, S, 2, 3).sum(-1)))
        u, r = gates[..., :1], gates[..., 1:]
        return (u * (r * a - 1) + 2) * p

    check(Case("GatedRelativePositionBias", inputs, ["x"], {"num_heads": N}, expected=expected, dims={"x": LENGTHS}))


@pytest.mark.parametrize("both", [0, 1])
def test_relative_position_bias(both: int) -> None:
    """The buckets of T5: one by one up to a quarter or half of them, then by the logarithm."""

    def expected(table: Array, length: Array, _: Array, **__: Any) -> Array:
        rows = table.reshape(N, 8)
        distance = np.arange(length)[None] - np.arange(length)[:, None]
        count = 4 if both else 8
        exact, size = count // 2, np.abs(distance)
        with np.errstate(divide="ignore"):
            far = np.log(size / exact) / np.log(20 / exact) * (count - exact)
        far = np.minimum(exact + np.where(size > 0, far, 0).astype(int), count - 1)
        return rows[None, :, np.where(size < exact, size, far) + (4 if both else 0) * (distance > 0)]

    inputs = {"table": f(8, N), "q": np.array(15), "k": np.array(15)}
    attributes = {"max_distance": 20, "is_bidirectional": both}
    check(Case("RelativePositionBias", inputs, ["table"], attributes, fed=["q", "k"], expected=expected))


# --- refused ---------------------------------------------------------------------------------------------------------

REFUSED = {
    "do_rotary=1": attention({"do_rotary": 1}),
    "4 axes": attention(mask=np.ones((B, 1, S, S), np.int32)),
    "beams": decoder(beams=ints(2)),
    "sliding window": grouped({"sliding_window_cache": 1, "local_window_size": 2}),
    "samples are not apart": Case("PackedAttention", {"x": f(3, D)}, ["x"], {"num_heads": N}),
    "chosen by the data": Case("MoE", {"x": f(3, D), "p": f(3, 2), "a": f(2, 3, D)}, ["x"]),
    "sparse attention": Case("LongformerAttention", {"x": f(B, S, D)}, ["x"], {"num_heads": N, "window": 2}),
}


@pytest.mark.parametrize(("reason", "case"), REFUSED.items(), ids=REFUSED)
def test_refused(reason: str, case: Case) -> None:
    assert reason in refusal(case)
