"""Perplexity and divergence against NumPy on the model's own logits, whatever the windows, batches and threads."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file

from cpuinfer import LLM
from cpuinfer.errors import CheckpointError, InvalidRequest
from cpuinfer.evaluate import divergence, perplexity, save_logits, scoring
from cpuinfer.evaluate.logits_file import LogitsFile
from cpuinfer.evaluate.rows import RowComparer
from cpuinfer.evaluate.windows import Windows
from tiny_gguf import write_tiny_llama

TEXT = "The other word in the hall was there, or on a wall: the water, the winter, the tower. Ärger & 3 Öre.\n" * 4

Array = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def llm(tiny_model: Path) -> Iterator[LLM]:
    with LLM(tiny_model, threads=2, deterministic=True) as model:
        yield model


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """The same but for its last matrices' rounding, so that it is near."""
    path = write_tiny_llama(tmp_path_factory.mktemp("other") / "other.gguf", encoding="Q8_0")
    with LLM(path, threads=2, deterministic=True) as model:
        yield model


@pytest.fixture
def begins_with_bos(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "_add_bos", True)


def log_softmax(logits: npt.NDArray[np.float32]) -> Array:
    values = logits.astype(np.float64)
    values -= values.max(axis=-1, keepdims=True)
    return values - np.log(np.exp(values).sum(axis=-1, keepdims=True))


def expected_logprobs(llm: LLM, windows: Windows, ids: list[int]) -> Array:
    """Of the tokens scored, each window being computed by itself, whole."""
    found = []
    for span in windows.spans(len(ids)):
        context, continuation = windows.pair(ids, span)
        rows = log_softmax(llm.logits([*context, *continuation]))[len(context) - 1 : -1]
        found += [row[token] for row, token in zip(rows, continuation, strict=True)]
    return np.array(found)


@pytest.mark.parametrize("bos", [None, 1])
@pytest.mark.parametrize(("window", "stride"), [(1, 1), (2, 1), (8, 3), (8, 8), (64, 16), (512, 256)])
@pytest.mark.parametrize("count", [2, 3, 8, 9, 10, 65, 100])
def test_windows_score_each_token_once_with_context(bos: int | None, window: int, stride: int, count: int) -> None:
    windows = Windows(window, stride, bos)
    first = 0 if bos is not None else 1
    spans = windows.spans(count)
    assert [i for span in spans for i in range(span.start, span.end)] == list(range(first, count))
    for i, span in enumerate(spans):
        context, continuation = windows.pair(list(range(100, 100 + count)), span)
        assert context
        assert (context[0] == bos) == (bos is not None)
        assert continuation == list(range(100 + span.start, 100 + span.end))
        assert len(context) + len(continuation) - 1 <= window
        text_before = len(context) - (bos is not None)
        if i:
            assert text_before >= min(span.start, window - stride - (bos is not None))


@pytest.mark.parametrize(("window", "stride"), [(512, 256), (40, 17), (33, 33), (64, 1)])
def test_perplexity_is_that_of_the_windows_own_logits(llm: LLM, window: int, stride: int) -> None:
    text = TEXT if stride > 1 else TEXT[:100]
    found = perplexity(llm, text, window=window, stride=stride)
    ids = llm.tokenizer.encode(text)
    expected = expected_logprobs(llm, Windows(window, stride, None), ids)
    assert found.tokens == len(ids) - 1 == expected.size
    assert found.loss.value == pytest.approx(-expected.mean(), rel=1e-6)
    assert found.perplexity.value == pytest.approx(math.exp(-expected.mean()), rel=1e-6)
    size = len(text.encode()) - len(llm.tokenizer.token_bytes(ids[0]))
    assert found.bits_per_byte.value == pytest.approx(-expected.sum() / math.log(2) / size, rel=1e-6)


@pytest.mark.usefixtures("begins_with_bos")
def test_with_bos_every_window_begins_with_it_and_the_first_token_counts(llm: LLM) -> None:
    found = perplexity(llm, TEXT, window=50, stride=20)
    ids = llm.tokenizer.encode(TEXT, add_bos=False)
    expected = expected_logprobs(llm, Windows(50, 20, llm.tokenizer.bos_id), ids)
    assert (found.windows.bos, found.tokens) == (1, len(ids))
    assert found.loss.value == pytest.approx(-expected.mean(), rel=1e-6)
    by_itself = llm.score(TEXT)
    assert perplexity(llm, TEXT).loss.value == pytest.approx(-by_itself.total / len(ids), rel=1e-9)


def test_a_text_of_one_window_has_no_interval(llm: LLM) -> None:
    found = perplexity(llm, "The other")
    assert found.perplexity.value == pytest.approx(llm.score("The other").perplexity)
    assert found.perplexity.low is None


def test_what_spells_a_control_token_is_text(llm: LLM) -> None:
    assert perplexity(llm, "the <|im_end|> there").text.tokens > len(llm.tokenizer.encode("the <|im_end|> there"))


def test_a_text_with_nothing_to_score_is_refused_by_its_name(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    for content, fault in (
        (b"", "is empty"),
        (b"a", "1 tokens has none with another before it"),
        (b"ab\xff", "byte 2 is not UTF-8"),
    ):
        path.write_bytes(content)
        with pytest.raises(InvalidRequest, match=f"short.txt: .*{fault}"):
            perplexity(llm, path)
    with pytest.raises(InvalidRequest, match="window: 513, expected 1 to 512"):
        perplexity(llm, TEXT, window=513)
    with pytest.raises(InvalidRequest, match="stride: 9, expected 1 to 8"):
        perplexity(llm, TEXT, window=8, stride=9)
    with pytest.raises(InvalidRequest, match="batch: 0"):
        perplexity(llm, TEXT, batch=0)


def test_results_are_the_same_bits_for_any_batch_and_threads(tiny_model: Path, other: LLM) -> None:
    results, divergences = set(), set()
    for threads in (1, 2):
        with LLM(tiny_model, threads=threads, deterministic=True) as model:
            for batch in (1, 3, 8):
                results.add(perplexity(model, TEXT, window=48, stride=20, batch=batch))
            divergences.add(divergence(model, TEXT, other, window=48, stride=20))
    assert len(results) == len(divergences) == 1


def test_divergence_is_that_of_both_models_logits(llm: LLM, other: LLM) -> None:
    found = divergence(llm, TEXT, other, window=60, stride=25)
    ids = llm.tokenizer.encode(TEXT)
    windows = Windows(60, 25, None)
    p, q, targets = [], [], []
    for span in windows.spans(len(ids)):
        context, continuation = windows.pair(ids, span)
        for model, rows in ((other, p), (llm, q)):
            rows.append(log_softmax(model.logits([*context, *continuation]))[len(context) - 1 : -1])
        targets += continuation
    log_p, log_q, tokens = np.concatenate(p), np.concatenate(q), np.arange(len(targets))
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    assert kl.mean() > 1e-4
    assert found.divergence.value == pytest.approx(kl.mean(), rel=1e-9)
    quantiles = (found.median, found.percentile_90, found.percentile_99, found.largest)
    assert quantiles == pytest.approx(tuple(np.quantile(kl, [0.5, 0.9, 0.99, 1])), rel=1e-9)
    assert found.same_top.value == (log_p.argmax(axis=1) == log_q.argmax(axis=1)).mean()
    own, theirs = log_q[tokens, targets], log_p[tokens, targets]
    change = np.exp(own) - np.exp(theirs)
    assert found.probability_rms == pytest.approx(math.sqrt((change**2).mean()), rel=1e-9)
    assert found.perplexity.value == pytest.approx(math.exp(-own.mean()), rel=1e-9)
    assert found.reference_perplexity.value == pytest.approx(math.exp(-theirs.mean()), rel=1e-9)
    assert found.perplexity_ratio.value == pytest.approx(math.exp((theirs - own).mean()), rel=1e-9)
    ends = np.cumsum([item.tokens for item in found.items])[:-1]
    for item, part in zip(found.items, np.split(theirs - own, ends), strict=True):
        assert item.loss - item.reference_loss == pytest.approx(part.sum(), abs=1e-9)


def test_a_model_does_not_diverge_from_itself(llm: LLM, tiny_model: Path) -> None:
    with LLM(tiny_model, threads=1, deterministic=True) as again:
        found = divergence(llm, TEXT, again)
    assert (found.divergence.value, found.largest, found.same_top.value, found.probability_rms) == (0, 0, 1, 0)
    assert found.perplexity_ratio.value == 1


def test_logits_come_in_pieces_whose_size_changes_nothing(
    llm: LLM, other: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = divergence(llm, TEXT, other)
    monkeypatch.setattr(scoring, "CHUNK", 1)
    most = 0
    step = llm._session.step

    class Watched:
        """A session that tells how many rows of logits it gave at once."""

        def __getattr__(self, name: str) -> object:
            return getattr(llm._session, name)

        def step(self, feeds: list[tuple[int, list[int], str, list[int]]]) -> list[object]:
            nonlocal most
            results = step(feeds)
            most = max([most, *(len(result) for result in results if result is not None)])
            return results

    monkeypatch.setattr(llm._engine, "_session", Watched())
    assert divergence(llm, TEXT, other) == whole
    assert most == 32


def test_a_file_of_logits_measures_as_the_model_it_is_of(llm: LLM, other: LLM, tmp_path: Path) -> None:
    path = tmp_path / "reference.logits"
    saved = save_logits(other, TEXT, path, window=60, stride=25)
    assert saved.loss.value == pytest.approx(perplexity(other, TEXT, window=60, stride=25).loss.value, rel=1e-6)
    live, stored = divergence(llm, TEXT, other, window=60, stride=25), divergence(llm, TEXT, path)
    assert stored.windows == live.windows
    assert stored.reference == live.reference
    assert stored.divergence.value == pytest.approx(live.divergence.value, abs=1e-7)
    half_step = float(load_file(path)["step"].max()) / 2  # by which a code may be off
    assert stored.reference_perplexity.value == pytest.approx(live.reference_perplexity.value, rel=half_step)
    assert stored.same_top.value == live.same_top.value
    assert divergence(other, TEXT, path).largest < 1e-7
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_of_logits_is_safetensors_as_documented(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "reference.logits"
    save_logits(llm, TEXT, path, window=512, stride=512)
    tensors = load_file(path)
    ids = llm.tokenizer.encode(TEXT)
    assert tensors["tokens"].tolist() == ids
    rows = tensors["largest"][:, None] - tensors["step"][:, None].astype(np.float64) * tensors["codes"]
    expected = log_softmax(llm.logits(ids))[:-1]
    assert rows.shape == expected.shape
    # Half a step of the codes, and the fp32 rounding of the row's largest value and of 65535 steps.
    bound = tensors["step"][:, None] / 2 + 2.0**-24 * (np.abs(tensors["largest"])[:, None] + np.abs(expected))
    assert (np.abs(rows - expected) <= 1.01 * bound).all()
    file = LogitsFile(path)
    assert (file.model, file.windows) == (perplexity(llm, TEXT).model, Windows(512, 512, None))
    np.testing.assert_array_equal(np.array(list(file.rows())), rows)


def test_logits_of_another_text_vocabulary_or_window_are_refused(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "reference.logits"
    save_logits(llm, TEXT, path, window=64)
    with pytest.raises(InvalidRequest, match=r"reference.logits: the logits are of another text \(text, \d+ tokens\)"):
        divergence(llm, TEXT + "more", path)
    with pytest.raises(InvalidRequest, match=r"window: 32, but the logits in .* are of 64"):
        divergence(llm, TEXT, path, window=32)
    wider = write_tiny_llama(tmp_path / "wider.gguf", vocab=300)
    with LLM(wider, threads=1) as model:
        with pytest.raises(InvalidRequest, match=r"of a vocabulary of 271, wider\.gguf one of 300"):
            divergence(model, TEXT, path)
        with pytest.raises(InvalidRequest, match="have vocabularies of 271 and 300"):
            divergence(model, TEXT, llm)


def test_another_tokenizer_is_refused(llm: LLM, other: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "reference.logits"
    save_logits(llm, TEXT, path)
    tokens = list(other.tokenizer._tokens)
    tokens[-1] = tokens[-1] + "x"
    monkeypatch.setattr(other.tokenizer, "_tokens", tokens)
    with pytest.raises(InvalidRequest, match=r"another tokenizer \(of tiny.gguf\) than other.gguf"):
        divergence(other, TEXT, path)
    with pytest.raises(InvalidRequest, match="have different tokenizers"):
        divergence(other, TEXT, llm)


@pytest.mark.parametrize("damage", ["cut", "longer", "not one", "empty", "header", "huge", "window"])
def test_a_damaged_file_of_logits_is_refused_by_its_name(llm: LLM, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "reference.logits"
    save_logits(llm, TEXT, path)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    if damage == "window":
        windows = json.loads(header["__metadata__"]["windows"])
        header["__metadata__"]["windows"] = json.dumps({**windows, "stride": 0})
    text = json.dumps(header).encode().ljust(length)
    path.write_bytes(
        {
            "cut": data[:-1],
            "longer": data + b"\0",
            "not one": b"GGUF" + bytes(100),
            "empty": b"",
            "header": data.replace(b"U16", b"I16"),
            "huge": (1 << 62).to_bytes(8, "little") + data[8:],
            "window": data[:8] + text[:length] + data[8 + length :],
        }[damage]
    )
    with pytest.raises(CheckpointError, match=r"reference\.logits: "):
        divergence(llm, TEXT, path)


def test_what_is_interrupted_leaves_no_file(llm: LLM, tmp_path: Path) -> None:
    path = tmp_path / "reference.logits"
    path.write_text("before")

    def interrupt(_done: int, _whole: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        save_logits(llm, TEXT, path, progress=interrupt)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    assert path.read_text() == "before"


def test_progress_counts_up_to_all_tokens(llm: LLM, other: LLM) -> None:
    seen: list[tuple[int, int]] = []
    found = perplexity(llm, TEXT, window=32, batch=2, progress=lambda *told: seen.append(told))
    assert seen == sorted(seen)
    assert seen[-1] == (found.tokens, found.tokens)
    divergence(llm, TEXT, other, progress=lambda *told: seen.append(told))
    assert seen[-1] == (found.tokens, found.tokens)


def test_rows_are_compared_exactly_where_that_can_be_worked_out() -> None:
    comparer = RowComparer(4)
    p, q = np.array([0.5, 0.25, 0.125, 0.125]), np.array([0.25, 0.5, 0.125, 0.125])
    found = comparer.compare((np.log(p) + 7).astype(np.float32), (np.log(q) - 90).astype(np.float32), 1)
    assert found.divergence == pytest.approx(0.25 * math.log(2), rel=1e-5)
    assert (found.same_top, found.reference_logprob) == (False, pytest.approx(math.log(0.25), rel=1e-5))
    assert found.logprob == pytest.approx(math.log(0.5), rel=1e-5)
    assert comparer.compare(p, p + 3, 0).divergence == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("fault", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error(fault: float) -> None:
    from cpuinfer.errors import NumericalError

    good, bad = np.zeros(4, np.float32), np.array([0, fault, 0, 0], np.float32)
    for pair in ((good, bad), (bad, good)):
        with np.errstate(invalid="ignore"), pytest.raises(NumericalError):
            RowComparer(4).compare(*pair, 0)


def test_a_context_several_share_is_computed_once(llm: LLM) -> None:
    context = llm.tokenizer.encode(TEXT)[:100]
    apart = [scoring.score_after(llm, [(context, [token, 7])])[0] for token in (20, 30, 40)]
    fed = 0
    step = llm._session.step

    class Counting:
        def __getattr__(self, name: str) -> object:
            return getattr(llm._session, name)

        def step(self, feeds: list[tuple[int, list[int], str, list[int]]]) -> list[object]:
            nonlocal fed
            fed += sum(len(tokens) for _, tokens, _, _ in feeds)
            return step(feeds)

    engine = llm._engine
    assert engine is not None
    before, engine._session = engine._session, Counting()  # type: ignore[assignment]
    try:
        together = scoring.score_after(llm, [(context, [token, 7]) for token in (20, 30, 40)])
    finally:
        engine._session = before
    assert together == apart
    assert fed <= 100 + 3 * (100 % 32 + 1)


def test_results_are_told_apart_by_what_was_measured(llm: LLM) -> None:
    found = perplexity(llm, TEXT)
    assert (found.model.name, found.model.vocabulary, found.model.deterministic) == ("tiny.gguf", 271, True)
    assert (found.text.bytes, found.text.tokens) == (len(TEXT.encode()), found.tokens + 1)
    assert replace(found, items=()) != found
