"""Turns whatever a tokenizer library throws at a damaged description into one error of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cpuinfer.errors import CpuInferError


@contextmanager
def guarded(refuse: Callable[[str], object]) -> Iterator[None]:
    """Call `refuse`, which raises, with the message of what went wrong inside.

    A panic of native code arrives as an exception that is not an Exception.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, CpuInferError):
        raise
    except BaseException as error:
        refuse(" ".join(str(error).split())[:300] or type(error).__name__)
        raise
