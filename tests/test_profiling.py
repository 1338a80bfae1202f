"""The profile of steps: its bytes and operations are counted here again, from shapes alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from cpuinfer import LLM, SamplingParams, describe
from cpuinfer.errors import InvalidRequest
from cpuinfer.profiling import OperatorTime, report

PROMPT, STEPS = 7, 5
GREEDY = SamplingParams(temperature=0, max_tokens=STEPS + 1, ignore_eos=True)
SEEN = [PROMPT + 1 + step for step in range(STEPS)]
"""Positions attended to in each step of decoding."""


@pytest.fixture(scope="module")
def times(tiny_model: Path) -> dict[tuple[str, str], OperatorTime]:
    with LLM(tiny_model, threads=2, profile=True) as llm:
        llm.generate(list(range(3, 3 + PROMPT)), GREEDY)
        return {(time.stage, time.name): time for time in llm.profile()}


def test_every_operator_is_measured_in_both_stages(times: dict[tuple[str, str], OperatorTime]) -> None:
    names = ["embed_tokens", "self_attn.q_proj", "self_attn.attention", "self_attn.o_proj", "mlp.gate_proj"]
    names += ["mlp.down_proj", "head", "sampling"]
    assert list(times) == [(stage, name) for stage in ("prompt", "decoding") for name in names]
    for (stage, name), time in times.items():
        prompt = stage == "prompt"
        assert time.layers == (2 if "." in name else 1)
        assert time.steps == (1 if prompt else STEPS)
        assert time.rows == (PROMPT if prompt and name not in ("head", "sampling") else time.steps)
        assert time.seconds > 0


def test_weights_are_read_once_a_step(times: dict[tuple[str, str], OperatorTime], tiny_model: Path) -> None:
    linears = ("self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj", "head")
    read = sum(times["decoding", name].bytes for name in linears) / STEPS
    norms = (2 * 2 + 1) * 64 * 4
    assert read + norms == describe.describe(tiny_model).bytes_per_token
    assert times["prompt", "mlp.down_proj"].bytes * STEPS == times["decoding", "mlp.down_proj"].bytes


def test_operations_are_those_of_the_shapes(times: dict[tuple[str, str], OperatorTime]) -> None:
    layers, hidden, heads, kv_heads, head_dim, inner = 2, 64, 4, 2, 16, 96
    gate_up = 2 * (2 * inner * hidden) * layers
    assert times["decoding", "mlp.gate_proj"].operations == gate_up * STEPS
    assert times["prompt", "mlp.gate_proj"].operations == gate_up * PROMPT
    attended = sum(range(1, PROMPT + 1))
    assert times["prompt", "self_attn.attention"].operations == 4 * heads * head_dim * attended * layers
    assert times["decoding", "self_attn.attention"].operations == 4 * heads * head_dim * sum(SEEN) * layers
    assert times["decoding", "self_attn.attention"].bytes == 2 * kv_heads * head_dim * 2 * sum(SEEN) * layers


def test_without_being_asked_nothing_is_measured(tiny_model: Path) -> None:
    with LLM(tiny_model, threads=1) as llm:
        expected = llm.generate("The", GREEDY).token_ids
        with pytest.raises(InvalidRequest, match="make the LLM with profile=True"):
            llm.profile()
    with LLM(tiny_model, threads=1, profile=True) as llm:
        assert llm.profile() == []
        assert llm.generate("The", GREEDY).token_ids == expected
    with pytest.raises(InvalidRequest, match="closed"):
        llm.profile()


def test_the_environment_asks_for_tables_on_standard_error(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run() -> str:
        with LLM(tiny_model, threads=1) as llm:
            llm.generate([5, 6], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
        printed = capsys.readouterr()
        assert printed.out == ""
        return printed.err

    monkeypatch.setenv("CPUINFER_PROFILE", "0")
    assert run() == ""
    monkeypatch.setenv("CPUINFER_PROFILE", "1")
    printed = run()
    assert "prompt: steps 1, tokens 2, reading at" in printed
    assert "decoding: steps 2, tokens 2, reading at" in printed


def test_a_step_whose_head_takes_several_rounds_is_one_step(tiny_model: Path) -> None:
    with LLM(tiny_model, threads=1, profile=True) as llm:
        llm.score([list(range(3, 43))])
        times = llm.profile()
    assert {time.name: time.steps for time in times if time.name in ("embed_tokens", "head")} == {
        "embed_tokens": 1,
        "head": 3,
    }
    assert report(times, read_bandwidth=1e9).startswith("prompt: steps 1, tokens 40, ")


def test_a_table_adds_up() -> None:
    times = [
        OperatorTime("decoding", "a", 3, 10, 10, 0.001, 3e7, 6e7),
        OperatorTime("decoding", "head", 1, 10, 10, 0.003, 3e7, 6e7),
    ]
    assert report(times, read_bandwidth=30e9).splitlines() == [
        "decoding: steps 10, tokens 10, reading at 30.0 GB/s",
        "operator  ops  ms/step    time  MB/step    GB/s  of read  GFLOP/s",
        "a           3    0.100   25.0%     3.00    30.0     100%     60.0",
        "head        1    0.300   75.0%     3.00    10.0      33%     20.0",
        "all         4    0.400  100.0%     6.00    15.0      50%     30.0",
    ]
