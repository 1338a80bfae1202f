"""OpenVINO GenAI in one process, which reads GGUF files of Llama shapes; see `benchmarks/measurement.py`."""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai

import measurement


class Engine:
    """A pipeline that is given token ids; it computes in what it takes for best, bfloat16 where the machine has it."""

    def __init__(self, model: str, plan: measurement.Plan) -> None:
        self._pipeline = openvino_genai.LLMPipeline(model, "CPU", INFERENCE_NUM_THREADS=plan.threads)
        self.vocabulary = len(self._pipeline.get_tokenizer().get_vocab())
        self.system = f"OpenVINO GenAI {openvino_genai.__version__}"

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
        """By its own clock, in microseconds; of several sequences as one batch of prompts of one length."""
        greedy = openvino_genai.GenerationConfig(max_new_tokens=steps + 1, ignore_eos=True, do_sample=False)
        results = self._pipeline.generate(openvino.Tensor(np.array(prompts, np.int64)), greedy)
        times = results.perf_metrics.raw_metrics
        return times.m_times_to_first_token[0] / 1e6, [step / 1e6 for step in times.m_durations]


if __name__ == "__main__":
    measurement.main(Engine)
