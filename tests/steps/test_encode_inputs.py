"""Networks and weights as other people have them: what Caffe takes, `encode` takes."""

import warnings

import numpy as np
import pytest

from deepsz_caffe import DeepSZWarning, ModelError, compress, encode, evaluate, expand, write_dsz
from deepsz_caffe.network import wire
from deepsz_caffe.network.caffemodel import read_caffemodel
from deepsz_caffe.runtime.pool import CaffePool, run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

RANDOM = np.random.default_rng(4)
FC1 = np.where(RANDOM.random((16, 48)) < 0.2, RANDOM.standard_normal((16, 48)), 0).astype("<f2")
FC2 = np.where(RANDOM.random((5, 16)) < 0.4, RANDOM.standard_normal((5, 16)), 0).astype("<f2")
BIASES = {"fc1": RANDOM.standard_normal(16).astype("<f2"), "fc2": np.zeros(5, "<f2")}
WEIGHTS = {"fc1": FC1, "fc2": FC2}
BOUNDS = {"fc1": 0.01, "fc2": 0.02}

DEFINITION = """
name: "t"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
layer { name: "fc1" type: "InnerProduct" bottom: "data" top: "fc1"
  inner_product_param { num_output: 16 } }
layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2"
  inner_product_param { num_output: 5 } }
"""  # noqa: E501
AUX = """layer { name: "aux" type: "InnerProduct" bottom: "fc1" top: "aux" include { phase: TRAIN }
  inner_product_param { num_output: 7 } }"""


def field(number, payload):
    return wire.tag(number, wire.LEN) + wire.varint(len(payload)) + payload


def number(field_number, value):
    return wire.tag(field_number, wire.VARINT) + wire.varint(value)


def blob(array, half=False):
    shape = field(7, field(1, b"".join(map(wire.varint, array.shape))))
    if half:
        return shape + number(10, 2) + field(12, array.astype("<f2").tobytes())
    return shape + field(5, array.astype("<f4").tobytes())


def layer(name, kind=b"InnerProduct", half=False, extra=()):
    arrays = (WEIGHTS[name], BIASES[name], *extra)
    return field(
        100,
        field(1, name.encode())
        + field(2, kind)
        + b"".join(field(7, blob(array, half)) for array in arrays),
    )


MASKS = {name: (WEIGHTS[name] != 0, np.ones_like(BIASES[name])) for name in WEIGHTS}
FILES = {
    "plain": layer("fc1") + layer("fc2"),
    "a fork's types": layer("fc1", b"CInnerProduct") + layer("fc2", b"Sparse"),
    "no types": layer("fc1", b"") + layer("fc2", b""),
    "half precision": layer("fc1", half=True) + layer("fc2", half=True),
    "an empty blob": layer("fc1") + layer("fc2") + field(100, field(1, b"x") + field(7, b"")),
    "masks": layer("fc1", extra=MASKS["fc1"]) + layer("fc2", extra=MASKS["fc2"]),
    "half masks": layer("fc1", half=True, extra=MASKS["fc1"]) + layer("fc2"),
}


def params(network, files):
    """Let Caffe load weights, in this (Caffe) process."""
    net = import_caffe().Net(network, 1)
    found = []
    for file in files:
        net.copy_from(file)
        blobs = {name: [b.data.copy() for b in blobs] for name, blobs in net.params.items()}
        found.append(blobs)
    return found


@pytest.fixture
def paths(tmp_path):
    (tmp_path / "net.prototxt").write_text(DEFINITION)
    return tmp_path


def pass_through(folder, content, network="net.prototxt", **options):
    """Encode and expand; give the expanded network and the notes."""
    (folder / "net.caffemodel").write_bytes(content)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepSZWarning)
        place = None if network is None else folder / network
        write_dsz(folder / "o.dsz", encode(place, folder / "net.caffemodel", BOUNDS, **options))
    expand(folder / "o.dsz", folder / "o.caffemodel")
    return read_caffemodel(folder / "o.caffemodel"), [str(each.message) for each in caught]


def check(model):
    for name, bound in BOUNDS.items():
        original = WEIGHTS[name].astype(np.float64)
        assert np.abs(model[name].matrix - original).max() <= bound
        assert not model[name].matrix[original == 0].any()
        np.testing.assert_array_equal(model[name].blobs[1].data, BIASES[name])


@pytest.mark.parametrize("network", ["net.prototxt", None])
@pytest.mark.parametrize("kind", FILES)
def test_what_caffe_takes_is_encoded(kind, network, paths):
    model, notes = pass_through(paths, FILES[kind], network)
    check(model)
    before = read_caffemodel(paths / "net.caffemodel")
    assert [x.type for x in model.layers] == [x.type for x in before.layers]
    assert [len(x.blobs) for x in model.layers] == [len(x.blobs) for x in before.layers]
    assert bool(notes) == ("masks" in kind and network is not None)


def test_what_is_expanded_loads_in_caffe(paths):
    ours, files = {}, []
    for kind, content in FILES.items():
        model, notes = pass_through(paths, content, extra_blobs="drop")
        check(model)
        assert bool(notes) == ("masks" in kind)
        ours[kind] = {name: [b.data for b in model[name].blobs] for name in WEIGHTS}
        files.append(str((paths / "o.caffemodel").rename(paths / kind)))
    found = run_in_caffe(params, str(paths / "net.prototxt"), files)
    for kind, caffe in zip(FILES, found, strict=True):
        for name, blobs in ours[kind].items():
            for one, other in zip(caffe[name], blobs, strict=True):
                np.testing.assert_array_equal(one, other.reshape(one.shape))


def test_what_caffe_takes_is_measured(paths):
    data = {"data": RANDOM.standard_normal((20, 3, 4, 4)).astype("<f4"), "label": np.arange(20) % 5}
    scores = {}
    with CaffePool(1) as pool, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepSZWarning)
        for kind, content in FILES.items():
            (paths / "net.caffemodel").write_bytes(content)
            files = (paths / "net.prototxt", paths / "net.caffemodel")
            scores[kind] = evaluate(*files, data=data, executor=pool)
    assert len(set(scores.values())) == 1
    assert sum("the rest is left out" in str(each.message) for each in caught) == 3


@pytest.mark.parametrize("choice", ["keep", "drop"])
def test_compress_keeps_or_drops_masks_as_encode_does(choice, paths):
    (paths / "net.caffemodel").write_bytes(FILES["masks"])
    data = {"data": RANDOM.standard_normal((20, 3, 4, 4)).astype("<f4"), "label": np.arange(20) % 5}
    files = [paths / name for name in ("net.prototxt", "net.caffemodel", "o.dsz")]
    options = {"max_loss": 0.5, "confidence": 0.5, "data": data, "extra_blobs": choice}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DeepSZWarning)
        compress(*files, **options)
    expand(paths / "o.dsz", paths / "o.caffemodel")
    model = read_caffemodel(paths / "o.caffemodel")
    assert [len(model[name].blobs) for name in BOUNDS] == ([2, 2] if choice == "drop" else [4, 4])
    said = "are dropped" if choice == "drop" else "are kept"
    assert sum(said in str(each.message) for each in caught) == 1


def test_a_layer_that_only_training_has_may_be_missing(paths):
    (paths / "aux.prototxt").write_text(DEFINITION + AUX)
    check(pass_through(paths, FILES["plain"], "aux.prototxt")[0])
    (paths / "aux.prototxt").write_text(DEFINITION + AUX.replace("TRAIN", "TEST"))
    with pytest.raises(ModelError, match="layer aux: the network's layer is not in"):
        encode(paths / "aux.prototxt", paths / "net.caffemodel", BOUNDS)
    (paths / "aux.prototxt").write_text(DEFINITION + AUX)
    with pytest.raises(ModelError, match="layer aux: the network's layer is not in"):
        encode(paths / "aux.prototxt", paths / "net.caffemodel", {**BOUNDS, "aux": 0.1})


def test_one_name_in_two_phases_is_the_layer_of_the_test(paths):
    twice = AUX.replace('"aux"', '"fc2"') + DEFINITION
    (paths / "twice.prototxt").write_text(twice)
    check(pass_through(paths, FILES["plain"], "twice.prototxt")[0])


@pytest.mark.parametrize(
    "name", ["file", "class", "../../x", "7", "n" * 250, "层=2,b", "fc 1/a", "a\nb", "[b]"]
)
def test_names_are_data(name, paths):
    escaped = name.replace("\n", "\\n")
    (paths / "net.prototxt").write_text(DEFINITION.replace('"fc1"', f'"{escaped}"'))
    content = FILES["plain"].replace(layer("fc1"), _renamed(name))
    (paths / "net.caffemodel").write_bytes(content)
    contents = encode(paths / "net.prototxt", paths / "net.caffemodel", {name: 0.01})
    write_dsz(paths / "o.dsz", contents)
    expand(paths / "o.dsz", paths / "o.caffemodel")
    assert np.abs(read_caffemodel(paths / "o.caffemodel")[name].matrix - FC1).max() <= 0.01


def _renamed(name):
    arrays = b"".join(field(7, blob(array)) for array in (FC1, BIASES["fc1"]))
    return field(100, field(1, name.encode()) + field(2, b"InnerProduct") + arrays)
