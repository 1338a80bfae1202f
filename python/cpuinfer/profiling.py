"""Where the time of steps goes: seconds, bytes and operations of every operator, by the kind of its layer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from cpuinfer.ops import Attention, Op

if TYPE_CHECKING:
    from cpuinfer import _core

Stage = Literal["prompt", "decoding"]
"""Of a step: decoding if it has one row of each sequence."""


@dataclass(frozen=True, slots=True)
class OperatorTime:
    """An operator of all layers of a kind, over all steps of a stage."""

    stage: Stage
    name: str
    """As the model names it, without its layer; the window of an attention that has one tells its layers apart."""
    layers: int
    steps: int
    """Of the head and of sampling: rounds of up to 16 rows."""
    rows: int
    """Of all steps: tokens, or those of them whose logits were wanted."""
    seconds: float
    bytes: float
    """Of packed weights, and of keys and values, that had to be read."""
    operations: float
    """Multiplications and additions, of products with weights and of attention."""


def collect(session: _core.Session, ops: Iterable[Op]) -> list[OperatorTime]:
    """Of a session made with `profile`: prompts first, in the order of the program."""
    windows = {op.name: op.window for op in ops if isinstance(op, Attention) and op.window}
    found: dict[tuple[Stage, str], OperatorTime] = {}
    for name, stage, steps, rows, seconds, size, operations in session.profile():
        kind = _kind(name, windows)
        before = found.get((stage, kind), OperatorTime(stage, kind, 0, steps, rows, 0.0, 0.0, 0.0))
        found[stage, kind] = OperatorTime(
            stage,
            kind,
            before.layers + 1,
            steps,
            rows,
            before.seconds + seconds,
            before.bytes + size,
            before.operations + operations,
        )
    return list(found.values())


def _kind(name: str, windows: Mapping[str, int]) -> str:
    window = f", window {windows[name]}" if name in windows else ""
    return re.sub(r"^model\.(layers\.\d+\.)?", "", name) + window


def report(times: Sequence[OperatorTime], *, read_bandwidth: float) -> str:
    """Tables for people, one a stage.  `read_bandwidth`: bytes per second that these threads can read."""
    return "\n\n".join(
        _table(stage, [time for time in times if time.stage == stage], read_bandwidth)
        for stage in ("prompt", "decoding")
        if any(time.stage == stage for time in times)
    )


def _table(stage: Stage, times: Sequence[OperatorTime], read_bandwidth: float) -> str:
    steps, rows = times[0].steps, times[0].rows  # of the embedding: others may have several rounds a step
    total = OperatorTime(
        stage,
        "all",
        sum(time.layers for time in times),
        steps,
        rows,
        sum(time.seconds for time in times),
        sum(time.bytes for time in times),
        sum(time.operations for time in times),
    )
    width = max(len("operator"), *(len(time.name) for time in times))
    lines = [
        f"{stage}: steps {steps}, tokens {rows}, reading at {read_bandwidth / 1e9:.1f} GB/s",
        f"{'operator':{width}}  ops  ms/step    time  MB/step    GB/s  of read  GFLOP/s",
    ]
    for time in (*times, total):
        rate = time.bytes / time.seconds if time.seconds else 0.0
        lines.append(
            f"{time.name:{width}}  {time.layers:3}  {1000 * time.seconds / steps:7.3f}"
            f"  {time.seconds / total.seconds:6.1%}  {time.bytes / steps / 1e6:7.2f}  {rate / 1e9:6.1f}"
            f"  {rate / read_bandwidth:7.0%}  {time.operations / time.seconds / 1e9 if time.seconds else 0:7.1f}"
        )
    return "\n".join(lines)
