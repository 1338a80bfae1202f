"""Time of one native sample per chain, over a row as wide as a vocabulary.

    python benchmarks/samplers.py [--vocabulary N] [--repeats N]

Rows are Gaussian with a standard deviation of 3, a new one for each repeat in turn, so branches are not learnt.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np

from cpuinfer import _core
from cpuinfer.sampling import SamplingParams

CHAINS = {
    "greedy": SamplingParams(temperature=0),
    "default": SamplingParams(),
    "default, penalised": SamplingParams(repetition_penalty=1.1, frequency_penalty=0.1),
    "default, 5 logprobs": SamplingParams(logprobs=5),
    "order=hf": SamplingParams(order="hf"),
    "order=vllm": SamplingParams(order="vllm"),
    "min-p alone": SamplingParams(order=("min_p", "temperature"), min_p=0.1),
    "top-p alone": SamplingParams(order=("temperature", "top_p"), temperature=1.0, top_p=0.95),
    "top-p alone, T = 3": SamplingParams(order=("temperature", "top_p"), temperature=3.0, top_p=0.95),
    "temperature alone": SamplingParams(order=("temperature",)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--repeats", type=int, default=400)
    options = parser.parse_args()
    rows = (np.random.default_rng(0).standard_normal((16, options.vocabulary)) * 3).astype(np.float32)
    print(f"vocabulary {options.vocabulary}, {options.repeats} repeats, microseconds\n")
    print("| chain | median | p10 | p90 |\n|---|---|---|---|")
    for name, params in CHAINS.items():
        sampler = _core.Sampler(vocabulary=options.vocabulary, **params.native_options(1))
        times = []
        for repeat in range(options.repeats):
            row = rows[repeat % len(rows)]
            start = time.perf_counter()
            sampler.sample(row)
            times.append((time.perf_counter() - start) * 1e6)
        deciles = statistics.quantiles(times, n=10)
        print(f"| {name} | {statistics.median(times):.0f} | {deciles[0]:.0f} | {deciles[8]:.0f} |")


if __name__ == "__main__":
    main()
