"""One process of cpuinfer, measured; see `benchmarks/peers.py`.  Prints JSON."""

from __future__ import annotations

import json
import random
import resource
import sys
import time

from cpuinfer import LLM, SamplingParams


def main() -> None:
    """Arguments: model, threads, prompt tokens, tokens to generate, repeats."""
    model, (threads, prompt, generate, repeats) = sys.argv[1], map(int, sys.argv[2:])
    generator = random.Random(0)
    with LLM(model, threads=threads, context=prompt + generate + 8, prefix_cache=0) as llm:

        def tokens(count: int) -> list[int]:
            return [generator.randrange(llm.vocabulary) for _ in range(count)]

        def greedy(count: int) -> SamplingParams:
            return SamplingParams(temperature=0, max_tokens=count, ignore_eos=True)

        llm.generate(tokens(8), greedy(1))
        first = time.time()
        prompts, steps = [], []
        for _ in range(repeats):
            prompts.append(llm.generate(tokens(prompt), greedy(1)).timings.prompt_seconds)
            last = None
            for chunk in llm.stream(tokens(1), greedy(generate + 1)):
                now, count = time.perf_counter(), len(chunk.token_ids)
                if last is not None and count:
                    steps += [(now - last) / count] * count
                last = now
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"first": first, "prompts": prompts, "steps": steps, "peak": peak}))


if __name__ == "__main__":
    main()
