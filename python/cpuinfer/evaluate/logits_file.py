"""A file of a model's log-probabilities over a text, to measure others against: safetensors, written as it comes.

The tensors, n being the tokens scored and v the vocabulary:

    tokens    I32 [t]     the text, without BOS
    largest   F32 [n]     natural log-probability of the likeliest token in place of each token scored
    step      F32 [n]
    codes     U16 [n, v]  log p = largest - step * code

`__metadata__` holds "format", "cpuinfer logits 1", and as JSON "model", "text" and "windows", with the fields of
Subject, Text and Windows: which tokens are scored, in which order and after what, follows from the last.
"""

from __future__ import annotations

import json
import math
import os
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from cpuinfer.errors import CheckpointError, InvalidRequest
from cpuinfer.evaluate.identity import Subject, Text
from cpuinfer.evaluate.records import AtomicFile
from cpuinfer.evaluate.rows import Row, RowCoder, decode
from cpuinfer.evaluate.windows import Windows, choose

FORMAT = "cpuinfer logits 1"
MOST_HEADER = 1 << 20
"""Bytes; ours take about one thousand."""
MOST_WINDOW = 1 << 30
READ = 8 << 20
"""Bytes of codes read at a time, or those of a token where that is more."""
_TYPES: Mapping[str, np.dtype[Any]] = {
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U16": np.dtype("<u2"),
}


def _layout(tokens: int, scored: int, vocabulary: int) -> dict[str, tuple[str, list[int]]]:
    return {
        "tokens": ("I32", [tokens]),
        "largest": ("F32", [scored]),
        "step": ("F32", [scored]),
        "codes": ("U16", [scored, vocabulary]),
    }


class LogitsWriter:
    """Writes rows one by one; the file has its name once all of them are there."""

    def __init__(
        self, path: Path, *, model: Subject, text: Text, windows: Windows, tokens: list[int], scored: int
    ) -> None:
        layout = _layout(len(tokens), scored, model.vocabulary)
        facts = {"model": asdict(model), "text": asdict(text), "windows": asdict(windows)}
        header: dict[str, Any] = {"__metadata__": {"format": FORMAT, **{k: json.dumps(v) for k, v in facts.items()}}}
        end = 0
        self._offsets = {}
        for name, (kind, shape) in layout.items():
            begin, end = end, end + _TYPES[kind].itemsize * math.prod(shape)
            header[name] = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            self._offsets[name] = begin
        text_of_header = json.dumps(header).encode()
        text_of_header += b" " * (-len(text_of_header) % 8)  # as the format asks
        self._data = 8 + len(text_of_header)
        self._coder = RowCoder(model.vocabulary)
        self._codes = np.empty(model.vocabulary, np.uint16)
        self._small = np.zeros((2, scored), "<f4")
        self._written = 0
        self._file = AtomicFile(path)
        try:
            self._file.write(len(text_of_header).to_bytes(8, "little") + text_of_header)
            self._file.write(np.asarray(tokens, "<i4").tobytes())
            self._file.write(self._small.tobytes())
        except BaseException:
            self._file.discard()
            raise

    def add(self, row: Row, target: int) -> float:
        """The logits before the next token scored, which is `target`; returns its log-probability."""
        largest, step, logprob = self._coder.encode(row, target, self._codes)
        self._small[:, self._written] = largest, step
        self._file.write(self._codes.astype("<u2", copy=False).data)
        self._written += 1
        return logprob

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._file.discard()
            return
        self._file.write_at(self._data + self._offsets["largest"], self._small.tobytes())
        self._file.publish()


class LogitsFile:
    """A file that LogitsWriter wrote, its header checked whole.  Raises CheckpointError for any other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        weakref.finalize(self, os.close, self._descriptor)
        try:
            header = self._header()
            metadata = header["__metadata__"]
            if metadata["format"] != FORMAT:
                self._refuse(f"its format is {metadata['format']!r}, expected {FORMAT!r}")
            self.model = Subject(**json.loads(metadata["model"]))
            self.text = Text(**json.loads(metadata["text"]))
            cut = Windows(**json.loads(metadata["windows"]))
            self.windows = choose(window=cut.window, stride=cut.stride, context=MOST_WINDOW, bos=cut.bos)
            self.scored = self.text.tokens - (cut.bos is None)
            self._check(header)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._refuse(f"is no file of logits that `cpuinfer eval kld --save-logits` wrote ({error!r})")
        self.tokens = self._numbers("tokens").tolist()

    def rows(self) -> Iterator[Row]:
        """Log-probabilities of all tokens in place of each token scored."""
        largest, step = (self._numbers(name).tolist() for name in ("largest", "step"))
        vocabulary = self.model.vocabulary
        rows = max(1, READ // (2 * vocabulary))
        for begin in range(0, self.scored, rows):
            end = min(begin + rows, self.scored)
            codes = self._read("codes", begin * vocabulary, end * vocabulary).reshape(-1, vocabulary)
            for i in range(begin, end):
                yield decode(codes[i - begin], largest[i], step[i])

    def _header(self) -> Mapping[str, Any]:
        length = int.from_bytes(os.pread(self._descriptor, 8, 0), "little")
        if length > MOST_HEADER:
            self._refuse("is no file of logits")
        self._data = 8 + length
        header = json.loads(os.pread(self._descriptor, length, 8))
        return header if isinstance(header, dict) else self._refuse("its header is not a JSON object")

    def _check(self, header: Mapping[str, Any]) -> None:
        layout = _layout(self.text.tokens, self.scored, self.model.vocabulary)
        self._places, end = {}, 0
        for name, (kind, shape) in layout.items():
            begin, end = end, end + _TYPES[kind].itemsize * math.prod(shape)
            wanted = {"dtype": kind, "shape": shape, "data_offsets": [begin, end]}
            if header[name] != wanted:
                self._refuse(f"{name} is {header[name]}, expected {wanted}")
            self._places[name] = (begin, kind, math.prod(shape))
        size = os.fstat(self._descriptor).st_size
        if size != self._data + end:
            self._refuse(f"has {size} bytes, expected {self._data + end}: it is cut short or damaged")

    def _numbers(self, name: str) -> npt.NDArray[Any]:
        numbers = self._read(name, 0, self._places[name][2])
        if numbers.dtype.kind == "f" and not np.isfinite(numbers).all():
            self._refuse(f"{name} holds NaN or infinity")
        return numbers

    def _read(self, name: str, begin: int, end: int) -> npt.NDArray[Any]:
        offset, kind, _ = self._places[name]
        out = np.empty(end - begin, _TYPES[kind])
        at = self._data + offset + begin * out.itemsize
        view = memoryview(out.view(np.uint8).data)
        while view:
            count = os.preadv(self._descriptor, [view], at)
            if count == 0:
                self._refuse("ends early: it has shrunk since it was opened")
            view, at = view[count:], at + count
        return out

    def _refuse(self, why: str) -> NoReturn:
        raise CheckpointError(f"{self.path}: {why}")


def check_same_reading(file: LogitsFile, model: Subject, tokens: list[int], bos: int | None, name: str) -> None:
    """Refuse a model that does not read the text as that of the file does, saying what differs."""
    if model.vocabulary != file.model.vocabulary:
        difference = f"a vocabulary of {file.model.vocabulary}, {model.name} one of {model.vocabulary}"
    elif model.tokenizer != file.model.tokenizer:
        difference = f"another tokenizer (of {file.model.name}) than {model.name}"
    elif tokens != file.tokens:
        difference = f"another text ({file.text.name}, {file.text.tokens} tokens) than {name} ({len(tokens)} tokens)"
    elif bos != file.windows.bos:
        difference = f"the beginning-of-sequence token {file.windows.bos}, {model.name} {bos}"
    else:
        return
    raise InvalidRequest(f"{file.path}: the logits are of {difference}: they can't be compared")
