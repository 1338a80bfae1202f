"""Every op of the graph, run natively on made-up models: within derived bounds of the reference, and equal bits for
every kernel set, number of threads, chunk and batch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer import _core
from cpuinfer.config import Activation, Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph, alibi_slopes
from cpuinfer.ops import ACTIVATIONS, Attention, Embed, Experts, Gated, Glu, Linears, Norm, Normalize, Value
from cpuinfer.reference import Reference, activate, rotate, route
from kept_halves import assert_native
from made_up import MadeUp, logits

Array = npt.NDArray[np.float64]
UNIT, HALF = 2.0**-24, 2.0**-11  # half the spacing of fp32 and of fp16 at 1
USABLE = [entry["name"] for entry in _core.kernel_sets() if entry["usable"]]
VOCABULARY, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 60, 64, 4, 2, 16
ROPE = Rope(HEAD_DIM, 10000.0, "halves")
Shapes = dict[str, tuple[int, ...]]


def frame(middle: Shapes) -> Shapes:
    """Shapes of an embedding, one layer's attention, a head, and what lies between."""
    width, narrow = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    attention = {"q": (width, HIDDEN), "k": (narrow, HIDDEN), "v": (narrow, HIDDEN), "o": (HIDDEN, width)}
    return {"embed": (VOCABULARY, HIDDEN), "norm": (HIDDEN,), **attention, **middle, "head": (VOCABULARY, HIDDEN)}


def attend(g: Graph, x: Value, **options: object) -> Value:
    q, k, v = g.linears(g.norm(x, "norm", 1e-5), "q", "k", "v")
    given = {"rope": ROPE, **options}
    a = g.attention(q, k, v, layer=0, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, **given)  # type: ignore[arg-type]
    return g.linear(a, "o", residual=x)


def biased(shapes: Shapes) -> Shapes:
    return shapes | {f"{name}.bias": shape[:1] for name, shape in shapes.items() if name not in {"embed"}}


def layer_norms(g: Graph) -> Value:
    x = g.normalize(g.layer_norm(g.embed("embed"), "first", 1e-5))
    q, k, v = g.linears(g.layer_norm(x, "norm", 1e-5), "q", "k", "v")
    a = g.attention(q, k, v, layer=0, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, rope=None)
    x = g.linear(a, "o", residual=x)
    return g.linear(g.layer_norm(x, "norm", 1e-5), "head")


def activations(g: Graph) -> Value:
    x = attend(g, g.embed("embed", scale=8.0))
    for act in ACTIVATIONS:
        x = g.linear(g.linear(x, "up", act=act), "down", residual=x)
        x = g.linear(g.glu(g.norm(x, "norm", 1e-5, offset=0.5), "up", "gate", act=act), "down", residual=x)
    return g.linear(x, "head", softcap=3.0)


def head_norms(g: Graph) -> Value:
    x = g.embed("embed")
    q, k, v = g.linears(x, "q", "k", "v")
    q, k = (g.head_norm(y, "per_head", 1e-6, heads=n) for y, n in ((q, HEADS), (k, KV_HEADS)))
    a = g.attention(q, k, v, layer=0, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, rope=ROPE, scale=0.3)
    x = g.normalize(g.norm(g.linear(a, "o"), "norm", 1e-5), residual=x)
    return g.linear(x, "head")


def learned_positions(g: Graph) -> Value:
    return g.linear(attend(g, g.embed("embed", positions="positions", position_offset=2), rope=None), "head")


def windows(g: Graph) -> Value:
    return g.linear(attend(g, g.embed("embed"), window=5, softcap=2.0), "head")


def alibi(g: Graph) -> Value:
    return g.linear(attend(g, g.embed("embed"), rope=None, slopes=alibi_slopes(HEADS)), "head")


def two_ropes(g: Graph) -> Value:
    x = g.embed("embed")
    ropes = [Rope(8, 500.0, "interleaved", magnitude=1.3), None, Rope(HEAD_DIM, 1e4, "halves", (2.0,) * 8)]
    for layer, rope in enumerate(ropes):
        q, k, v = g.linears(x, "q", "k", "v")
        a = g.attention(q, k, v, layer=layer, heads=HEADS, kv_heads=KV_HEADS, head_dim=HEAD_DIM, rope=rope, window=40)
        x = g.linear(a, "o", residual=x)
    return g.linear(x, "head")


def mixture(used: int, *, renormalise: bool) -> object:
    def build(g: Graph) -> Value:
        x = attend(g, g.embed("embed"))
        h = g.norm(x, "norm", 1e-5)
        gate = g.linear(h, "shared_gate")
        x = g.gated(g.linear(g.glu(h, "up", "gate", act="silu"), "down"), gate, residual=x)
        x = g.experts(
            g.norm(x, "norm", 1e-5),
            router="router",
            gate="experts_gate",
            up="experts_up",
            down="experts_down",
            experts=8,
            used=used,
            renormalise=renormalise,
            act="silu",
            residual=x,
        )
        return g.linear(x, "head")

    return build


FEED_FORWARD: Shapes = {"up": (96, HIDDEN), "gate": (96, HIDDEN), "down": (HIDDEN, 96)}
EXPERTS: Shapes = FEED_FORWARD | {
    "shared_gate": (1, HIDDEN),
    "router": (8, HIDDEN),
    "experts_gate": (8 * 32, HIDDEN),
    "experts_up": (8 * 32, HIDDEN),
    "experts_down": (8 * HIDDEN, 32),
}
MODELS = {
    "layer norms and biases": (biased(frame({"first": (HIDDEN,)})), layer_norms),
    "activations": (frame(FEED_FORWARD), activations),
    "activations and biases": (biased(frame(FEED_FORWARD)), activations),
    "norms of heads, norms after": (frame({"per_head": (HEAD_DIM,)}), head_norms),
    "learned positions": (frame({"positions": (140, HIDDEN)}), learned_positions),
    "window and soft cap": (frame({}), windows),
    "alibi": (frame({}), alibi),
    "several ropes": (frame({}), two_ropes),
    "two experts": (frame(EXPERTS), mixture(2, renormalise=True)),
    "one expert": (frame(EXPERTS), mixture(1, renormalise=False)),
    "all experts": (frame(EXPERTS), mixture(8, renormalise=False)),
}


@pytest.fixture(scope="module", params=sorted(MODELS))
def shapes_and_build(request: pytest.FixtureRequest) -> tuple[Mapping[str, tuple[int, ...]], object]:
    return MODELS[request.param]


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(2).integers(0, VOCABULARY, 61).tolist()


def test_every_op_is_within_the_bound_of_its_roundings(shapes_and_build, tokens: list[int]) -> None:
    model = MadeUp.of(*shapes_and_build)
    session = model.session(keep_values=True)
    native = {model.logits: logits(session, tokens).astype(np.float64)}
    for value in model.graph.values:
        if value != model.logits:
            native[value] = session.value(value.index, len(tokens)).astype(np.float64)
    reference = Reference(model.graph, model.weight)
    for op in model.graph.ops:
        inputs = turned_back(op, native) if isinstance(op, Attention) else native
        for out, exact in reference.apply(op, inputs, tokens).items():
            if rotated_in_place(model.graph, out):
                continue  # checked through the attention that turned it
            off = np.abs(native[out] - exact) - bound(op, out, inputs, reference, exact)
            assert np.all(off <= 0), f"{op.name}: {off.max()} over the bound"


def rotated_in_place(graph: Graph, value: Value) -> bool:
    return any(isinstance(op, Attention) and op.rope and value in (op.q, op.k) for op in graph.ops)


def turned_back(op: Attention, native: dict[Value, Array]) -> dict[Value, Array]:
    """Native attention turns queries and keys in place; the reference wants them as they were."""
    if op.rope is None:
        return native
    turned = dict(native)
    for value, heads in ((op.q, op.heads), (op.k, op.kv_heads)):
        x = native[value].reshape(len(native[value]), heads, -1)
        second = (
            slice(1, op.rope.dims, 2) if op.rope.layout == "interleaved" else slice(op.rope.dims // 2, op.rope.dims)
        )
        # The inverse of a rotation: conjugate, turn, conjugate.
        back = x.copy()
        back[..., second] *= -1
        back = rotate(back, op.rope)
        back[..., second] *= -1
        back[..., : op.rope.dims] /= op.rope.magnitude**2
        turned[value] = back.reshape(native[value].shape)
    return turned


def bound(op: object, value: Value, values: dict[Value, Array], reference: Reference, exact: Array) -> Array:
    """What fp32 may differ from the exact result.

    A product of k terms errs by k + 2 roundings of their magnitudes, a norm by width / 16 + 12 of its result (and, of a
    layer norm, as many of the largest number over the deviation); slopes of activations are below 1.2, and each adds 80
    roundings (gelu_tanh) or 7.5e-8 of its argument (gelu).
    """
    residual = getattr(op, "residual", None)
    last = UNIT * (2 * np.abs(exact) + (0 if residual is None else np.abs(values[residual])))
    match op:
        case Embed():
            return 4 * UNIT * (np.abs(exact) + 8)
        case Normalize():
            return last + (op.x.width / 16 + 12) * UNIT * (np.abs(exact) + 20)
        case Linears():
            x = reference._read(values[op.x], op.norm)
            name = next(name for name, out in zip(op.weights, op.outs, strict=True) if out == value)
            off = 1.2 * product_bound(x, reference._array(name), norm=op.norm)
            return last + off + (0 if op.act is None else 80 * UNIT * (np.abs(exact) + 10))
        case Glu():
            x = reference._read(values[op.x], op.norm)
            gate, up = (reference._affine(x, *pair) for pair in zip((op.gate, op.up), op.biases, strict=True))
            weights = (reference._array(name) for name in (op.gate, op.up))
            offs = (product_bound(x, weight, norm=op.norm) for weight in weights)
            return last + gated_bound(gate, up, *offs, op.act)
        case Experts():
            return last + experts_bound(op, reference._read(values[op.x], op.norm), reference)
        case Gated():
            return last + 4 * UNIT * np.abs(values[op.x])
        case Attention():
            return attention_bound(op, values)
    raise AssertionError(op)


def product_bound(x: Array, weight: Array, *, norm: Norm | None, bias: float = 1.0) -> Array:
    """`bias`: the largest there is."""
    k = x.shape[-1]
    magnitude = np.abs(x) + (20 if norm is not None and norm.kind == "layer" else 0)
    return (k + 2 + (0 if norm is None else k / 16 + 12)) * UNIT * (magnitude @ np.abs(weight).T + bias)


def gated_bound(gate: Array, up: Array, off_gate: Array, off_up: Array, act: Activation) -> Array:
    """Of act(gate) * up, both off."""
    activated = np.abs(activate(gate, act))
    off = 1.2 * off_gate + 80 * UNIT * activated + 7.5e-8 * np.abs(gate)
    return off * (np.abs(up) + off_up) + activated * off_up


def experts_bound(op: Experts, x: Array, reference: Reference) -> Array:
    """Logits off by d change a share by a factor within exp(2 d); it is rounded once, and once more if renormalised.

    What an expert adds is off by its three products and its share; the sum rounds `used` products and additions.
    """
    router = reference._array(op.router)
    d = product_bound(x, router, norm=op.norm, bias=0).max(axis=1, keepdims=True)
    chosen, share = route(x @ router.T, op.used, renormalise=op.renormalise)
    gate, up, down = (np.split(reference._array(name), op.experts) for name in (op.gate, op.up, op.down))
    bound = np.zeros_like(x)
    for expert in range(op.experts):
        rows, slot = np.nonzero(chosen == expert)
        z, y = x[rows] @ gate[expert].T, x[rows] @ up[expert].T
        offs = (product_bound(x[rows], part[expert], norm=op.norm, bias=0) for part in (gate, up))
        inner, off = activate(z, op.act) * y, gated_bound(z, y, *offs, op.act)
        added = np.abs(inner @ down[expert].T)
        off = off @ np.abs(down[expert]).T + product_bound(np.abs(inner) + off, down[expert], norm=None, bias=0)
        p, of_share = share[rows, slot][:, None], np.expm1(2 * d[rows]) + 2 * UNIT
        bound[rows] += p * (off + (of_share + 2 * op.used * UNIT) * (added + off))
    return bound


def attention_bound(op: Attention, values: dict[Value, Array]) -> Array:
    """As in test_parity: fp16 of keys and values, roundings of scores; a soft cap does not enlarge them, slopes do."""
    n = len(values[op.q])
    q = values[op.q].reshape(n, op.heads, -1)
    k = np.repeat(values[op.k].reshape(n, op.kv_heads, -1), op.heads // op.kv_heads, axis=1)
    v = np.repeat(values[op.v].reshape(n, op.kv_heads, -1), op.heads // op.kv_heads, axis=1)
    if op.rope is not None:
        q, k = rotate(q, op.rope), rotate(k, op.rope)
    products = np.einsum("qhd,khd->hqk", np.abs(q), np.abs(k)) * abs(op.scale)
    off = 2 * products.max(axis=-1) * (HALF + (op.head_dim + 32) * UNIT) + 1e-6
    off += 2 * UNIT * n * max(op.slopes, default=0.0)
    factor = np.expm1(2 * off + (n + 16) * UNIT * 2)
    largest = np.maximum.accumulate(np.abs(v), axis=0)
    return (factor.T[:, :, None] * largest + (HALF + (n + 4) * UNIT) * largest + 2.0**-25).reshape(n, -1)


@pytest.mark.parametrize("quantised", [False, True])
def test_bits_do_not_depend_on_the_kernel_set_threads_or_chunks(shapes_and_build, tokens, quantised: bool) -> None:
    model = MadeUp.of(*shapes_and_build, quantised=quantised)
    expected = logits(model.session(isa="scalar", threads=1), tokens)
    assert np.isfinite(expected).all()
    for isa in USABLE:
        np.testing.assert_array_equal(logits(model.session(isa=isa), tokens), expected, err_msg=isa)
    for threads, chunk in ((1, 1), (2, 1), (3, 7), (2, 8), (2, 9), (5, 33)):
        found = logits(model.session(threads=threads), tokens, chunk=chunk)
        np.testing.assert_array_equal(found, expected, err_msg=f"{threads} threads, chunks of {chunk}")


def test_a_batch_has_the_same_bits_as_each_sequence_alone(shapes_and_build) -> None:
    model = MadeUp.of(*shapes_and_build, quantised=True)
    rng = np.random.default_rng(3)
    texts = [rng.integers(0, VOCABULARY, length).tolist() for length in (1, 17, 5, 12, 26)]
    session = model.session()
    alone = [logits(session, text) for text in texts]
    together = session.step([(session.open(), text, "logits", None) for text in texts])
    for found, expected in zip(together, alone, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_equal_router_logits_go_to_the_lower_experts() -> None:
    model = MadeUp.of(frame(EXPERTS), mixture(2, renormalise=True))
    model.rows["router"].values[:] = 0
    assert_native(found := logits(model.session(), [1, 2, 3]), model.graph, model.weight, [1, 2, 3])
    model.rows["experts_down"].values[2 * HIDDEN :] = 0  # experts from 2 on have no say
    np.testing.assert_array_equal(logits(model.session(), [1, 2, 3]), found)


def test_experts_whose_rows_do_not_fill_panels_are_refused() -> None:
    shapes = frame(
        EXPERTS | {"experts_gate": (80, HIDDEN), "experts_up": (80, HIDDEN), "experts_down": (8 * HIDDEN, 10)}
    )
    with pytest.raises(UnsupportedModel, match="experts of 10 rows on 64 inputs: expected multiples of 16"):
        MadeUp.of(shapes, mixture(2, renormalise=True)).session()


def test_a_context_longer_than_the_learned_positions_is_refused() -> None:
    shapes = frame({"positions": (129, HIDDEN)})
    with pytest.raises(UnsupportedModel, match="positions for a context of 127, not of 128"):
        MadeUp.of(shapes, learned_positions).session()
