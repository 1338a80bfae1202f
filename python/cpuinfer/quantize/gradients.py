"""Forward and reverse mode over the ops of a block, for batches of whole sequences, in the precision of their inputs.

The forward pass is `reference.apply`'s, with a leading dimension for sequences; each op gives back a function that
takes the gradients of its outputs to those of its inputs and weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from cpuinfer.config import Activation
from cpuinfer.errors import UnsupportedModel
from cpuinfer.ops import Attention, Gated, Glu, Linears, Norm, Normalize, Op, Value
from cpuinfer.quantize.attention_gradients import attend

Array = npt.NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Gradients:
    """Of a loss, by what it depends on; summed up where something is read more than once."""

    values: dict[Value, Array] = field(default_factory=dict)
    weights: dict[str, Array] = field(default_factory=dict)
    wanted: frozenset[str] | None = None
    """The weights whose gradients are computed; None for all matrices."""

    def to_value(self, value: Value, gradient: Array) -> None:
        """Add to a value's."""
        have = self.values.get(value)
        self.values[value] = gradient if have is None else have + gradient

    def wants(self, name: str) -> bool:
        """Whether a weight's is asked for."""
        return self.wanted is None or name in self.wanted

    def to_weight(self, name: str, gradient: Array) -> None:
        """Add to a weight's."""
        have = self.weights.get(name)
        self.weights[name] = gradient if have is None else have + gradient


Back = Callable[[Gradients], None]
Tensors = Mapping[str, Array]


def forward(
    ops: Sequence[Op], values: Mapping[Value, Array], tensors: Tensors
) -> tuple[dict[Value, Array], list[Back]]:
    """Run ops on values [sequences, positions, width]; gives all values, and what `backward` takes.

    tensors: every tensor by its name.  Raises UnsupportedModel for an op that has no gradient here (experts).
    """
    found, backs = dict(values), []
    for op in ops:
        outs, back = _RUN[type(op)](op, found, tensors) if type(op) in _RUN else _refuse(op)
        found.update(outs)
        backs.append(back)
    return found, backs


def backward(
    backs: Sequence[Back], gradients: Mapping[Value, Array], *, wanted: frozenset[str] | None = None
) -> Gradients:
    """From the gradients of a loss by some values to those by everything before them."""
    collected = Gradients(dict(gradients), {}, wanted)
    for back in reversed(backs):
        back(collected)
    return collected


def _refuse(op: Op) -> tuple[dict[Value, Array], Back]:
    kind = type(op).__name__.lower()
    raise UnsupportedModel(f"{op.name}: no gradients for {kind}, expected linears, norms, glu, attention and gates")


def activation(z: Array, act: Activation | None) -> tuple[Array, Array]:
    """An activation function and its derivative, by element."""
    match act:
        case None:
            return z, np.ones_like(z)
        case "relu":
            slope = (z > 0).astype(z.dtype)
            return z * slope, slope
        case "silu":
            share = sigmoid(z)
            return z * share, share * (1 + z * (1 - share))
        case "gelu":
            share = (1 + _erf(z / z.dtype.type(np.sqrt(2)))) / 2
            return z * share, share + z * np.exp(-z * z / 2) / z.dtype.type(np.sqrt(2 * np.pi))
        case "gelu_tanh":
            factor = z.dtype.type(np.sqrt(2 / np.pi))
            tanh = np.tanh(factor * (z + 0.044715 * z**3))
            inner = factor * (1 + 3 * 0.044715 * z * z)
            return z * (1 + tanh) / 2, (1 + tanh) / 2 + z * (1 - tanh * tanh) * inner / 2


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), without overflow."""
    shared = 1 / (1 + np.exp(-np.abs(z)))
    found: Array = np.where(z >= 0, shared, 1 - shared)
    return found


def _erf(x: Array) -> Array:
    """Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: off by at most 1.5e-7."""
    t = 1 / (1 + 0.3275911 * np.abs(x))
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    found: Array = np.sign(x) * (1 - series * np.exp(-x * x))
    return found


def normalise(x: Array, norm: Norm, tensors: Tensors) -> tuple[Array, Callable[[Array], Array]]:
    """A norm over the last axis, and its gradient to x.

    With y = x / d, d = sqrt(mean x^2 + eps) and g the gradient by y: (g - y * mean(g * y)) / d; a layer norm centres
    x before and the gradient after.
    """
    centred = x - x.mean(axis=-1, keepdims=True) if norm.kind == "layer" else x
    inverse = 1 / np.sqrt(np.mean(centred * centred, axis=-1, keepdims=True) + x.dtype.type(norm.eps))
    scaled = centred * inverse
    factor = tensors[norm.weight] + x.dtype.type(norm.offset)
    out = scaled * factor if norm.bias is None else scaled * factor + tensors[norm.bias]

    def back(gradient: Array) -> Array:
        g = gradient * factor
        inner: Array = (g - scaled * np.mean(g * scaled, axis=-1, keepdims=True)) * inverse
        return inner - inner.mean(axis=-1, keepdims=True) if norm.kind == "layer" else inner

    return out, back


def _read(x: Array, norm: Norm | None, tensors: Tensors) -> tuple[Array, Callable[[Array], Array]]:
    return (x, lambda gradient: gradient) if norm is None else normalise(x, norm, tensors)


def _affine(x: Array, name: str, bias: str | None, tensors: Tensors) -> Array:
    """W x + b, as one product of all rows."""
    product = x.reshape(-1, x.shape[-1]) @ tensors[name].T
    out: Array = product if bias is None else product + tensors[bias]
    return out.reshape(*x.shape[:-1], -1)


def _affine_back(gradient: Array, x: Array, name: str, tensors: Tensors, collected: Gradients) -> Array:
    """The weight's gradient collected, x's given back."""
    rows = gradient.reshape(-1, gradient.shape[-1])
    if collected.wants(name):
        collected.to_weight(name, rows.T @ x.reshape(-1, x.shape[-1]))
    by_x: Array = rows @ tensors[name]
    return by_x.reshape(x.shape)


def _linears(op: Op, values: Mapping[Value, Array], tensors: Tensors) -> tuple[dict[Value, Array], Back]:
    if not isinstance(op, Linears):
        raise TypeError(op)
    x, read_back = _read(values[op.x], op.norm, tensors)
    outs, slopes = {}, []
    for name, bias, out in zip(op.weights, op.biases, op.outs, strict=True):
        y, slope = activation(_affine(x, name, bias, tensors), op.act)
        if op.softcap:
            tanh = np.tanh(y / op.softcap)
            y, slope = op.softcap * tanh, slope * (1 - tanh * tanh)
        outs[out] = y
        slopes.append(slope if op.act is not None or op.softcap else None)
    if op.residual is not None:
        outs[op.outs[0]] = outs[op.outs[0]] + values[op.residual]

    def back(collected: Gradients) -> None:
        total: Array | None = None
        for i, (name, out) in enumerate(zip(op.weights, op.outs, strict=True)):
            gradient = collected.values.get(out)
            if gradient is None:
                continue
            if i == 0 and op.residual is not None:
                collected.to_value(op.residual, gradient)
            slope = slopes[i]
            part = _affine_back(gradient if slope is None else gradient * slope, x, name, tensors, collected)
            total = part if total is None else total + part
        if total is not None:
            collected.to_value(op.x, read_back(total))

    return outs, back


def _glu(op: Op, values: Mapping[Value, Array], tensors: Tensors) -> tuple[dict[Value, Array], Back]:
    if not isinstance(op, Glu):
        raise TypeError(op)
    x, read_back = _read(values[op.x], op.norm, tensors)
    gate, slope = activation(_affine(x, op.gate, op.biases[0], tensors), op.act)
    up = _affine(x, op.up, op.biases[1], tensors)

    def back(collected: Gradients) -> None:
        gradient = collected.values.get(op.out)
        if gradient is None:
            return
        total = _affine_back(gradient * up * slope, x, op.gate, tensors, collected)
        total = total + _affine_back(gradient * gate, x, op.up, tensors, collected)
        collected.to_value(op.x, read_back(total))

    return {op.out: gate * up}, back


def _normalize(op: Op, values: Mapping[Value, Array], tensors: Tensors) -> tuple[dict[Value, Array], Back]:
    if not isinstance(op, Normalize):
        raise TypeError(op)
    x = values[op.x]
    y, norm_back = normalise(x.reshape(*x.shape[:-1], op.groups, -1), op.norm, tensors)
    out = y.reshape(x.shape)

    def back(collected: Gradients) -> None:
        gradient = collected.values.get(op.out)
        if gradient is None:
            return
        if op.residual is not None:
            collected.to_value(op.residual, gradient)
        collected.to_value(op.x, norm_back(gradient.reshape(y.shape)).reshape(x.shape))

    return {op.out: out if op.residual is None else out + values[op.residual]}, back


def _gated(op: Op, values: Mapping[Value, Array], _: Tensors) -> tuple[dict[Value, Array], Back]:
    if not isinstance(op, Gated):
        raise TypeError(op)
    x, share = values[op.x], sigmoid(values[op.gate])
    out = x * share

    def back(collected: Gradients) -> None:
        gradient = collected.values.get(op.out)
        if gradient is None:
            return
        if op.residual is not None:
            collected.to_value(op.residual, gradient)
        collected.to_value(op.x, gradient * share)
        collected.to_value(op.gate, (gradient * x).sum(axis=-1, keepdims=True) * share * (1 - share))

    return {op.out: out if op.residual is None else out + values[op.residual]}, back


def _attention(op: Op, values: Mapping[Value, Array], _: Tensors) -> tuple[dict[Value, Array], Back]:
    if not isinstance(op, Attention):
        raise TypeError(op)
    out, attend_back = attend(op, values[op.q], values[op.k], values[op.v])

    def back(collected: Gradients) -> None:
        gradient = collected.values.get(op.out)
        if gradient is None:
            return
        for value, part in zip((op.q, op.k, op.v), attend_back(gradient), strict=True):
            collected.to_value(value, part)

    return {op.out: out}, back


_Run = Callable[[Op, Mapping[Value, Array], Tensors], tuple[dict[Value, Array], Back]]
_RUN: dict[type, _Run] = {
    Linears: _linears,
    Glu: _glu,
    Normalize: _normalize,
    Gated: _gated,
    Attention: _attention,
}
