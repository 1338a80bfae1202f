"""Gradients of every op of a block against finite differences, against PyTorch's, and the forward pass against the
reference's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.graph import Graph, alibi_slopes
from cpuinfer.ops import ACTIVATIONS, Attention, Gated, Glu, Linears, Norm, Normalize, Op, Value
from cpuinfer.quantize.gradients import backward, forward
from cpuinfer.reference import Reference

Array = npt.NDArray[np.float64]
WIDTH, HEADS, KV_HEADS, HEAD_DIM, POSITIONS, SEQUENCES = 12, 4, 2, 6, 7, 2
X, Y, Z, OUT = Value(0, WIDTH), Value(1, WIDTH), Value(2, 10), Value(3, WIDTH)
Q, K, V, MIXED = Value(4, HEADS * HEAD_DIM), Value(5, KV_HEADS * HEAD_DIM), Value(6, KV_HEADS * HEAD_DIM), Value(7, 24)
GATE = Value(8, 1)
RMS = Norm("rms", "norm", 1e-5, None, 0.5)
LAYER = Norm("layer", "norm", 1e-5, "norm.bias")
HEAD_NORM = Norm("rms", "head_norm", 1e-6)
SHAPES = {
    "norm": (WIDTH,),
    "norm.bias": (WIDTH,),
    "head_norm": (HEAD_DIM,),
    "a": (WIDTH, WIDTH),
    "a.bias": (WIDTH,),
    "b": (10, WIDTH),
    "b.bias": (10,),
    "c": (10, WIDTH),
}


def attention(**options: Any) -> Attention:
    given = {"rope": None, "window": 0, "softcap": 0.0, "slopes": (), "scale": 0.4, **options}
    return Attention("attention", Q, K, V, MIXED, 0, HEADS, KV_HEADS, HEAD_DIM, **given)


OPS: dict[str, Op] = {
    "linear": Linears("a", X, None, ("a",), (None,), (OUT,)),
    "linear with bias and residual": Linears("a", X, None, ("a",), ("a.bias",), (OUT,), residual=Y),
    "linear that adds its own input": Linears("a", X, RMS, ("a",), (None,), (OUT,), residual=X),
    "linears through an RMSNorm": Linears("a", X, RMS, ("a", "b"), (None, "b.bias"), (OUT, Z)),
    "linears through a LayerNorm": Linears("a", X, LAYER, ("a", "b"), ("a.bias", None), (OUT, Z)),
    "soft cap": Linears("a", X, None, ("a",), ("a.bias",), (OUT,), softcap=1.5),
    **{f"linear, {act}": Linears("a", X, RMS, ("a",), ("a.bias",), (OUT,), act=act) for act in ACTIVATIONS},
    **{f"glu, {act}": Glu("b", X, LAYER, "b", "c", ("b.bias", None), act, Z) for act in ACTIVATIONS},
    "norm of its own": Normalize("norm", X, RMS, 1, OUT, Y),
    "layer norm of its own": Normalize("norm", X, LAYER, 1, OUT),
    "norm of heads": Normalize("head_norm", Q, HEAD_NORM, HEADS, MIXED),
    "gate": Gated("gate", X, GATE, OUT, Y),
    "attention": attention(),
    "rotated by halves": attention(rope=Rope(HEAD_DIM, 100.0, "halves", magnitude=1.2)),
    "rotated by neighbours in part": attention(rope=Rope(4, 100.0, "interleaved")),
    "window and soft cap": attention(window=3, softcap=0.7),
    "slopes": attention(slopes=alibi_slopes(HEADS), rope=Rope(HEAD_DIM, 50.0, "halves", (2.0,) * 3)),
}
CASES = pytest.mark.parametrize("op", OPS.values(), ids=OPS)


def given(op: Op) -> tuple[dict[Value, Array], dict[str, Array], dict[Value, Array]]:
    """Values, tensors, and the gradients of the op's outputs."""
    rng = np.random.default_rng(3)
    values = {v: rng.normal(size=(SEQUENCES, POSITIONS, v.width)) for v in (X, Y, Q, K, V, GATE)}
    tensors = {name: rng.normal(size=shape) for name, shape in SHAPES.items()}
    outs = op.outs if isinstance(op, Linears) else (op.out,)
    return values, tensors, {out: rng.normal(size=(SEQUENCES, POSITIONS, out.width)) for out in outs}


@CASES
def test_the_forward_pass_is_the_references(op: Op) -> None:
    values, tensors, outs = given(op)
    found, _ = forward([op], values, tensors)
    reference = Reference(Graph({}), lambda name: tensors[name])
    for i in range(SEQUENCES):
        wanted = reference.apply(op, {v: x[i] for v, x in values.items()}, [0] * POSITIONS)
        for out in outs:
            # The approximation of erf is off by 1.5e-7, times z / 2 of a few units.
            np.testing.assert_allclose(found[out][i], wanted[out], rtol=1e-6, atol=2e-6)


@CASES
def test_gradients_are_those_of_finite_differences(op: Op) -> None:
    values, tensors, outs = given(op)
    backs = forward([op], values, tensors)[1]
    found = backward(backs, outs)

    def loss() -> float:
        made = forward([op], values, tensors)[0]
        return float(sum((made[out] * gradient).sum() for out, gradient in outs.items()))

    rng, step = np.random.default_rng(5), 1e-5
    arrays = [(values[v], g) for v, g in found.values.items() if v in values]
    arrays += [(tensors[name], g) for name, g in found.weights.items()]
    assert arrays
    for array, gradient in arrays:
        direction = rng.normal(size=array.shape)
        start = array.copy()
        np.add(start, step * direction, out=array)
        above = loss()
        np.subtract(start, step * direction, out=array)
        below = loss()
        array[:] = start
        assert (gradient * direction).sum() == pytest.approx((above - below) / (2 * step), rel=2e-5, abs=1e-5)


def torch_norm(torch: Any, x: Any, norm: Norm | None, t: dict[str, Any]) -> Any:
    if norm is None:
        return x
    weight, bias = t[norm.weight] + norm.offset, None if norm.bias is None else t[norm.bias]
    if norm.kind == "layer":
        return torch.nn.functional.layer_norm(x, x.shape[-1:], weight, bias, norm.eps)
    return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, norm.eps)


def torch_activation(torch: Any, z: Any, act: str | None) -> Any:
    functions: dict[str | None, Callable[[Any], Any]] = {
        None: lambda z: z,
        "relu": torch.relu,
        "silu": torch.nn.functional.silu,
        "gelu": torch.nn.functional.gelu,
        "gelu_tanh": lambda z: torch.nn.functional.gelu(z, approximate="tanh"),
    }
    return functions[act](z)


def torch_attention(torch: Any, op: Attention, q: Any, k: Any, v: Any) -> Any:
    q, k, v = (x.unflatten(-1, (-1, op.head_dim)).transpose(1, 2) for x in (q, k, v))
    n = q.shape[2]
    if op.rope is not None:
        angle = torch.arange(n)[:, None] * torch.tensor(op.rope.inverse_frequencies(), dtype=q.dtype)
        turn = torch.polar(torch.full_like(angle, op.rope.magnitude), angle)

        def rotated(x: Any) -> Any:
            head, rest = x[..., : op.rope.dims], x[..., op.rope.dims :]
            halves = op.rope.layout == "halves"
            pairs = head.unflatten(-1, (2, -1)).transpose(-1, -2) if halves else head.unflatten(-1, (-1, 2))
            turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
            turned = turned.transpose(-1, -2) if halves else turned
            return torch.cat([turned.flatten(-2), rest], -1)

        q, k = rotated(q), rotated(k)
    k, v = (x.repeat_interleave(op.heads // op.kv_heads, 1) for x in (k, v))
    scores = q @ k.transpose(-1, -2) * op.scale
    scores = op.softcap * torch.tanh(scores / op.softcap) if op.softcap else scores
    distance = torch.arange(n)[:, None] - torch.arange(n)
    if op.slopes:
        scores = scores - torch.tensor(op.slopes, dtype=q.dtype)[:, None, None] * distance
    hidden = (distance < 0) | (distance >= (op.window or n))
    return (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(-2)


def in_torch(torch: Any, op: Op, values: dict[Value, Any], t: dict[str, Any]) -> dict[Value, Any]:
    """The op, by PyTorch's functions."""

    def affine(x: Any, name: str, bias: str | None) -> Any:
        return torch.nn.functional.linear(x, t[name], None if bias is None else t[bias])

    match op:
        case Linears():
            x = torch_norm(torch, values[op.x], op.norm, t)
            outs = {}
            for name, bias, out in zip(op.weights, op.biases, op.outs, strict=True):
                y = torch_activation(torch, affine(x, name, bias), op.act)
                outs[out] = op.softcap * torch.tanh(y / op.softcap) if op.softcap else y
            if op.residual is not None:
                outs[op.outs[0]] = outs[op.outs[0]] + values[op.residual]
            return outs
        case Glu():
            x = torch_norm(torch, values[op.x], op.norm, t)
            gate = torch_activation(torch, affine(x, op.gate, op.biases[0]), op.act)
            return {op.out: gate * affine(x, op.up, op.biases[1])}
        case Normalize():
            y = torch_norm(torch, values[op.x].unflatten(-1, (op.groups, -1)), op.norm, t).flatten(-2)
            return {op.out: y if op.residual is None else y + values[op.residual]}
        case Gated():
            return {op.out: values[op.x] * torch.sigmoid(values[op.gate]) + values[op.residual]}
        case Attention():
            return {op.out: torch_attention(torch, op, values[op.q], values[op.k], values[op.v])}
        case _:
            raise TypeError(op)


@CASES
def test_gradients_are_those_of_pytorch(op: Op) -> None:
    torch = pytest.importorskip("torch")
    values, tensors, outs = given(op)
    leaves = {v: torch.tensor(x, requires_grad=True) for v, x in values.items()}
    weights = {name: torch.tensor(x, requires_grad=True) for name, x in tensors.items()}
    made = in_torch(torch, op, leaves, weights)
    sum((made[out] * torch.tensor(gradient)).sum() for out, gradient in outs.items()).backward()
    made_here, backs = forward([op], values, tensors)
    found = backward(backs, outs)
    for out in outs:
        np.testing.assert_allclose(made_here[out], made[out].detach().numpy(), rtol=1e-6, atol=2e-6)
    for value, leaf in leaves.items():
        assert (leaf.grad is not None) == (value in found.values)
        if leaf.grad is not None:
            np.testing.assert_allclose(found.values[value], leaf.grad.numpy(), rtol=1e-5, atol=2e-5)
    matrices = {name for name, weight in weights.items() if weight.grad is not None and weight.ndim == 2}
    assert matrices == set(found.weights)
    for name in matrices:
        np.testing.assert_allclose(found.weights[name], weights[name].grad.numpy(), rtol=1e-5, atol=2e-5)


def test_only_the_weights_asked_for_have_gradients() -> None:
    op = OPS["linears through an RMSNorm"]
    values, tensors, outs = given(op)
    backs = forward([op], values, tensors)[1]
    assert set(backward(backs, outs, wanted=frozenset({"b"})).weights) == {"b"}


def test_float32_stays_float32() -> None:
    for op in OPS.values():
        values, tensors, outs = given(op)
        small = {v: x.astype(np.float32) for v, x in values.items()}
        made, backs = forward([op], small, {name: x.astype(np.float32) for name, x in tensors.items()})
        found = backward(backs, {v: x.astype(np.float32) for v, x in outs.items()})
        kinds = {a.dtype for a in [*made.values(), *found.values.values(), *found.weights.values()]}
        assert kinds == {np.dtype(np.float32)}, op


def test_experts_are_refused_by_name() -> None:
    shapes = {"router": (2, 8), "gate": (8, 8), "up": (8, 8), "down": (16, 4), "embed": (4, 8)}
    g = Graph(shapes)
    x = g.embed("embed")
    g.experts(x, router="router", gate="gate", up="up", down="down", experts=2, used=1, renormalise=False, act="silu")
    with pytest.raises(UnsupportedModel, match=r"router: no gradients for experts, expected linears"):
        forward(g.ops[1:], {x: np.zeros((1, 2, 8))}, {})
