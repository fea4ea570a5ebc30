"""Deep Compression (Han, Mao, Dally, ICLR 2016): shared weights, relative index, Huffman codes.

A pruned layer becomes three things (sections 3 and 4 of the publication):

- a codebook of ``2**bits`` float32 values, found by k-means; entry 0 is 0.0 and means "no weight
  here", so ``2**bits - 1`` values are shared by the non-zeros;
- one code an entry, Huffman-coded;
- the distance from each entry to the one before, less one, in `index_bits` bits, Huffman-coded. A
  distance over ``2**index_bits`` is bridged by entries of code 0 (zero padding). Where all are 0,
  because nothing was pruned, there is no index.

The Huffman coder is zlib's, told to code single symbols only and never to look for repetitions
(``Z_HUFFMAN_ONLY``). It costs a table for each 32,767 symbols or so, about 0.2 %, and its end mark
lengthens the rarest symbol's code by a bit. What `to_bytes` writes decides the size: header,
codebook, and both streams.

`quantize` needs no retraining. `retrain` adjusts the codebook through the Caffe solver, as
published; see `deepsz_caffe.experiments.baselines.retraining`.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, replace
from math import prod

import numpy as np

from deepsz_caffe.errors import CodecError, InputError
from deepsz_caffe.experiments.baselines.kmeans import kmeans

#: rows, columns, entries, bytes of the codes' stream, bits, index bits
_HEADER = struct.Struct("<IIIIBB")


@dataclass(frozen=True)
class SharedLayer:
    """A quantized layer, before entropy coding.

    Parameters
    ----------
    shape
        (rows, columns) of the weights.
    codebook
        float32, shape (2**bits,); entry 0 is 0.0.
    codes
        uint8, one an entry; 0 is padding.
    steps
        uint8, one an entry: the distance from the entry before, less one; row-major order, the
        first counts from position −1.
    index_bits
        No step exceeds ``2**index_bits - 1``.
    """

    shape: tuple[int, int]
    codebook: np.ndarray
    codes: np.ndarray
    steps: np.ndarray
    index_bits: int

    def to_bytes(self) -> bytes:
        """Huffman-code the layer; its length is the layer's size."""
        codes = huffman_encode(self.codes)
        bits = self.codebook.size.bit_length() - 1
        head = _HEADER.pack(*self.shape, self.codes.size, len(codes), bits, self.index_bits)
        # Entry 0 of the codebook is 0.0 by definition.
        book = self.codebook[1:].astype("<f4").tobytes()
        # Of a layer that was not pruned an index says nothing.
        return head + book + codes + (huffman_encode(self.steps) if self.steps.any() else b"")

    def decode(self) -> np.ndarray:
        """Rebuild the weights: float32, shape `shape`.

        Raises
        ------
        CodecError
            The entries reach past the end of the matrix, or a code is not in the codebook.
        """
        positions = np.cumsum(self.steps, dtype=np.int64)
        positions += np.arange(positions.size)
        if positions.size and positions[-1] >= prod(self.shape):
            raise CodecError("the index reaches past the end of the layer")
        if self.codes.size and int(self.codes.max()) >= self.codebook.size:
            raise CodecError("a code is not in the codebook")
        weights = np.zeros(prod(self.shape), np.float32)
        weights[positions] = self.codebook[self.codes]
        return weights.reshape(self.shape)

    def with_codebook(self, codebook: np.ndarray) -> SharedLayer:
        """Give the layer other shared values, as retraining does; shape as before."""
        book = codebook.astype(np.float32)
        book[0] = 0
        return replace(self, codebook=book)


def quantize(weights: np.ndarray, bits: int = 5, index_bits: int = 5) -> SharedLayer:
    """Share the non-zeros of a pruned layer among ``2**bits - 1`` values.

    Parameters
    ----------
    weights
        float32, shape (rows, columns).
    bits
        Bits a code, 1 to 8; published: 5 for fc layers.
    index_bits
        Bits a step of the relative index, 1 to 8; published: 4 or 5.

    Raises
    ------
    InputError
        Bits out of range.
    """
    for name, value in (("bits", bits), ("index_bits", index_bits)):
        if not 1 <= value <= 8:
            raise InputError(f"{name} must be between 1 and 8, not {value}")
    rows, columns = weights.shape
    flat = weights.ravel()
    positions = np.flatnonzero(flat)
    codebook = np.zeros(1 << bits, np.float32)
    labels = np.zeros(0, np.uint8)
    if positions.size:
        codebook[1:], found = kmeans(flat[positions], (1 << bits) - 1)
        labels = (found + 1).astype(np.uint8)
    codes, steps = _relative_index(positions, labels, 1 << index_bits)
    return SharedLayer((rows, columns), codebook, codes, steps, index_bits)


def from_bytes(buffer: bytes) -> SharedLayer:
    """Read what `SharedLayer.to_bytes` wrote.

    Raises
    ------
    CodecError
        The bytes are damaged.
    """
    try:
        rows, columns, entries, length, bits, index_bits = _HEADER.unpack_from(buffer)
        start = _HEADER.size + 4 * ((1 << bits) - 1)
        book = np.frombuffer(buffer, "<f4", (1 << bits) - 1, _HEADER.size)
    except (struct.error, ValueError) as error:
        raise CodecError(f"damaged Deep Compression layer: {error}") from error
    codes = huffman_decode(buffer[start : start + length], entries)
    index = buffer[start + length :]
    steps = huffman_decode(index, entries) if index else np.zeros(entries, np.uint8)
    codebook = np.concatenate([np.zeros(1, np.float32), book])
    return SharedLayer((rows, columns), codebook, codes, steps, index_bits)


def huffman_encode(symbols: np.ndarray) -> bytes:
    """Huffman-code uint8 symbols one by one."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_HUFFMAN_ONLY)
    return coder.compress(np.ascontiguousarray(symbols).data) + coder.flush()


def huffman_decode(buffer: bytes, count: int) -> np.ndarray:
    """Decode `count` symbols: uint8, shape (count,).

    Raises
    ------
    CodecError
        The stream is damaged, or holds another number of symbols.
    """
    coder = zlib.decompressobj(-15)
    try:
        # One byte more than expected, so that a longer stream is noticed and never unpacked.
        found = coder.decompress(buffer, count + 1)
    except zlib.error as error:
        raise CodecError(f"damaged Huffman stream: {error}") from error
    if len(found) != count or not coder.eof:
        raise CodecError(f"the Huffman stream does not hold {count} symbols")
    return np.frombuffer(found, np.uint8)


def _relative_index(
    positions: np.ndarray, labels: np.ndarray, longest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turn ascending positions into (codes, steps − 1), with padding where a step is too long."""
    distance = np.diff(positions, prepend=-1)
    padding = (distance - 1) // longest
    place = np.arange(positions.size) + np.cumsum(padding)
    entries = int(place[-1]) + 1 if place.size else 0
    codes = np.zeros(entries, np.uint8)
    steps = np.full(entries, longest - 1, np.uint8)
    codes[place] = labels
    steps[place] = distance - 1 - padding * longest
    return codes, steps
