"""Fixtures that several test files share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import platformdirs
import pytest

from fixtures.bad_gguf import build
from tiny_gguf import write_tiny_llama

# A shell that starts tests in the background has them ignore Ctrl-C, which some test.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REAL_MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama model that nobody writes to."""
    return write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="session")
def real_model() -> Path:
    """SmolLM2 from CPUINFER_TEST_MODEL or the cache; the test is skipped without it."""
    if named := os.environ.get("CPUINFER_TEST_MODEL"):
        return Path(named)
    cache = Path(os.environ.get("CPUINFER_CACHE") or platformdirs.user_cache_path("cpuinfer"))
    for found in cache.rglob(REAL_MODEL):
        return found
    pytest.skip(f"{REAL_MODEL} is neither named by CPUINFER_TEST_MODEL nor under {cache}")


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A hand-made GGUF file with every kind of value, free to be changed."""
    path = tmp_path / "sound.gguf"
    path.write_bytes(build())
    return path
