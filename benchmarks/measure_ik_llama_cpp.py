"""ik_llama.cpp through its own llama-bench, several runs of it; see `benchmarks/measurement.py`.

    measure_ik_llama_cpp.py LLAMA_BENCH [its options, such as -rtr 1 ...] MODEL PLAN

It has tokens of its own, means of a repeat instead of single steps, and one sequence at a time.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

from measurement import Outcome, Plan, Sample, Task


def options(task: Task) -> list[str]:
    """Of the runs for a task: the prompt, then the steps after it."""
    after = ["-gp", f"{task.prompt},{task.steps}"] if task.steps else []
    return ["-p", str(task.prompt), "-n", "0", *after]


def read(output: str, task: Task) -> Sample:
    """The runs' samples, in seconds, of llama-bench's JSON."""
    sample = Sample()
    for run in json.loads(output):
        seconds = [nanoseconds / 1e9 for nanoseconds in run["samples_ns"]]
        if run["n_gen"]:
            sample.steps = [each / task.steps for each in seconds]
        else:
            sample.first = seconds
    return sample


def measure(command: list[str], model: str, plan: Plan, task: Task) -> tuple[Sample | None, str]:
    """And what it says of its build."""
    if task.sequences > 1:
        return None, ""
    arguments = ["-m", model, "-t", str(plan.threads), "-r", str(plan.repeats), "-o", "json", *options(task)]
    done = subprocess.run([*command, *arguments], check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    run = json.loads(done.stdout)[0]
    return read(done.stdout, task), f"ik_llama.cpp {run['build_commit']}, {run['cpu_info']}"


def main() -> None:
    """All tasks of the plan, a process of llama-bench each."""
    *command, model, plan_text = sys.argv[1:]
    plan = Plan.loads(plan_text)
    found = [measure(command, model, plan, task) for task in plan.tasks]
    system = max(system for _, system in found)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    print(Outcome([sample for sample, _ in found], peak, system=system, single_steps=False).dumps())


if __name__ == "__main__":
    main()
