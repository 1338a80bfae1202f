"""The native runtime against the oracle: every op within a bound derived from the quantisation step, and equal bits
whatever the instruction set, the threads, the batch and the chunks of a prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from cpuinfer import _core, loader
from cpuinfer.config import Rope
from cpuinfer.errors import UnsupportedModel
from cpuinfer.formats.canonical import BlockLayout
from cpuinfer.loader import Blueprint
from cpuinfer.ops import Attention, Embed, Experts, Glu, Linears, Op, Value
from cpuinfer.reference import Reference, quantisation_step, rotate
from kept_attention import attention_bound
from published_models import packed, write_published_llama
from tiny_gguf import write_tiny_llama

Array = npt.NDArray[np.float64]
UNIT = 2.0**-24  # half the spacing of fp32 at 1: the most a rounding adds, relatively
HALF = 2.0**-11  # the same of fp16
USABLE = [entry["name"] for entry in _core.kernel_sets() if entry["usable"]]
ENCODINGS = ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "F16", "BF16", "F32", "MXFP4"]
BLOCKS_OF_256 = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "IQ2_S", "IQ3_XXS", "IQ1_S"]
MIXTURES = ["gptq in order of activations, experts", "nf4, experts"]  # all experts used: rounding chooses none
PUBLISHED = ["gptq", "gptq in order of activations", "awq", "auto-round", "compressed-tensors", "nf4", "hqq"]


def make_session(blueprint: Blueprint, *, isa: str = "", threads: int = 2, batch: int = 64, **options: bool):
    return _core.Session(
        loader.load_program(blueprint, threads=2),
        isa=isa,
        threads=threads,
        batch=batch,
        context=512,
        cache_pages=64,
        **options,
    )


def logits(session: _core.Session, tokens: list[int], *, chunk: int = 64) -> npt.NDArray[np.float32]:
    sequence = session.open()
    rows = []
    for begin in range(0, len(tokens), chunk):
        rows.append(session.step([(sequence, tokens[begin : begin + chunk], "logits", None)])[0])
    session.close(sequence)
    return np.concatenate(rows)


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return np.random.default_rng(5).integers(0, 250, 50).tolist()


@pytest.fixture(scope="module", params=[*ENCODINGS, *BLOCKS_OF_256, *PUBLISHED, *MIXTURES])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Blueprint:
    folder = tmp_path_factory.mktemp("parity")
    method, _, mixture = request.param.partition(", experts")
    if method in PUBLISHED:
        write_published_llama(folder, method, experts=3 if mixture else 0)
        return loader.open_model(folder)
    path = folder / f"{request.param}.gguf"
    sizes = {"hidden": 256, "feed_forward": 256} if request.param in BLOCKS_OF_256 else {}
    write_tiny_llama(path, encoding=request.param, tied=request.param != "Q8_0", seed=3, **sizes)
    return loader.open_model(path)


@dataclass(frozen=True)
class Read:
    """What a linear reads: the exact input, and how far the native one may be from it, elementwise."""

    x: Array
    off: Array

    @classmethod
    def of(cls, x: Array, normed: bool) -> Read:
        """A norm in fp32: the sum of k squares in 16 lanes, a division, a root, two products: k / 16 + 10 roundings."""
        return cls(x, (x.shape[-1] / 16 + 10) * UNIT * np.abs(x) if normed else np.zeros_like(x))


def linear_bound(read: Read, blueprint: Blueprint, weight: str, rows: slice = slice(None)) -> Array:
    """Of W x, by what it reads and the rounding of its sums.

    Quantising: half a step, taken from a largest magnitude that is off by as much; groups in an order of the weight's
    own may be anywhere in the row.
    Codes and zero point are multiplied apart from a bias: their terms may exceed the weight they add up to.
    Published scales are rounded to fp16, tables to steps of their largest number / 32512, which is that of a group.
    """
    x, k = np.abs(read.x), read.x.shape[-1]
    tensor = blueprint.tensor(weight)
    exact = np.abs(blueprint.weight(weight)[rows])
    largest = exact.max(axis=1, keepdims=True)
    terms = exact + 2 * largest if tensor.has_bias or tensor.layout in get_args(BlockLayout) else exact
    if tensor.is_float:
        return read.off @ exact.T + ((k + 2) * UNIT * (x + read.off)) @ terms.T
    step = quantisation_step(x + read.off)
    if tensor.input_order is not None:
        step = step.max(axis=-1, keepdims=True)
    off = read.off + step / 2 * (1 + 4 * UNIT)
    bound = off @ exact.T + ((2 * k / 32 + 4) * UNIT * (x + step)) @ terms.T
    if blueprint.source.kind == "safetensors":
        bound += (x + off) @ (HALF * terms + largest / 32512).T
    return bound


def glu_bound(read: Read, blueprint: Blueprint, gate: str, up: str, rows: slice = slice(None)) -> Read:
    """silu(W x) * V x, and how far it may be off."""
    z, y = (read.x @ blueprint.weight(name)[rows].T for name in (gate, up))
    gate_off, up_off = (linear_bound(read, blueprint, name, rows) for name in (gate, up))
    silu = z / (1 + np.exp(-z))
    # |d silu / dz| < 1.1; exp in fp32 within 4 roundings, then a sum, a quotient and a product.
    silu_off = 1.1 * gate_off + 8 * UNIT * (np.abs(silu) + 1.1 * gate_off)
    return Read(silu * y, silu_off * (np.abs(y) + up_off) + np.abs(silu) * up_off + UNIT * np.abs(silu * y))


def experts_bound(op: Experts, read: Read, blueprint: Blueprint) -> Array:
    """Of a mixture that uses all its experts; logits off by d change a share by a factor within exp(2 d)."""
    logits = read.x @ blueprint.weight(op.router).T
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    share_off = share * np.expm1(2 * linear_bound(read, blueprint, op.router).max(axis=1, keepdims=True) + UNIT)
    bound = np.zeros_like(read.x)
    inner, hidden = (len(blueprint.weight(name)) // op.experts for name in (op.gate, op.down))
    for e in range(op.experts):
        glu = glu_bound(read, blueprint, op.gate, op.up, slice(e * inner, (e + 1) * inner))
        rows = slice(e * hidden, (e + 1) * hidden)
        exact = np.abs(glu.x @ blueprint.weight(op.down)[rows].T)
        off = linear_bound(glu, blueprint, op.down, rows)
        p, p_off = share[:, e, None], share_off[:, e, None]
        bound += p * off + p_off * (exact + off) + (op.experts + 2) * UNIT * (p + p_off) * (exact + off)
    return bound


def op_bound(op, values: dict[Value, Array], reference: Reference, blueprint: Blueprint) -> dict[Value, Array]:
    """The most each output may differ from the oracle's, given the same inputs."""
    match op:
        case Embed():
            return {op.out: 2 * UNIT * np.abs(blueprint.weight(op.table)).max()}
        case Linears():
            read = Read.of(reference._read(values[op.x], op.norm), op.norm is not None)
            return {
                out: plus(linear_bound(read, blueprint, name), read.x @ blueprint.weight(name).T, op, values)
                for name, out in zip(op.weights, op.outs, strict=True)
            }
        case Glu():
            read = Read.of(reference._read(values[op.x], op.norm), op.norm is not None)
            return {op.out: glu_bound(read, blueprint, op.gate, op.up).off}
        case Experts():
            read = Read.of(reference._read(values[op.x], op.norm), op.norm is not None)
            exact = reference.apply(replace(op, residual=None), values, [0])[op.out]
            return {op.out: plus(experts_bound(op, read, blueprint), exact, op, values)}
        case Attention():
            return {op.out: attention_bound(op, values)}
    raise AssertionError(op)


def plus(bound: Array, exact: Array, op: Linears | Experts, values: dict[Value, Array]) -> Array:
    """A bound, and the rounding of adding the residual."""
    if op.residual is None:
        return bound
    return bound + UNIT * (np.abs(exact) + np.abs(values[op.residual]) + bound)


@pytest.mark.parametrize("experts", [0, 3])
def test_weights_in_an_order_of_their_own_multiply_the_inputs_they_mean(
    experts: int, tokens: list[int], tmp_path: Path
) -> None:
    write_published_llama(tmp_path, "gptq in order of activations", experts)
    model = loader.open_model(tmp_path)
    session = make_session(model, keep_values=True)
    found = {model.logits: logits(session, tokens).astype(np.float64)}
    found |= {v: session.value(v.index, len(tokens)).astype(np.float64) for v in model.graph.values if v not in found}
    for op in model.graph.ops:
        for name in weights_of(op):
            mistaken = Reference(model.graph, lambda wanted, name=name: taken_as_it_comes(model, wanted, name))
            right = error(op, Reference(model.graph, model.weight), found, tokens)
            assert right < error(op, mistaken, found, tokens) / 5, name


def weights_of(op: Op) -> tuple[str, ...]:
    """Of those that mix inputs, the packed ones whose output is not turned in place."""
    match op:
        case Linears() if len(op.weights) == 1 and op.weights[0] != "lm_head":
            return op.weights
        case Glu():
            return (op.gate, op.up)
        case Experts():
            return (op.gate, op.up, op.down)
    return ()


def taken_as_it_comes(model: Blueprint, wanted: str, mistaken: str) -> Array:
    """A weight's values, of the mistaken one with the columns as its rows have them."""
    values, order = model.weight(wanted), model.tensor(wanted).input_order
    if wanted != mistaken:
        return values
    assert order is not None
    orders = order.reshape(-1, 1, values.shape[1])
    return np.take_along_axis(values.reshape(len(orders), -1, values.shape[1]), orders, axis=2).reshape(values.shape)


def error(op: Op, oracle: Reference, found: dict[Value, Array], tokens: list[int]) -> float:
    """Root mean square of what the op's output is off."""
    ((out, exact),) = oracle.apply(op, found, tokens).items()
    return float(np.sqrt(np.mean((found[out] - exact) ** 2)))


@pytest.mark.parametrize("isa", USABLE)
def test_every_op_is_within_the_bound_of_its_quantisation_step(model: Blueprint, tokens: list[int], isa: str) -> None:
    session = make_session(model, isa=isa, keep_values=True)
    found_logits = logits(session, tokens)
    native = {
        value: session.value(value.index, len(tokens)).astype(np.float64)
        for value in model.graph.values
        if value != model.logits
    }
    native[model.logits] = found_logits.astype(np.float64)
    unrotated = unrotated_inputs(model, native, tokens)
    reference = Reference(model.graph, model.weight)
    for op in model.graph.ops:
        inputs = {**native, **unrotated} if isinstance(op, Attention) else native
        expected = reference.apply(op, inputs, tokens)
        bounds = op_bound(op, inputs, reference, model)
        for out, value in expected.items():
            found = unrotated.get(out, native[out])
            excess = np.abs(found - value) - bounds[out]
            assert np.all(excess <= 0), (
                f"{op.name}: off by {np.abs(found - value).max()}, {excess.max()} over the bound"
            )


def unrotated_inputs(model: Blueprint, native: dict[Value, Array], tokens: list[int]) -> dict[Value, Array]:
    """Queries and keys are rotated in place: turn them back, to have them as their linear gave them."""
    back = {}
    for op in model.graph.ops:
        if not isinstance(op, Attention):
            continue
        for value, heads in ((op.q, op.heads), (op.k, op.kv_heads)):
            x = native[value].reshape(len(tokens), heads, -1)
            assert op.rope is not None
            back[value] = turn_back(x, op.rope).reshape(len(tokens), -1)
    return back


def turn_back(x: Array, rope: Rope) -> Array:
    """The inverse of a rotation: conjugate, turn, conjugate."""
    second = slice(1, rope.dims, 2) if rope.layout == "interleaved" else slice(rope.dims // 2, rope.dims)
    out = x.copy()
    out[..., second] *= -1
    out = rotate(out, rope)
    out[..., second] *= -1
    return out


def test_logits_are_the_same_bits_on_every_instruction_set(model: Blueprint, tokens: list[int]) -> None:
    expected = logits(make_session(model, isa="scalar", threads=1), tokens)
    for isa in USABLE:
        np.testing.assert_array_equal(logits(make_session(model, isa=isa), tokens), expected, err_msg=isa)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_logits_are_the_same_bits_for_any_threads_and_chunks(model: Blueprint, tokens: list[int], threads: int) -> None:
    expected = logits(make_session(model, threads=1), tokens)
    session = make_session(model, threads=threads)
    for chunk in (1, 7, 8, 9, 17, 33, 50):
        np.testing.assert_array_equal(logits(session, tokens, chunk=chunk), expected, err_msg=f"chunks of {chunk}")


def test_long_texts_have_the_same_bits_one_token_at_a_time(model: Blueprint) -> None:
    """Of few positions, a query is stored and answered in one phase, of more in two."""
    text = np.random.default_rng(7).integers(0, 250, 300).tolist()
    session = make_session(model)
    np.testing.assert_array_equal(logits(session, text, chunk=1), logits(session, text))


def test_a_sequence_has_the_same_bits_in_a_batch_as_alone(model: Blueprint) -> None:
    rng = np.random.default_rng(6)
    texts = [rng.integers(0, 250, length).tolist() for length in (1, 2, 17, 5, 12, 31, 33)]
    session = make_session(model, batch=128)
    alone = [logits(session, text, chunk=128) for text in texts]
    sequences = [session.open() for _ in texts]
    first = session.step([(s, text[:1], "logits", None) for s, text in zip(sequences, texts, strict=True)])
    rest = session.step(
        [(s, text[1:], "logits", None) for s, text in zip(sequences, texts, strict=True) if len(text) > 1]
    )
    rest.insert(0, np.empty((0, session.vocabulary), np.float32))
    for found_first, found_rest, expected in zip(first, rest, alone, strict=True):
        np.testing.assert_array_equal(np.concatenate([found_first, found_rest]), expected)


def test_scores_are_the_log_softmax_of_the_logits(model: Blueprint, tokens: list[int]) -> None:
    session = make_session(model)
    rows = logits(session, tokens).astype(np.float64)
    sequence = session.open()
    scores = session.step([(sequence, tokens, "scores", [*tokens[1:], -1])])[0]
    shifted = rows - rows.max(axis=1, keepdims=True)
    expected = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(scores[:-1], expected[np.arange(len(tokens) - 1), tokens[1:]], rtol=1e-6)
    assert scores[-1] == 0


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        (lambda s: [(s, [], "nothing", None)], "without tokens"),
        (lambda s: [(s, [10**6], "nothing", None)], "token id 1000000, expected 0 to"),
        (lambda s: [(s, [-1], "nothing", None)], "token id -1"),
        (lambda s: [(s, [1] * 65, "nothing", None)], "65 rows in a step, expected 1 to 64"),
        (lambda s: [(s, [1], "sample", None)], "no sampler"),
        (lambda s: [(s, [1], "scores", None)], "one target"),
        (lambda s: [(s, [1], "nothing", None), (s, [1], "nothing", None)], "fed twice"),
        (lambda s: [(s + 1, [1], "nothing", None)], "not open"),
        (lambda s: [(s, [1], "everything", None)], "expected nothing, sample"),
        (lambda _: [], "0 rows"),
    ],
)
def test_a_bad_step_is_refused_and_moves_nothing(model: Blueprint, feeds: Callable[[int], list], message: str) -> None:
    session = make_session(model)
    sequence = session.open()
    with pytest.raises(ValueError, match=message):
        session.step(feeds(sequence))
    assert session.length(sequence) == 0
    session.step([(sequence, [1, 2, 3], "nothing", None)])
    assert session.length(sequence) == 3


def rewrite(folder: Path, tensors: dict[str, npt.NDArray]) -> None:
    """Replace tensors of a folder; None leaves one out."""
    held = load_file(folder / "model.safetensors") | tensors
    save_file({name: held[name] for name in held if held[name] is not None}, folder / "model.safetensors")


def test_experts_with_different_tables_are_refused(tmp_path: Path) -> None:
    write_published_llama(tmp_path, "nf4", experts=3)
    name = "model.layers.1.block_sparse_moe.experts.2.w2.weight.quant_map"
    rewrite(tmp_path, {name: np.linspace(-1, 1, 16, dtype=np.float32)})
    with pytest.raises(UnsupportedModel, match=r"experts\.2\.w2.* and .*experts\.0\.w2.* are stored differently"):
        loader.open_model(tmp_path)


def test_weights_that_share_an_input_must_take_it_in_one_order(tmp_path: Path) -> None:
    method = "gptq in order of activations"
    write_published_llama(tmp_path, method)
    rewrite(tmp_path, {"model.layers.1.mlp.up_proj.g_idx": np.arange(64, dtype=np.int32)[::-1].copy() // 32})
    with pytest.raises(
        UnsupportedModel, match=r"layers\.1\.mlp\.gate_proj: weights that share an input take it in dif"
    ):
        loader.load_program(loader.open_model(tmp_path), threads=1)


def test_a_router_in_an_order_of_its_own_is_refused(tmp_path: Path) -> None:
    method = "gptq in order of activations"
    write_published_llama(tmp_path, method, experts=8)
    router = "model.layers.0.block_sparse_moe.gate"
    rewrite(tmp_path, {f"{router}.weight": None, **packed(method, router, (8, 64), np.random.default_rng(1))})
    with pytest.raises(UnsupportedModel, match="its columns are in another order"):
        loader.load_program(loader.open_model(tmp_path), threads=1)
