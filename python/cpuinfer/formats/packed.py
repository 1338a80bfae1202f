"""What GGUF's block types share: codes packed in runs of bytes, scales in two levels, signs and code-books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from cpuinfer.formats.canonical import halves

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Codebook = Literal["iq4_nl", "mxfp4", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s"]


def unpack(packed: npt.NDArray[np.uint8], *, bits: int, run: int) -> npt.NDArray[np.uint8]:
    """Codes of `bits` bits: of each `run` bytes the lowest bits first, byte by byte, then the next bits, and so on."""
    import numpy as np

    rows, blocks, size = packed.shape
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    codes = packed.reshape(rows, blocks, size // run, 1, run) >> shifts & np.uint8((1 << bits) - 1)
    result: npt.NDArray[np.uint8] = codes.reshape(rows, blocks, size * 8 // bits)
    return result


def factored(factor: npt.NDArray[np.float16], numbers: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Scales in two levels: a block's factor [rows, blocks] times small integers [rows, blocks, groups]."""
    import numpy as np

    scale: npt.NDArray[np.float64] = factor.astype(np.float64)[:, :, None] * numbers
    return scale


def scaled(
    scale: npt.NDArray[np.floating[Any]], numbers: npt.NDArray[Any], minimum: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """``scale * numbers - minimum``; numbers [rows, blocks, elements], scale and minimum [rows, blocks, groups]."""
    import numpy as np

    rows, blocks, elements = numbers.shape
    groups = scale.shape[2]
    values = numbers.astype(np.float64).reshape(rows, blocks, groups, elements // groups)
    values *= scale.astype(np.float64)[..., None]
    if minimum is not None:
        values -= minimum[..., None]
    return values.reshape(rows, blocks, elements)


def scales_and_minima(block: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Eight scales and eight minima of a Q4_K or Q5_K block, which begins with their factors, fp16, and 12 bytes.

    The low 6 bits of bytes 0 to 3 are scales 0 to 3, of bytes 4 to 7 minima 0 to 3.  Bytes 8 to 11 have the low nibbles
    of scales 4 to 7 (low) and minima 4 to 7 (high), whose top two bits are those of bytes 0 to 3 and 4 to 7.
    """
    import numpy as np

    a, b, c = block[:, :, 4:8], block[:, :, 8:12], block[:, :, 12:16]
    scale = np.concatenate([a & 63, c & 15 | a >> 6 << 4], axis=2)
    minimum = np.concatenate([b & 63, c >> 4 | b >> 6 << 4], axis=2)
    return factored(halves(block, 0), scale), factored(halves(block, 2), minimum)


def codebook(name: Codebook) -> npt.NDArray[np.int8]:
    """A code-book, [entries, numbers] or [entries]: those of IQ without signs, that of MXFP4 doubled."""
    from cpuinfer import _core

    return _core.codebook(name)


def with_eighth(signs: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Seven signs as bits, completed by an eighth that makes the number of negative ones even."""
    import numpy as np

    parity = signs ^ signs >> 4
    parity ^= parity >> 2
    parity ^= parity >> 1
    completed: npt.NDArray[np.uint8] = (signs | (parity & 1) << 7).astype(np.uint8)
    return completed


def even_signs(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    """The signs of four eights in the low 28 bits of words [rows, blocks, 8], ``with_eighth``: [rows, blocks, 32]."""
    import numpy as np

    seven = words[..., None] >> np.array([0, 7, 14, 21], np.uint32) & 127
    return with_eighth(seven).reshape(*words.shape[:2], 32)


def signed_entries(name: Codebook, entries: npt.NDArray[Any], signs: npt.NDArray[np.uint8]) -> npt.NDArray[np.int8]:
    """Numbers [rows, blocks, 256] from a code-book, negative where a bit of `signs` [rows, blocks, 32] is set."""
    import numpy as np

    negative = unpack(signs, bits=1, run=1).view(np.int8)
    numbers: npt.NDArray[np.int8] = codebook(name)[entries].reshape(negative.shape) * (1 - 2 * negative)
    return numbers


def shifted_entries(entries: npt.NDArray[Any], negative: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Numbers [rows, blocks, 256] from IQ1_S's code-book, each eight plus 1/8, or minus 1/8 where `negative` is 1."""
    import numpy as np

    shift = np.where(negative == 0, 0.125, -0.125)
    numbers: npt.NDArray[np.float64] = codebook("iq1_s")[entries] + shift[..., None]
    return numbers.reshape(*entries.shape[:2], 256)
