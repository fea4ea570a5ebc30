"""Products of vectors with a quantized matrix."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from deepsz_caffe.errors import InputError
from deepsz_caffe.running.kernels import kernels
from deepsz_caffe.running.quantized import Panel, Quantized
from deepsz_caffe.running.threads import available, in_parts

#: additions, a group's inputs times the vectors, that are worth a second thread
_WORTH_A_THREAD = 1 << 18
_NONE = np.empty(0, np.float32)
_BEST = kernels.instruction_set()


def multiply(
    matrix: Quantized,
    x: NDArray[np.float32],
    *,
    bias: NDArray[np.float32] | None = None,
    out: NDArray[np.float32] | None = None,
    threads: int | None = None,
    instructions: int | None = None,
) -> NDArray[np.float32]:
    """Return ``x @ matrix.T + bias``.

    Parameters
    ----------
    matrix
        Whose arrays fit each other (`Quantized.examine`).
    x : float32[batch, columns]
    bias : float32[rows], optional
    out : float32[batch, rows], optional
        Where to, C-contiguous.
    threads
        At most so many; by default as many as there are cores, where there is work for them.
    instructions
        0 (portable), 1 (AVX2) or 2 (AVX-512); by default the best that the processor has.

    Notes
    -----
    A row of n groups of w columns is summed in float32 with an error of at most
    ``γ Σ |weight| |input|``, γ = (n / 2 + w + 4) 2⁻²⁴ / (1 − (n / 2 + w + 4) 2⁻²⁴), as long as no
    sum overflows or is denormal. What a vector gives depends neither on the other vectors of the
    batch, nor on threads, nor on the instruction set: the additions come in the same order.
    A weight of 0 has no part in the sum, even where its input is infinite or not a number.
    """
    rows, columns = matrix.shape
    if x.ndim != 2 or x.shape[1] != columns or x.dtype != np.float32:
        raise InputError(
            f"the input is {x.dtype.name}{list(x.shape)}, the layer takes float32[n, {columns}]"
        )
    x = np.ascontiguousarray(x)
    y = np.empty((len(x), rows), np.float32) if out is None else out
    if y.shape != (len(x), rows) or y.dtype != np.float32 or not y.flags.c_contiguous:
        raise InputError(f"the output must be float32[{len(x)}, {rows}], C-contiguous")
    added = _NONE if bias is None else np.ascontiguousarray(bias, np.float32)
    if added.size not in (0, rows):
        raise InputError(f"a bias of {added.size} values for {rows} rows")
    chosen = _BEST if instructions is None else instructions
    offset = 0
    for panel in matrix.panels if len(x) else ():

        def part(first: int, last: int, panel: Panel = panel, at: int = offset) -> None:
            given = (x, len(x), at, columns, added if at == 0 else _NONE, y, rows, at > 0)
            kernels.multiply(panel.native, first, last, *given, chosen)

        in_parts(part, panel.parts(_threads(panel, len(x), threads)))
        offset += panel.cols
    return y


def _threads(panel: Panel, batch: int, most: int | None) -> int:
    # Lanes work on several vectors at once.
    work = panel.columns.size * (1 + batch // 8)
    return max(1, min(available() if most is None else most, work // _WORTH_A_THREAD))
