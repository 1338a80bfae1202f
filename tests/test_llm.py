"""The front door on a tiny model: batches, streams, stops, seeds, cancelling, threads, and requests that are wrong."""

from __future__ import annotations

import _thread
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from cpuinfer import LLM, SamplingParams, describe
from cpuinfer.errors import (
    Cancelled,
    CheckpointError,
    ContextFull,
    InvalidRequest,
    MemoryLimit,
    NumericalError,
    UnsupportedCpu,
    UnsupportedModel,
)
from tiny_gguf import write_tiny_llama

GREEDY = SamplingParams(temperature=0, max_tokens=24, ignore_eos=True)
SAMPLED = SamplingParams(temperature=1.5, min_p=0.02, max_tokens=24, seed=7, ignore_eos=True)
PROMPTS = ["The", "Why is the sky blue?", "1, 2, 3, 4, 5,", "naïve café 日本語 🙂", "a" * 100, " ", "\n\n", "x y z"]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model, threads=2) as model:
        yield model


def test_the_sizes_a_description_states_are_those_the_core_takes(tiny_model: Path, llm: LLM) -> None:
    assert describe.describe(tiny_model).memory.weights == llm._session.weight_bytes
    assert describe.page_bytes(llm.config) == llm._session.page_bytes


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_prompts_of_a_batch_get_the_tokens_they_get_alone(llm: LLM, params: SamplingParams) -> None:
    batch = llm.generate(PROMPTS * 2, params)
    alone = [llm.generate(prompt, params) for prompt in PROMPTS]
    assert [completion.token_ids for completion in batch] == [completion.token_ids for completion in alone] * 2
    assert [completion.text for completion in batch] == [completion.text for completion in alone] * 2


def test_the_same_seed_gives_the_same_tokens_on_any_threads(tiny_model: Path, llm: LLM) -> None:
    expected = llm.generate(PROMPTS, SAMPLED)
    for threads in (1, 3):
        with LLM(tiny_model, threads=threads) as other:
            found = other.generate(PROMPTS, SAMPLED)
        assert [completion.token_ids for completion in found] == [completion.token_ids for completion in expected]


def test_the_same_seed_gives_the_same_tokens_on_any_instruction_set_if_deterministic(tiny_model: Path) -> None:
    answers = []
    for isa in (None, "scalar"):
        with LLM(tiny_model, threads=2, isa=isa, deterministic=True) as llm:
            answers.append([completion.token_ids for completion in llm.generate(PROMPTS, SAMPLED)])
    assert answers[0] == answers[1]


def test_a_drawn_seed_is_reported_and_repeats_the_answer(llm: LLM) -> None:
    free = SamplingParams(temperature=1.5, max_tokens=12)
    first, second = llm.generate("The", free), llm.generate("The", free)
    assert first.seed != second.seed
    again = llm.generate("The", SamplingParams(temperature=1.5, max_tokens=12, seed=first.seed))
    assert again.token_ids == first.token_ids


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_stream_joined_is_the_completion(llm: LLM, prompt: str) -> None:
    chunks = list(llm.stream(prompt, SAMPLED))
    whole = llm.generate(prompt, SAMPLED)
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert [chunk.finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason == "length"
    assert chunks[-1].timings is not None
    assert chunks[-1].timings.generated_tokens == 24


def test_greedy_tokens_are_the_highest_logits(llm: LLM) -> None:
    completion = llm.generate("Why", GREEDY)
    ids = completion.prompt_token_ids + completion.token_ids
    rows = llm.logits(ids[:-1])[len(completion.prompt_token_ids) - 1 :]
    assert completion.token_ids == rows.argmax(axis=1).tolist()


def test_logprobs_are_those_of_the_logits(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, max_tokens=6, seed=3, logprobs=2, ignore_eos=True)
    completion = llm.generate("Why", params)
    assert completion.logprobs is not None
    rows = llm.logits(completion.prompt_token_ids + completion.token_ids[:-1]).astype(np.float64)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    rows = rows[len(completion.prompt_token_ids) - 1 :]
    for entry, row, token in zip(completion.logprobs, rows, completion.token_ids, strict=True):
        assert entry.token_id == token
        assert entry.logprob == pytest.approx(row[token], abs=1e-5)
        assert [index for index, _ in entry.top] == np.argsort(-row, kind="stable")[:2].tolist()


def test_scores_are_those_of_the_logits(llm: LLM) -> None:
    scores = llm.score(["Why is the sky blue?", "The end."])
    for score in scores:
        rows = llm.logits(score.token_ids).astype(np.float64)
        rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
        expected = rows[np.arange(len(rows) - 1), score.token_ids[1:]]
        assert score.logprobs[0] is None
        np.testing.assert_allclose(np.array(score.logprobs[1:], dtype=float), expected, atol=1e-5)
    assert llm.score("The end.") == scores[1]


def test_a_stop_string_ends_the_answer_before_it_even_across_tokens(llm: LLM) -> None:
    whole = llm.generate("Why", GREEDY).text
    stop = whole[7:10]
    cut = llm.generate("Why", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop=stop))
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"


def test_a_stop_token_ends_the_answer_and_is_not_text(llm: LLM) -> None:
    whole = llm.generate("Why", GREEDY)
    token = whole.token_ids[5]
    first = whole.token_ids.index(token)
    cut = llm.generate("Why", SamplingParams(temperature=0, max_tokens=24, ignore_eos=True, stop_token_ids=[token]))
    assert cut.finish_reason == "stop"
    assert cut.token_ids == whole.token_ids[: first + 1]
    assert cut.text == llm.tokenizer.decode(whole.token_ids[:first], skip_special=True)


def test_max_tokens_counts_exactly(llm: LLM) -> None:
    for count in (1, 2, 3):
        completion = llm.generate("Why", SamplingParams(max_tokens=count, ignore_eos=True))
        assert len(completion.token_ids) == count
        assert completion.finish_reason == "length"


def test_an_answer_ends_where_the_context_is_full(tiny_model: Path) -> None:
    with LLM(tiny_model, context=40, threads=1) as llm:
        completion = llm.generate([3] * 33, SamplingParams(temperature=0, ignore_eos=True))
        assert completion.finish_reason == "length"
        assert len(completion.token_ids) == 8  # 33 + 7 fill the context; the last token needs no place
        full = llm.generate([3] * 40, SamplingParams(temperature=0, ignore_eos=True))
        assert len(full.token_ids) == 1


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(tiny_model: Path) -> None:
    with LLM(tiny_model, context=40, threads=1) as llm:
        with pytest.raises(ContextFull, match=r"41 tokens.*context of 40"):
            llm.generate([3] * 41)
        assert llm.generate([3] * 4, SamplingParams(max_tokens=2, ignore_eos=True)).token_ids


@pytest.mark.parametrize("prompt", ["", [[]], [-1], [10**9], [1, "x"], [True]])
def test_a_prompt_that_is_none_is_refused(llm: LLM, prompt: object) -> None:
    with pytest.raises(InvalidRequest):
        llm.generate(prompt)  # type: ignore[call-overload]


def test_an_empty_list_of_prompts_gives_an_empty_list(llm: LLM) -> None:
    assert llm.generate([]) == []
    assert llm.score([]) == []


def test_chat_goes_through_the_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "Why?"}]
    completion = llm.chat(messages, GREEDY)
    text = llm.tokenizer.decode(completion.prompt_token_ids)
    assert text == (
        "<|im_start|>system\nYou answer briefly.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert "".join(chunk.text for chunk in llm.stream_chat(messages, GREEDY)) == completion.text


def test_leaving_a_stream_early_frees_what_it_held(llm: LLM) -> None:
    for _ in range(200):
        stream = llm.stream("Why is the sky blue?", SamplingParams(ignore_eos=True))
        next(stream)
        stream.close()
    assert llm._session.pages_used == 0


def test_cancel_from_another_thread_ends_a_generation_with_its_text_so_far(llm: LLM) -> None:
    long = SamplingParams(temperature=0, ignore_eos=True)
    chunks = []
    for i, chunk in enumerate(llm.stream("Why", long)):
        chunks.append(chunk)
        if i == 3:
            threading.Thread(target=llm.cancel).start()
    assert chunks[-1].finish_reason == "cancelled"
    assert 4 <= sum(len(chunk.token_ids) for chunk in chunks) < 500
    assert llm.generate("Why", GREEDY).finish_reason == "length"


@pytest.mark.parametrize("method", ["score", "logits"])
def test_scores_and_logits_that_are_cancelled_are_an_error_and_never_fewer_than_there_are_tokens(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    engine = llm._engine
    assert engine is not None
    submit = engine.submit
    monkeypatch.setattr(engine, "submit", lambda request: (submit(request), llm.cancel()))
    with pytest.raises(Cancelled, match="cancelled before its end"):
        getattr(llm, method)("Why is the sky blue?")


def test_cancel_and_ctrl_c_stop_a_long_prompt_within_a_step(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "wide.gguf", layers=40, hidden=512, feed_forward=2048, heads=8, context=4096)
    with LLM(path, threads=1, isa="scalar") as llm:
        start = time.perf_counter()
        llm.generate([3] * 16, SamplingParams(max_tokens=1, ignore_eos=True))
        whole = (time.perf_counter() - start) * 4000 / 16
        threading.Timer(0.3, llm.cancel).start()
        start = time.perf_counter()
        completion = llm.generate([3] * 4000, SamplingParams(max_tokens=1, ignore_eos=True))
        assert completion.finish_reason == "cancelled"
        assert completion.token_ids == []
        assert time.perf_counter() - start < whole / 2
        threading.Timer(0.3, _thread.interrupt_main).start()
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt):
            llm.generate([3] * 4000, SamplingParams(max_tokens=1, ignore_eos=True))
        assert time.perf_counter() - start < whole / 2
        assert llm._session.pages_used == 0


def test_threads_share_a_model_and_each_gets_its_own_answer(llm: LLM) -> None:
    expected = {prompt: llm.generate(prompt, SAMPLED).token_ids for prompt in PROMPTS}
    found: dict[str, list[int]] = {}

    def ask(prompt: str) -> None:
        found[prompt] = [token for chunk in llm.stream(prompt, SAMPLED) for token in chunk.token_ids]

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == expected


def test_more_requests_than_the_cache_holds_wait_their_turn(tiny_model: Path) -> None:
    with LLM(tiny_model, threads=2) as llm:
        llm._engine._cache_pages = 12  # of 32 tokens, where one answer of 300 needs 10
        params = SamplingParams(temperature=0, max_tokens=300, ignore_eos=True)
        completions = llm.generate([[3, 4, 5]] * 5, params)
        assert [len(completion.token_ids) for completion in completions] == [300] * 5
        assert llm._session.pages_used == 0


def test_a_prompt_that_begins_as_another_did_computes_only_the_rest(tiny_model: Path) -> None:
    text = [token % 50 + 3 for token in range(200)]
    with LLM(tiny_model, threads=2, prefix_cache=0) as llm:
        expected = {n: llm.generate(text[:n], SAMPLED) for n in (1, 17, 32, 33, 65, 200)}
        assert {answer.timings.reused_tokens for answer in expected.values()} == {0}
    with LLM(tiny_model, threads=2) as llm:
        llm.generate(text, GREEDY)
        for n, alone in expected.items():
            answer = llm.generate(text[:n], SAMPLED)
            assert answer.timings.reused_tokens == (n - 1) // 32 * 32
            assert answer.token_ids == alone.token_ids
        scores, rows = llm.score([text])[0], llm.logits(text)  # every row is wanted: nothing is skipped
        assert len(scores.logprobs) == len(rows) == 200
        assert llm._session.pages_used == 0


def test_a_conversation_computes_what_is_new_of_it(tiny_model: Path) -> None:
    with LLM(tiny_model, threads=2, deterministic=True) as llm:
        begun = list(range(3, 43))
        answer = llm.generate(begun, SamplingParams(temperature=0, max_tokens=30, ignore_eos=True))
        again = llm.generate([*begun, *answer.token_ids, 5, 6], GREEDY)
        assert again.timings.reused_tokens == 64


def test_prompts_of_one_list_share_what_the_first_has_computed(tiny_model: Path) -> None:
    shared = [token % 50 + 3 for token in range(500)]
    prompts = [[*shared, token] for token in range(3, 9)]
    with LLM(tiny_model, threads=2, prefix_cache=0) as llm:
        expected = [answer.token_ids for answer in llm.generate(prompts, SAMPLED)]
    with LLM(tiny_model, threads=2) as llm:
        answers = llm.generate(prompts, SAMPLED)
        assert [answer.token_ids for answer in answers] == expected
        assert [answer.timings.reused_tokens for answer in answers] == [0, 480, 480, 480, 480, 480]


def test_pages_are_kept_only_as_far_as_asked_and_never_at_the_cost_of_a_request(tiny_model: Path) -> None:
    with LLM(tiny_model, threads=2, prefix_cache=100) as llm:
        for first in range(3, 30):
            llm.generate([first] * 100, GREEDY)
            assert llm._session.pages_kept <= 4
    with LLM(tiny_model, threads=2, context=64) as llm:
        for first in range(3, 30):
            assert len(llm.generate([first] * 40, GREEDY).token_ids) == 24


@pytest.mark.parametrize("positions", [-1, True, 1.5, "64"])
def test_a_prefix_cache_of_no_size_is_refused(tiny_model: Path, positions: object) -> None:
    with pytest.raises(InvalidRequest, match="prefix_cache"):
        LLM(tiny_model, prefix_cache=positions)  # type: ignore[arg-type]


def test_a_model_that_yields_nan_is_an_error_and_not_a_token(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "nan.gguf", encoding="F32")
    data = bytearray(path.read_bytes())
    data[-200_00:-196_00] = np.full(100, np.nan, np.float32).tobytes()
    path.write_bytes(data)
    with LLM(path, threads=2) as llm, pytest.raises(NumericalError):
        llm.generate("Why", GREEDY)


def test_a_fork_is_told_to_load_its_own_model(llm: LLM) -> None:
    llm.generate("Why", GREEDY)
    child = os.fork()
    if child == 0:
        try:
            llm.generate("Why", GREEDY)
        except InvalidRequest:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_fork_amid_a_step_is_told_so_too(tiny_model: Path) -> None:
    with LLM(tiny_model, threads=2) as llm:
        begun = llm.stream("Why", SamplingParams(temperature=0, ignore_eos=True))
        next(begun)
        llm._engine._stepping = True  # type: ignore[union-attr]  # as while another thread steps
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            refused = 0
            for ask in (lambda: llm.generate("Why", GREEDY), lambda: list(begun)):
                try:
                    ask()
                except InvalidRequest:
                    refused += 1
            llm.cancel()
            os._exit(2 - refused)
        llm._engine._stepping = False  # type: ignore[union-attr]
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_a_model_is_replaced_in_a_fork(tiny_model: Path) -> None:
    held = [LLM(tiny_model, threads=2)]
    child = os.fork()
    if child == 0:
        held.append(LLM(tiny_model, threads=2))
        del held[0]
        held[0].generate("Why", GREEDY)
        held[0].close()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threads": 0}, InvalidRequest),
        ({"threads": 2.5}, InvalidRequest),
        ({"context": 0}, InvalidRequest),
        ({"context": 10**15}, MemoryLimit),
        ({"isa": "sse9"}, UnsupportedCpu),
        ({"isa": 3}, InvalidRequest),
        ({"deterministic": "no"}, InvalidRequest),
        ({"cache_packed": None}, InvalidRequest),
        ({"keep_values": 1}, InvalidRequest),
        ({"profile": "x"}, InvalidRequest),
    ],
)
def test_bad_options_are_refused(tiny_model: Path, options: dict[str, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        LLM(tiny_model, **options)


def test_a_closed_model_says_so(tiny_model: Path) -> None:
    llm = LLM(tiny_model, threads=1)
    llm.close()
    with pytest.raises(InvalidRequest, match="closed"):
        llm.generate("Why")


def test_a_tensor_the_architecture_does_not_know_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "extra.gguf"
    path.write_bytes(tiny_model.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_drop.weight"))
    with pytest.raises(UnsupportedModel, match=r"blk\.1\.ffn_drop\.weight"):
        LLM(path)


def test_a_signal_that_raises_at_any_moment_leaves_the_model_whole(llm: LLM) -> None:
    class Stop(BaseException):
        pass

    def stop(*_: object) -> None:
        raise Stop

    params = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)
    prompts = [[3 + i, 4, 5 + i] for i in range(6)]
    start = time.perf_counter()
    expected = [completion.token_ids for completion in llm.generate(prompts, params)]
    span = time.perf_counter() - start
    random = np.random.default_rng(8)
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for _ in range(400):
            with contextlib.suppress(Stop):
                signal.setitimer(signal.ITIMER_REAL, random.uniform(1e-6, span))
                llm.generate(prompts, params)
                signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert [completion.token_ids for completion in llm.generate(prompts, params)] == expected
    assert llm._session.pages_used == 0


def test_a_result_lost_to_a_signal_is_an_error_and_no_wrong_answer(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = llm.stream([9, 9, 9], GREEDY)
    next(stream)
    engine = llm._engine
    assert engine is not None

    class Interrupted:
        def __getattr__(self, name: str) -> object:
            return getattr(llm._session, name)

        def step(self, feeds: object) -> object:
            llm._session.step(feeds)
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(engine, "_session", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            llm.generate("Why", GREEDY)
    with pytest.raises(Cancelled, match="signal"):
        list(stream)
    assert llm._session.pages_used == 0
    assert llm.generate("Why", GREEDY).finish_reason == "length"


def test_the_interpreter_exits_while_a_daemon_thread_generates(tiny_model: Path) -> None:
    script = (
        "import sys, threading, time\n"
        "from cpuinfer import LLM, SamplingParams\n"
        "llm = LLM(sys.argv[1], threads=2)\n"
        "def work():\n"
        "    while True: llm.generate([[3, 4, 5]] * 4, SamplingParams(max_tokens=200, ignore_eos=True))\n"
        "for _ in range(2): threading.Thread(target=work, daemon=True).start()\n"
        "time.sleep(0.1)\n"
    )
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", script, str(tiny_model)], check=False, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_partial_results_of_a_long_context_count_as_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tiny_llama(tmp_path / "long.gguf", context=2**30)
    monkeypatch.setattr("cpuinfer.machine.available_memory", lambda: 8 << 20)
    with LLM(path, threads=2) as llm:  # each page of 32 positions: 8 KiB of keys and values
        # and a sixteenth of the parts of a segment: 4 rows of 4 heads, each 32 values and 16 more in fp32.
        assert llm.context == (4 << 20) // ((8 << 10) + 4 * 4 * 48 * 4 // 16) * 32
    with pytest.raises(MemoryLimit, match="scratch"):
        LLM(path, threads=1024, context=8192)


def test_sizes_that_the_tensors_contradict_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add = gguf.GGUFWriter.add_embedding_length
    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "add_embedding_length", lambda writer, _: add(writer, 128))
        path = write_tiny_llama(tmp_path / "width.gguf")
    with pytest.raises(CheckpointError, match=r"token_embd\.weight.*expected \(\*, 128\)"):
        LLM(path)
    with monkeypatch.context() as patched:
        patched.setattr(gguf.GGUFWriter, "add_rope_dimension_count", lambda writer, _: writer.add_key_length(8))
        path = write_tiny_llama(tmp_path / "head.gguf")
    with pytest.raises(UnsupportedModel, match="heads of 8"):
        LLM(path)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda llm: llm.generate(5), "the prompt is 5, expected text or token ids"),
        (lambda llm: llm.generate(b"Why"), "the prompt is b'Why', expected text or token ids"),
        (lambda llm: llm.generate(["Why", b"Why"]), "prompt 1 is b'Why', expected text or token ids"),
        (lambda llm: llm.score(b"Why"), "the text is b'Why', expected text or token ids"),
        (lambda llm: llm.generate(None), "the prompt is None"),
        (lambda llm: llm.generate(["a", ""]), "prompt 1 is empty"),
        (lambda llm: llm.generate("a", {"temperature": 0}), "params: .*, expected SamplingParams"),
        (lambda llm: next(llm.stream(7)), "the prompt is 7"),
        (lambda llm: llm.score(7), "the text is 7, expected text or token ids"),
        (lambda _: LLM(5), "model: 5, expected a path or a name"),
    ],
)
def test_arguments_of_another_type_are_refused_as_bad_requests(tiny_model: Path, call, message: str) -> None:
    with LLM(tiny_model) as llm, pytest.raises(InvalidRequest, match=message):
        call(llm)
