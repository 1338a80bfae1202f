"""llama.cpp in one process, through llama-cpp-python's low-level interface; see `benchmarks/measurement.py`."""

from __future__ import annotations

import ctypes
import random
import time

import llama_cpp

import measurement

BATCH = 512
"""Tokens computed at once: what llama.cpp does by default, and cpuinfer."""


class Engine:
    """A model and a context; tokens are random, so that none is sampled."""

    def __init__(self, model: str, plan: measurement.Plan) -> None:
        self._log = bytearray()
        self._keep = llama_cpp.llama_log_callback(lambda _, text, __: self._log.extend(text))
        llama_cpp.llama_log_set(self._keep, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        options = llama_cpp.llama_context_default_params()
        options.n_ctx = plan.context * plan.sequences
        options.n_batch = options.n_ubatch = BATCH
        options.n_seq_max = plan.sequences
        options.kv_unified = True
        options.n_threads = options.n_threads_batch = plan.threads
        loaded = llama_cpp.llama_model_load_from_file(model.encode(), llama_cpp.llama_model_default_params())
        self._context = loaded and llama_cpp.llama_init_from_model(loaded, options)
        if not self._context:
            raise SystemExit(self._log[-2000:].decode(errors="replace"))
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(loaded))
        self._batch = llama_cpp.llama_batch_init(BATCH, 0, 1)
        self._random = random.Random(0)

    @property
    def system(self) -> str:
        """The features it was built for and uses, and the kinds of buffers that weights went to."""
        buffers = {line.split()[1] for line in self._log.decode(errors="replace").splitlines() if "buffer size" in line}
        return f"{llama_cpp.llama_print_system_info().decode().strip()} weights in {', '.join(sorted(buffers))}"

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
        """All sequences share the batches."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        rows = [
            (token, at, sequence, at + 1 == len(prompt))
            for sequence, prompt in enumerate(prompts)
            for at, token in enumerate(prompt)
        ]
        began = time.perf_counter()
        for start in range(0, len(rows), BATCH):
            self._decode(rows[start : start + BATCH])
        first = time.perf_counter() - began
        durations = []
        for step in range(steps):
            began = time.perf_counter()
            self._decode(
                [
                    (self._random.randrange(self.vocabulary), len(prompt) + step, sequence, True)
                    for sequence, prompt in enumerate(prompts)
                ]
            )
            durations.append(time.perf_counter() - began)
        return first, durations

    def _decode(self, rows: list[tuple[int, int, int, bool]]) -> None:
        """Rows of token, position, sequence and whether logits are wanted, which are there at the end."""
        batch = self._batch
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama_cpp.llama_decode(self._context, batch):
            raise SystemExit("llama_decode failed")
        if rows[-1][3]:
            llama_cpp.llama_get_logits_ith(self._context, -1)


if __name__ == "__main__":
    measurement.main(Engine)
