"""From the streams of every codec to the form in memory: the same weights as decoding gives."""

import tracemalloc
from dataclasses import replace
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsz_caffe import codecs
from deepsz_caffe.codecs.frames import compress
from deepsz_caffe.codecs.kernels import COMPILED
from deepsz_caffe.codecs.packed_stream import Layout
from deepsz_caffe.codecs.quantize import quantize
from deepsz_caffe.codecs.sparse import to_sparse
from deepsz_caffe.codecs.varint import pack_varints
from deepsz_caffe.dsz.decode import decode_layer, decode_unchecked
from deepsz_caffe.dsz.layout import EncodedLayer
from deepsz_caffe.errors import FormatError
from deepsz_caffe.running.build import from_dense, from_layer, from_streams
from deepsz_caffe.running.quantized import MOST_COLUMNS, Panel, Quantized
from deepsz_caffe.steps.encode import encode_layer
from tests.hostile.samples import pruned

BOUND = 0.02


def encoded(matrix, data_codec, index_codec="", order="C"):
    """A layer in given codecs, whatever a profile would choose."""
    source = np.ascontiguousarray(matrix if order == "C" else matrix.T)
    if index_codec:
        sparse = to_sparse(source)
        data = codecs.DATA[data_codec](BOUND).encode(sparse.data)
        index = codecs.INDEX[index_codec]().encode(sparse.index)
        count = sparse.index.size
    else:
        data, index, count = codecs.MATRIX[data_codec](BOUND).encode(source), b"", 0
    layer = EncodedLayer.unsealed(
        "ip",
        matrix.shape,
        BOUND,
        column_major=order == "F",
        data_codec=data_codec,
        data=data,
        index_codec=index_codec,
        index=index,
        index_count=count,
    )
    return sealed(layer)


def sealed(layer):
    """With the checksum and the digest made right, which is what `decode_layer` then gives."""
    out = np.empty(layer.shape, np.float32)
    return layer.sealed(*decode_unchecked(layer, out))


#: every codec that there is, by rows and by columns
FORMS = [
    *((name, "", order) for name in codecs.MATRIX for order in "CF"),
    *((name, "zstd", order) for name in codecs.DATA for order in "CF"),
    *(("levels", name, "C") for name in codecs.INDEX),
]


@pytest.mark.parametrize(("data_codec", "index_codec", "order"), FORMS)
@pytest.mark.parametrize("threads", [1, 3])
def test_every_codec_gives_the_weights_that_decoding_gives(data_codec, index_codec, order, threads):
    layer = encoded(pruned((70, 500), 0.12, 1), data_codec, index_codec, order)
    matrix = from_layer(layer, threads)
    assert np.array_equal(matrix.dense(), decode_layer(layer))
    assert matrix.shape == layer.shape


def test_long_steps_are_bridged_and_rows_may_be_empty():
    matrix = np.zeros((900, 700), np.float32)
    matrix[3, 5] = matrix[3, 699] = matrix[450, 0] = matrix[899, 699] = 0.5
    layer = encoded(matrix, "packed")
    assert np.array_equal(from_layer(layer).dense(), decode_layer(layer))


def test_an_empty_layer_has_no_groups():
    layer = encode_layer("ip", np.zeros((4, 5), np.float32), BOUND)
    matrix = from_layer(layer)
    assert not matrix.dense().any()
    assert matrix.panels[0].codes.size == 0


def test_two_bytes_a_symbol_where_one_would_do():
    matrix = pruned((7, 300), 0.2, 8)
    quantizer, levels = quantize(matrix.reshape(-1), 0.1)
    cells = np.flatnonzero(levels)
    steps = np.diff(cells, prepend=-1) - 1
    positives, negatives = int(levels.max()), -int(levels.min())
    picks = np.where(levels > 0, levels, positives - levels)[cells]
    codes = np.concatenate((picks & 255, picks >> 8))
    frames = [compress(array.astype(np.uint8), 1) for array in (steps, codes)]
    header = Layout(quantizer, positives, negatives, 0, 20).pack()
    stream = header + pack_varints((cells.size, *map(len, frames))) + b"".join(frames)
    expected = codecs.Packed(0.1).decode(stream, np.empty(matrix.shape, np.float32))
    layer = EncodedLayer.unsealed("ip", matrix.shape, 0.1, data_codec="packed", data=stream)
    for threads in (1, 2):
        assert np.array_equal(from_streams(layer, threads).dense(), expected)
    assert np.count_nonzero(expected) == cells.size


def small_chunks(monkeypatch):
    monkeypatch.setattr("deepsz_caffe.codecs.packed._ENTRIES", 300)
    monkeypatch.setattr("deepsz_caffe.codecs.packed_stream.LEAST_LOG_CELLS", 0)


def test_many_chunks_join_in_any_number_of_threads(monkeypatch):
    small_chunks(monkeypatch)
    coarse = np.sign(pruned((97, 333), 0.1, 2)) * np.float32(0.3)
    for matrix in (pruned((97, 333), 0.1, 2), coarse, pruned((3, 9000), 0.1, 3)):
        layer = encoded(matrix, "packed")
        one, three = from_layer(layer, 1), from_layer(layer, 3)
        assert np.array_equal(one.dense(), decode_layer(layer))
        for a, b in zip(one.panels[0].native, three.panels[0].native, strict=True):
            assert np.array_equal(a, b)
    assert from_layer(encoded(coarse, "packed")).panels[0].width == 4


@st.composite
def matrices(draw):
    rows, cols = draw(st.integers(1, 9)), draw(st.integers(1, 60))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    levels = draw(st.sampled_from([1, 3, 30, 300]))
    kept = random.random((rows, cols)) < draw(st.sampled_from([0, 0.1, 0.5, 1]))
    return random.integers(-levels, levels + 1, (rows, cols)).astype(np.float32) * kept


@given(matrices())
@settings(max_examples=60, deadline=None)
def test_a_dense_matrix_comes_back_to_the_bit(matrix):
    quantized = from_dense(matrix)
    assert np.array_equal(quantized.dense(), matrix)
    weights, digest = quantized.examine()
    assert weights == np.count_nonzero(matrix)
    assert digest == codecs.weights_digest(matrix)


def test_columns_of_one_weight_are_grouped_where_that_takes_fewer_bytes():
    random = np.random.default_rng(3)
    few = random.integers(-3, 4, (8, 4000)).astype(np.float32)
    many = random.integers(-100, 100, (8, 40)).astype(np.float32)
    values = random.random((8, 40), np.float32)
    panels = [from_dense(matrix).panels[0] for matrix in (few, many, values)]
    assert [panel.width for panel in panels] == [8, 1, 1]
    assert [panel.codes.dtype for panel in panels] == [np.uint8, np.uint8, np.float32]
    assert panels[0].nbytes < 2.2 * np.count_nonzero(few)
    medium = from_dense(random.integers(0, 1000, (90, 400)).astype(np.float32)).panels[0]
    assert medium.codes.dtype == np.uint16


def test_more_columns_than_two_bytes_name_become_panels():
    matrix = np.zeros((3, 2 * MOST_COLUMNS + 5), np.float32)
    matrix[0, 0] = matrix[1, -1] = matrix[2, MOST_COLUMNS] = 1
    quantized = from_dense(matrix)
    assert [panel.cols for panel in quantized.panels] == [43691, 43692, 43692]
    assert np.array_equal(quantized.dense(), matrix)
    assert quantized.examine() == (3, codecs.weights_digest(matrix))
    layer = encode_layer("ip", matrix, BOUND, "fast")
    assert np.array_equal(from_layer(layer).dense(), decode_layer(layer))


@pytest.mark.parametrize(("data_codec", "index_codec", "order"), FORMS)
def test_a_damaged_stream_is_an_error_or_other_weights_found_by_the_digest(
    data_codec, index_codec, order
):
    good = encoded(pruned((30, 200), 0.12, 4), data_codec, index_codec, order)
    with pytest.raises(FormatError, match="checksum"):
        from_layer(replace(good, data=good.data[:-1] + bytes([good.data[-1] ^ 1])))
    random = np.random.default_rng(5)
    expected = decode_layer(good)
    for _ in range(60):
        data = bytearray(good.data)
        data[random.integers(len(data))] ^= 1 << int(random.integers(8))
        bad = replace(good, data=bytes(data), checksum=crc32(good.index, crc32(bytes(data))))
        try:
            found = from_layer(bad).dense()
        except FormatError as error:
            where = error.where
        else:
            assert np.array_equal(found, expected)
    assert where == "layer ip"


def test_streams_of_another_bound_or_shape_are_refused():
    good = encoded(pruned((30, 200), 0.12, 4), "packed")
    with pytest.raises(FormatError, match="not those that were encoded"):
        from_layer(replace(good, error_bound=2 * BOUND))
    with pytest.raises(FormatError, match="not those that were encoded"):
        from_layer(replace(good, rows=60, columns=100))
    with pytest.raises(FormatError):
        from_layer(replace(good, rows=3, columns=200))


def broken(panel):
    """Panels whose arrays don't fit each other, one fault each."""
    groups = panel.codes.size
    yield replace(panel, starts=panel.starts + np.uint32(1))
    yield replace(panel, starts=np.append(panel.starts[:-1], np.uint32(groups + 1)))
    yield replace(panel, starts=panel.starts[::-1].copy())
    yield replace(panel, columns=np.full_like(panel.columns, panel.cols + 1))
    yield replace(panel, columns=panel.columns[:-1])
    yield replace(panel, codes=np.full_like(panel.codes, panel.codebook.size))
    yield replace(panel, codebook=panel.codebook[:1])
    yield replace(panel, width=3)
    yield replace(panel, columns=panel.columns.astype(np.int32))
    swapped = panel.starts.copy()
    swapped[1], swapped[2] = swapped[2], swapped[1]
    yield replace(panel, starts=swapped)


def test_arrays_that_would_lead_outside_memory_are_found(kernels):
    good = from_dense(np.random.default_rng(0).integers(-9, 9, (5, 70)).astype(np.float32))
    good.examine()
    for panel in broken(good.panels[0]):
        with pytest.raises(FormatError):
            Quantized(good.shape, (panel,)).examine()
    with pytest.raises(FormatError):
        Quantized((5, 71), good.panels).examine()
    with pytest.raises(FormatError):
        Quantized((4, 70), good.panels).examine()


def test_the_twins_give_the_same_arrays(monkeypatch, twin):
    layers = [encoded(pruned((40, 300), 0.12, 7), *form) for form in FORMS]
    layers.append(encode_layer("ip", pruned((40, 300), 0.12, 7), 1e-4, "fast"))
    coarse = np.sign(pruned((40, 300), 0.12, 7)) * np.float32(0.3)
    small_chunks(monkeypatch)
    layers += [encoded(coarse, "packed"), encoded(coarse, "mixing")]
    compiled = [from_layer(layer, 2) for layer in layers]
    twin()
    for layer, matrix in zip(layers, compiled, strict=True):
        other = from_layer(layer, 2)
        for a, b in zip(matrix.panels[0].native, other.panels[0].native, strict=True):
            assert np.array_equal(a, b)
        assert np.array_equal(other.dense(), matrix.dense())


def test_a_packed_layer_never_takes_the_memory_of_its_dense_matrix():
    matrix = pruned((500, 4000), 0.05, 9)
    layer = encoded(np.sign(matrix) * np.float32(0.3), "packed")
    tracemalloc.start()
    try:
        quantized = from_layer(layer, 2)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert quantized.nbytes < 2.5 * layer.nonzeros
    # The slow kernels take longer numbers for a while.
    assert peak < layer.dense_bytes / (8 if COMPILED else 4)


def test_from_streams_needs_no_dense_matrix_for_packed(monkeypatch):
    layer = encoded(pruned((40, 300), 0.12, 7), "packed")

    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr("deepsz_caffe.running.build.decode_unchecked", refuse)
    assert isinstance(from_streams(layer).panels[0], Panel)
