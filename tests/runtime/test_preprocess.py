"""Preprocessing against Caffe's Transformer and oversample, and its Data layer, on a photograph."""

import contextlib

import caffe
import cv2
import lmdb
import numpy as np
import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import cbook

from deepsz_caffe.errors import DataError, InputError, ModelError
from deepsz_caffe.runtime.preprocess import (
    Preprocessing,
    parse_preprocessing,
    picture_input,
    preprocess,
)

MEANS = (104.0, 117.0, 123.0)


@pytest.fixture(scope="module")
def photo():
    """Give a real photograph as OpenCV reads it, uint8[100, 120, 3]."""
    with cbook.get_sample_data("grace_hopper.jpg") as file:
        whole = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    return np.ascontiguousarray(whole[100:200, 150:270])


@pytest.fixture
def mean_file(photo, tmp_path):
    """Write a mean image of a given size; gives its path and its values."""

    def write(height, width):
        values = np.random.default_rng(0).uniform(90, 130, (3, height, width)).astype(np.float32)
        path = tmp_path / f"mean-{height}-{width}.binaryproto"
        blob = caffe_pb2.BlobProto(num=1, channels=3, height=height, width=width)
        blob.data.extend(values.reshape(-1))
        path.write_bytes(blob.SerializeToString())
        return str(path), values

    return write


def transformed(photo, how, mean):
    """Do as classify.py: a picture in RGB from 0 to 1, Caffe's Transformer."""
    loaded = photo[:, :, ::-1].astype(np.float32) / np.float32(255)
    transformer = caffe.io.Transformer({"data": (1, *how.shape)})
    transformer.set_transpose("data", (2, 0, 1))
    transformer.set_channel_swap("data", how.channel_swap)
    transformer.set_raw_scale("data", 255)
    transformer.set_mean("data", np.asarray(mean))
    transformer.set_input_scale("data", how.scale)
    crops = [loaded]
    if how.crops == 10:
        crops = caffe.io.oversample([loaded], how.shape[1:])
    return np.stack([transformer.preprocess("data", crop) for crop in crops])


@pytest.mark.parametrize("swap", [(2, 1, 0), (0, 1, 2), (1, 2, 0)])
@pytest.mark.parametrize("scale", [1.0, 0.017])
def test_as_caffes_transformer(photo, swap, scale):
    how = Preprocessing((3, 100, 120), mean=MEANS, scale=scale, channel_swap=swap)
    np.testing.assert_allclose(
        preprocess(photo, how), transformed(photo, how, MEANS), rtol=1e-5, atol=1e-4
    )


@pytest.mark.parametrize("by_file", [False, True])
def test_ten_crops_as_caffes_oversample(photo, by_file, mean_file):
    path, values = mean_file(60, 70)
    how = Preprocessing(
        (3, 60, 70), crop="10", mean=() if by_file else MEANS, mean_file=path if by_file else None
    )
    found = preprocess(photo, how)
    assert found.shape == (10, 3, 60, 70)
    expected = transformed(photo, how, values if by_file else MEANS)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("mean", ["", "values", "one", "file"])
@pytest.mark.parametrize("crop", [0, 61])
def test_as_caffes_data_layer(photo, mean, crop, mean_file, tmp_path):
    means = {
        "": "",
        "values": "mean_value: 104 mean_value: 117 mean_value: 123",
        "one": "mean_value: 110",
        "file": f'mean_file: "{mean_file(100, 120)[0]}"',
    }
    datum = caffe_pb2.Datum(channels=3, height=100, width=120, label=7)
    datum.data = photo.transpose(2, 0, 1).tobytes()
    with (
        lmdb.open(str(tmp_path / "one_lmdb"), map_size=1 << 20) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(b"0", datum.SerializeToString())
    path = tmp_path / "net.prototxt"
    path.write_text(f"""layer {{ name: "data" type: "Data" top: "data" top: "label"
      data_param {{ source: "{tmp_path}/one_lmdb" backend: LMDB batch_size: 1 }}
      transform_param {{ scale: 0.0078125 crop_size: {crop} {means[mean]} }} }}""")
    net = caffe.Net(str(path), caffe.TEST)
    net.forward()
    entry = picture_input(text_format.Parse(path.read_text(), caffe_pb2.NetParameter()))
    assert (entry.layer, entry.batch) == (0, 1)
    assert entry.how.shape == (3, crop or 100, crop or 120)
    np.testing.assert_array_equal(preprocess(photo, entry.how), net.blobs["data"].data)


def test_scaling_is_that_of_image_data(photo):
    how = Preprocessing((3, 40, 50), resize=(64, 80))
    expected = cv2.resize(photo, (80, 64))[12:52, 15:65].transpose(2, 0, 1)
    np.testing.assert_array_equal(preprocess(photo, how)[0], expected)
    gray = cv2.cvtColor(photo, cv2.COLOR_BGR2GRAY)[:, :, None]
    small = preprocess(gray, Preprocessing((1, 28, 28), resize=(28, 28), scale=1 / 256))
    np.testing.assert_array_equal(small[0, 0], cv2.resize(gray, (28, 28)) / np.float32(256))


def net_of(text):
    return text_format.Parse(text, caffe_pb2.NetParameter())


def test_a_deploy_network_says_its_size_alone():
    layer = """layer { name: "d" type: "Input" top: "data"
      input_param { shape { dim: [10, 3, 227, 227] } } }"""
    entry = picture_input(net_of(layer))
    assert entry.batch == 10
    assert entry.how == Preprocessing((3, 227, 227), resize=(227, 227))


def test_an_image_list_says_how_without_its_source():
    entry = picture_input(
        net_of("""layer { name: "d" type: "ImageData" top: "data" top: "label"
          image_data_param { source: "none" batch_size: 4 new_height: 30 new_width: 40 }
          transform_param { crop_size: 24 mean_value: 9 scale: 0.5 } }""")
    )
    assert entry.how == Preprocessing((3, 24, 24), resize=(30, 40), mean=(9,), scale=0.5)


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ('layer { name: "x" type: "ReLU" bottom: "a" top: "a" }', "has 0: none"),
        (
            """layer { name: "d" type: "Input" top: "data" top: "im_info"
            input_param { shape { dim: [1, 3, 9, 9] } shape { dim: [1, 3] } } }""",
            "takes data, im_info of 1 × 3 × 9 × 9 and 1 × 3",
        ),
        (
            'layer { name: "d" type: "Input" top: "d" input_param { shape { dim: [1, 30] } } }',
            "of 1 × 30, not one batch",
        ),
        (
            'layer { name: "a" type: "Input" top: "a" } layer { name: "b" type: "Input" top: "b" }',
            "a, b",
        ),
    ],
)
def test_networks_that_pictures_do_not_fill(layers, said):
    with pytest.raises(ModelError, match=said):
        picture_input(net_of(layers))


@pytest.mark.parametrize(
    "options",
    [
        {"crop": "5"},
        {"resize": (10, 9)},
        {"mean": (1, 2)},
        {"mean": (1,), "mean_file": "m"},
        {"mean": (float("nan"),)},
        {"scale": 0.0},
        {"channel_swap": (0, 1)},
        {"shape": (1, 10, 10), "channel_swap": (0, 1, 2)},
        {"shape": (3, 0, 10)},
    ],
)
def test_what_contradicts_itself_is_refused(options):
    with pytest.raises(InputError):
        Preprocessing(**{"shape": (3, 10, 10)} | options)


def test_a_mean_that_is_no_number_is_said():
    with pytest.raises(InputError, match=r"mean: 1\.0,nan,2\.0 is not finite"):
        Preprocessing((3, 10, 10), mean=(1.0, float("nan"), 2.0))


def test_pictures_that_do_not_fit_are_refused(photo, mean_file):
    for how, said in (
        (Preprocessing((1, 10, 10)), "120 × 3 for an input of 1 channel"),
        (Preprocessing((3, 101, 10)), "100 × 120 is smaller.*--resize 101,10"),
        (Preprocessing((3, 9, 9), mean_file=mean_file(50, 50)[0]), "a mean of 3 × 50 × 50"),
        (Preprocessing((3, 9, 9), mean_file="/nowhere"), "/nowhere"),
    ):
        with pytest.raises(DataError, match=said):
            preprocess(photo, how)


sizes = st.tuples(st.sampled_from([1, 3, 4]), st.integers(1, 500), st.integers(1, 500))


@given(
    sizes,
    st.booleans(),
    st.sampled_from(["center", "10"]),
    st.lists(st.floats(-300, 300, width=32), max_size=4),
    st.floats(0.0078125, 10, width=32),
    st.permutations([0, 1, 2]),
)
def test_it_is_read_as_it_is_written(shape, resized, crop, mean, scale, swap):
    try:
        how = Preprocessing(
            shape,
            resize=shape[1:] if resized else None,
            crop=crop,
            mean=tuple(float(f"{value:.9g}") for value in mean),
            scale=float(f"{scale:.9g}"),
            channel_swap=tuple(swap),
        )
    except InputError:
        return
    assert parse_preprocessing(str(how)) == how


@given(st.text(alphabet="0123x; resizcropmanflhBGR,.-", max_size=60))
def test_other_text_is_refused(text):
    with contextlib.suppress(InputError):
        how = parse_preprocessing(text)
        assert parse_preprocessing(str(how)) == how
