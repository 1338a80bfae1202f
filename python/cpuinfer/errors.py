"""The exceptions of cpuinfer: one class per kind of fault, each message naming what, where, and what would be right."""


class CpuInferError(Exception):
    """Base of every error cpuinfer raises on purpose."""


class CheckpointError(CpuInferError):
    """A model file is damaged, truncated, or not what it claims to be."""


class UnsupportedModel(CpuInferError):
    """A sound model file whose architecture, tokenizer or option cpuinfer does not run."""


class UnsupportedFormat(CpuInferError):
    """A way of storing weights that cpuinfer does not read, or a shape its kernels do not take."""


class UnsupportedCpu(CpuInferError):
    """The instruction set asked for does not exist, or this machine cannot run it."""


class ModelNotFound(CpuInferError):
    """A model spec that names nothing: no such file, no such built-in name, no such repository."""


class DownloadError(CpuInferError):
    """A model could not be fetched, or what arrived does not have the expected checksum."""


class InvalidRequest(CpuInferError, ValueError):
    """An argument out of its range."""


class ContextFull(InvalidRequest):
    """A prompt that does not fit the context."""

    def __init__(self, message: str, *, tokens: int = 0) -> None:
        """`tokens`: of the prompt."""
        super().__init__(message)
        self.tokens = tokens


class NumericalError(CpuInferError, ArithmeticError):
    """NaN or infinity where the computation needs a number."""


class MemoryLimit(CpuInferError, MemoryError):
    """An allocation that the machine or a caller's limit does not allow."""


class OutputError(CpuInferError):
    """A file could not be written, or another is in its place."""


class Cancelled(CpuInferError):
    """The generation was cancelled from another thread."""
