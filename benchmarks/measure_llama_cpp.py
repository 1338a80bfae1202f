"""One process of llama.cpp, through llama-cpp-python's low-level interface; see `benchmarks/peers.py`.  Prints JSON."""

from __future__ import annotations

import ctypes
import json
import random
import resource
import sys
import time

import llama_cpp


@llama_cpp.llama_log_callback
def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    """Takes llama.cpp's log."""


def main() -> None:
    """Arguments: model, threads, prompt tokens, tokens to generate, repeats."""
    path, (threads, prompt, generate, repeats) = sys.argv[1], map(int, sys.argv[2:])
    generator = random.Random(0)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx = prompt + generate + 8
    options.n_batch = options.n_ubatch = 512
    options.n_threads = options.n_threads_batch = threads
    context = llama_cpp.llama_init_from_model(model, options)
    vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(model))

    def decode(count: int) -> float:
        """Seconds, and the logits of the last token are there."""
        tokens = (llama_cpp.llama_token * count)(*(generator.randrange(vocabulary) for _ in range(count)))
        began = time.perf_counter()
        for start in range(0, count, 512):
            part = (llama_cpp.llama_token * min(512, count - start)).from_buffer(tokens, 4 * start)
            if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(part, len(part))):
                sys.exit("llama_decode failed")
        llama_cpp.llama_get_logits_ith(context, -1)
        return time.perf_counter() - began

    def clear() -> None:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)

    decode(8)
    first = time.time()
    prompts, steps = [], []
    for _ in range(repeats):
        clear()
        prompts.append(decode(prompt))
        clear()
        decode(1)
        steps += [decode(1) for _ in range(generate)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"first": first, "prompts": prompts, "steps": steps, "peak": peak}))


if __name__ == "__main__":
    main()
