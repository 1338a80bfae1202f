"""Values as a user types them, as a flag or after /set: parsed, and refused saying what would be right."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from cpuinfer.errors import InvalidRequest, UnsupportedCpu
from cpuinfer.machine import MOST_THREADS
from cpuinfer.sampling import SamplingParams

MOST_DIGITS = 18
"""Of a count, which then fits 64 bits."""


def integer(least: int, most: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes an integer of this range."""
    expected = f"an integer of at least {least}" if most is None else f"an integer of {least} to {most}"

    def parse(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() and len(text) <= MOST_DIGITS else -1
        if value < least or (most is not None and value > most):
            raise argparse.ArgumentTypeError(f"{text!r}, expected {expected}")
        return value

    return parse


positive = integer(1)
thread_count = integer(1, MOST_THREADS)


def kernel_set(text: str) -> str:
    """The name of a kernel set that this machine runs."""
    from cpuinfer import _core

    try:
        _core.select_kernels(text)
    except (InvalidRequest, UnsupportedCpu) as error:
        raise argparse.ArgumentTypeError(str(error).removeprefix("isa=")) from None
    return text


def sampling(field: str, kind: Callable[[str], object]) -> Callable[[str], object]:
    """The type of a flag that sets a field of SamplingParams."""

    def parse(text: str) -> object:
        try:
            return sampling_value(field, kind, text)
        except InvalidRequest as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def sampling_value(field: str, kind: Callable[[str], object], text: str) -> Any:
    """What a text means for a field of SamplingParams.  Raises InvalidRequest: the text, and what would be right."""
    value: Any
    try:
        value = kind(text)
    except ValueError:
        value = [text]  # refused by every field that is a number
    try:
        SamplingParams(**{field: value})
    except InvalidRequest as error:
        expected = str(error).rpartition(", expected ")[2].removeprefix("None or ")
        raise InvalidRequest(f"{text!r}, expected {expected}") from None
    return value
