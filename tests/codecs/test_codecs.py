"""Every registered codec: round trips, exact sizes, damaged streams, deterministic output."""

import numcodecs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from deepsz_caffe import codecs
from deepsz_caffe.errors import CodecError, InputError

BOUNDS = (1e-3, 1e-2, 1e-1)
#: codecs whose streams have no redundancy by which they would know every cut
ARITHMETIC = {"deepsz-mixing", "deepsz-mixing-step", "deepsz-levels"}


def laplacian(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(0, 0.05, count).astype(np.float32)


def steps(count: int, seed: int = 0) -> np.ndarray:
    gaps = np.random.default_rng(seed).geometric(0.08, count)
    return gaps.clip(0, 255).astype(np.uint8)


def pruned(rows: int, cols: int, density: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weights = rng.laplace(0, 0.05, (rows, cols)).astype(np.float32)
    if density < 1:
        weights[np.abs(weights) <= np.quantile(np.abs(weights), 1 - density)] = 0
    return weights


def assert_within(weights: np.ndarray, decoded: np.ndarray, bound: float) -> None:
    assert np.all(np.abs(weights.astype(np.float64) - decoded.astype(np.float64)) <= bound)


def samples(kind: str) -> list[tuple[object, np.ndarray]]:
    """Every codec of one registry, with an array that it can encode."""
    if kind == "index":
        return [(codec(), steps(4000)) for codec in codecs.INDEX.values()]
    if kind == "data":
        return [(codec(1e-2), laplacian(4000)) for codec in codecs.DATA.values()]
    return [(codec(1e-2), pruned(50, 80, 0.1)) for codec in codecs.MATRIX.values()]


def all_samples() -> list:
    pairs = [pair for kind in ("index", "data", "matrix") for pair in samples(kind)]
    return [pytest.param(*pair, id=pair[0].codec_id) for pair in pairs]


@pytest.mark.parametrize("name", codecs.INDEX)
@given(index=hnp.arrays(np.uint8, st.integers(1, 3000)))
@settings(max_examples=20, deadline=None)
def test_index_codecs_are_lossless(name: str, index: np.ndarray):
    codec = codecs.INDEX[name]()
    out = np.empty_like(index)
    assert codec.decode(codec.encode(index), out) is out
    assert np.array_equal(out, index)


@pytest.mark.parametrize("name", codecs.DATA)
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("count", [1, 2, 7, 300, 20_000])
def test_data_codecs_keep_the_bound(name: str, bound: float, count: int):
    values = laplacian(count)
    codec = codecs.DATA[name](bound)
    assert_within(values, codec.decode(codec.encode(values), np.empty_like(values)), bound)


@pytest.mark.parametrize("name", codecs.DATA)
@given(
    values=hnp.arrays(np.float32, st.integers(1, 200), elements=st.floats(-8, 8, width=32)),
    bound=st.floats(1e-4, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_data_codecs_keep_any_bound(name: str, values: np.ndarray, bound: float):
    codec = codecs.DATA[name](bound)
    assert_within(values, codec.decode(codec.encode(values), np.empty_like(values)), bound)


@pytest.mark.parametrize("name", codecs.MATRIX)
@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (7, 9), (60, 784)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.3, 1.0])
def test_matrix_codecs_keep_the_bound(name, bound, shape, density):
    weights = pruned(*shape, density)
    codec = codecs.MATRIX[name](bound)
    decoded = codec.decode(codec.encode(weights), np.full_like(weights, np.nan))
    assert_within(weights, decoded, bound)
    assert np.all(decoded[np.abs(weights) <= bound] == 0)


@pytest.mark.parametrize("name", codecs.MATRIX)
@given(
    weights=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 12), st.integers(1, 12)),
        elements=st.floats(-8, 8, width=32),
    ),
    bound=st.floats(1e-3, 1.0),
)
@settings(max_examples=50, deadline=None)
def test_matrix_codecs_keep_any_bound(name, weights, bound):
    codec = codecs.MATRIX[name](bound)
    assert_within(weights, codec.decode(codec.encode(weights), np.empty_like(weights)), bound)


@pytest.mark.parametrize("name", codecs.MATRIX)
def test_a_bound_too_small_for_float32_is_refused(name):
    with pytest.raises(CodecError, match="bound"):
        codecs.MATRIX[name](1e-9).encode(pruned(10, 10, 0.5))


@pytest.mark.parametrize(("codec", "array"), all_samples())
class TestEveryCodec:
    def test_output_is_deterministic(self, codec, array):
        assert codec.encode(array) == codec.encode(array.copy())

    def test_another_size_is_refused(self, codec, array):
        stream = codec.encode(array)
        for extra in (-1, 1):
            shape = (array.shape[0] + extra, *array.shape[1:])
            if array.ndim == 1 and codec.codec_id not in {*ARITHMETIC, "deepsz-zfp"}:
                with pytest.raises(CodecError):
                    codec.decode(stream, np.empty(shape, array.dtype))

    def test_a_truncated_stream_is_refused(self, codec, array):
        stream = codec.encode(array)
        # Short of its last bytes an arithmetic code can be that of another matrix.
        tail = 16 if codec.codec_id in ARITHMETIC else 1
        for length in (0, 1, 8, len(stream) // 2, len(stream) - tail):
            with pytest.raises(CodecError):
                codec.decode(stream[:length], np.empty_like(array))

    @pytest.mark.parametrize("wrong", ["float64", "big-endian", "rank", "empty"])
    def test_wrong_input_is_refused(self, codec, array, wrong):
        given = {
            "float64": array.astype(np.float64),
            "big-endian": array.astype(">f4"),
            "rank": array[None],
            "empty": array[:0],
        }[wrong]
        with pytest.raises(CodecError):
            codec.encode(given)

    def test_wrong_output_is_refused(self, codec, array):
        stream = codec.encode(array)
        read_only = np.empty_like(array)
        read_only.flags.writeable = False
        for out in (read_only, array.astype(np.float64), array[None], None):
            with pytest.raises(CodecError):
                codec.decode(stream, out)

    def test_numcodecs_rebuilds_it_from_its_configuration(self, codec, array):
        config = {**codec.get_config(), "shape": array.shape}
        again = numcodecs.get_codec(config)
        decoded = again.decode(codec.encode(array))
        assert np.array_equal(decoded, codec.decode(codec.encode(array), np.empty_like(array)))


@pytest.mark.parametrize(("codec", "array"), list(samples("data") + samples("matrix")))
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_a_number_is_refused(codec, array, bad):
    array = array.copy()
    array.flat[3] = bad
    with pytest.raises(CodecError, match="NaN"):
        codec.encode(array)


@pytest.mark.parametrize("bound", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize("name", [*codecs.DATA, *codecs.MATRIX])
def test_a_senseless_bound_is_refused(name, bound):
    with pytest.raises(CodecError, match="bound"):
        {**codecs.DATA, **codecs.MATRIX}[name](bound)


@pytest.mark.parametrize("name", ["gzip", "zstd", "blosc", "brotli", "lzma", "bz2"])
def test_a_bomb_is_refused(name):
    bomb = codecs.INDEX[name]().encode(np.zeros(50_000_000, np.uint8))
    with pytest.raises(CodecError):
        codecs.INDEX[name]().decode(bomb, np.empty(1000, np.uint8))


@pytest.mark.parametrize("name", codecs.PROFILES)
def test_profiles_name_codecs_that_exist(name):
    profile = codecs.profile(name)
    assert set(profile.data) <= set(codecs.DATA)
    assert set(profile.index) <= set(codecs.INDEX)
    assert set(profile.matrix) <= set(codecs.MATRIX)


def test_an_unknown_profile_is_wrong_use():
    with pytest.raises(InputError, match="paper"):
        codecs.profile("tiny")
