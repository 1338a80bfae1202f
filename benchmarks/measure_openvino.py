"""OpenVINO GenAI in one process, which reads GGUF files of Llama shapes; see `benchmarks/measurement.py`."""

from __future__ import annotations

import numpy as np
import openvino
import openvino_genai

import measurement


class Engine:
    """A pipeline that is given token ids; it computes in what it takes for best, bfloat16 where the machine has it."""

    def __init__(self, model: str, plan: measurement.Plan) -> None:
        # Its LLMPipeline is the same with these settings, but takes a batch as text alone.
        schedule = openvino_genai.SchedulerConfig()
        schedule.max_num_batched_tokens = plan.context * plan.sequences
        schedule.enable_prefix_caching = False
        options = {"INFERENCE_NUM_THREADS": plan.threads}
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(model, schedule, "CPU", options)
        self.vocabulary = len(self._pipeline.get_tokenizer().get_vocab())
        self.system = f"OpenVINO GenAI {openvino_genai.__version__}"

    def generate(self, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
        """By its own clock, in microseconds; it has every step once for each sequence."""
        greedy = openvino_genai.GenerationConfig(max_new_tokens=steps + 1, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(np.array([prompt], np.int64)) for prompt in prompts]
        times = self._pipeline.generate(inputs, [greedy] * len(prompts))[0].perf_metrics.raw_metrics
        return times.m_times_to_first_token[0] / 1e6, [step / 1e6 for step in times.m_durations[:: len(prompts)]]


if __name__ == "__main__":
    measurement.main(Engine)
