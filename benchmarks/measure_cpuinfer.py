"""cpuinfer in one process, --deterministic or not; see `benchmarks/measurement.py`."""

from __future__ import annotations

import sys
import time

import measurement
from cpuinfer import LLM, SamplingParams


class Engine:
    """An LLM without a cache of prefixes."""

    def __init__(self, model: str, plan: measurement.Plan) -> None:
        deterministic = "--deterministic" in sys.argv[1:-2]
        self._llm = LLM(model, threads=plan.threads, context=plan.context, prefix_cache=0, deterministic=deterministic)
        self.vocabulary = self._llm.vocabulary
        self.system = f"cpuinfer, kernels {self._llm.isa}"

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
        """One sequence step by step, several as one batch."""
        greedy = SamplingParams(temperature=0, max_tokens=steps + 1, ignore_eos=True)
        if len(prompts) > 1:
            timings = [completion.timings for completion in self._llm.generate(prompts, greedy)]
            first = max(each.first_token_seconds for each in timings)
            return first, [max(each.generate_seconds for each in timings) / steps] * steps
        began = time.perf_counter()
        arrivals = []
        for chunk in self._llm.stream(prompts[0], greedy):
            arrivals.append((time.perf_counter() - began, len(chunk.token_ids)))
            if chunk.timings is not None:
                first = chunk.timings.first_token_seconds
        return first, durations(first, arrivals)


def durations(first: float, arrivals: list[tuple[float, int]]) -> list[float]:
    """Seconds of each step after the first token; a chunk of several tokens, which are one character, is shared out."""
    found, last, known = [], first, 1
    for now, count in arrivals:
        new = count - known
        known = max(0, known - count)
        if new > 0:
            found += [(now - last) / new] * new
            last = now
    return found


if __name__ == "__main__":
    measurement.main(Engine)
