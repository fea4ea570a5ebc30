"""Networks whose fc layers run from their compressed form: what the dense ones give, in Caffe."""

import json
from pathlib import Path

import numpy as np
import pytest
import toy as toys

from deepsz_caffe import CompressedLinear, decode
from deepsz_caffe.codecs import DATA, INDEX, MATRIX
from deepsz_caffe.dsz.reader import DszFile
from deepsz_caffe.dsz.writer import write_dsz
from deepsz_caffe.errors import CaffeError, DeepSZWarning, FormatError, InputError, ModelError
from deepsz_caffe.network import schema_pb2
from deepsz_caffe.running.opencv import opencv_net
from deepsz_caffe.runtime.evaluate import decide, evaluate
from deepsz_caffe.runtime.load import load_net
from deepsz_caffe.runtime.pool import CaffePool, run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe
from deepsz_caffe.steps.encode import encode
from tests.hostile.samples import blob, pruned

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("paper", "small", "fast")


@pytest.fixture(scope="module")
def pool():
    with CaffePool(1) as executor:
        yield executor


@pytest.fixture(scope="module", params=PROFILES)
def compressed(toy, tmp_path_factory, request):
    path = tmp_path_factory.mktemp("compressed") / "x.dsz"
    bounds = dict.fromkeys(toys.FC_LAYERS, 0.02)
    contents = encode(toy.network, toy.weights, bounds, request.param, with_prototxt=toy.deploy)
    write_dsz(path, contents)
    return path


def run(network, weights, images, compressed, cache=None):
    """Give what the network says, its layers' types and its weights' shapes."""
    net = load_net(network, weights, compressed=compressed, cache=cache, trial=False)
    net.blobs["data"].reshape(*images.shape)
    net.blobs["data"].data[...] = images
    net.forward()
    blobs = {name: blob.data.copy() for name, blob in net.blobs.items()}
    types = {name: layer.type for name, layer in zip(net._layer_names, net.layers, strict=True)}
    return blobs, types, {name: len(blobs) for name, blobs in net.params.items()}


@pytest.mark.parametrize("batch", [1, 33])
def test_outputs_are_those_of_the_dense_network(toy, pool, compressed, batch):
    images = toy.arrays()["data"][:batch]
    both = [
        pool.submit(run, str(toy.deploy), str(compressed), images, form).result()
        for form in (False, True)
    ]
    (dense, dense_types, _), (ours, types, params) = both
    for name, array in dense.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert {dense_types[name] for name in toys.FC_LAYERS} == {"InnerProduct"}
    assert {types[name] for name in toys.FC_LAYERS} == {"Python"}
    assert params == {"conv": 2}


#: every codec that there is, as profiles of that codec alone
CODECS = [*MATRIX, *(f"{name}+zstd" for name in DATA), *(f"levels+{name}" for name in INDEX)]


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_runs_in_caffe_in_opencv_and_alone_and_convolutions_stay_dense(
    toy, pool, tmp_path, codec
):
    path = tmp_path / "x.dsz"
    bounds = dict.fromkeys(("conv", *toys.FC_LAYERS), 0.02)
    write_dsz(path, encode(toy.network, toy.weights, bounds, codec))
    with DszFile(path) as file:
        wanted = {codec} if codec in MATRIX else {tuple(codec.split("+"))}
        found = {
            (x.data_codec, x.index_codec) if x.index_codec else x.data_codec for x in file.layers
        }
        assert found == wanted
    images = toy.arrays()["data"][:3]
    (dense, _, _), (ours, types, params) = (
        pool.submit(run, str(toy.deploy), str(path), images, form).result()
        for form in (False, True)
    )
    for name, array in dense.items():
        np.testing.assert_allclose(ours[name], array, rtol=1e-5, atol=1e-5, err_msg=name)
    assert {types[name] for name in toys.FC_LAYERS} == {"Python"}
    assert params == {"conv": 2}
    net = opencv_net(toy.deploy, path)
    net.setInput(images)
    np.testing.assert_allclose(net.forward(), ours["ip"], rtol=1e-4, atol=1e-5)
    alone = CompressedLinear.from_dsz(path, "conv", bias=False, dense=False)
    assert np.array_equal(alone.weights.dense(), decode(path)["conv"])


def test_the_file_alone_is_enough_and_no_child_process_is_started(
    toy, pool, compressed, monkeypatch
):
    images = toy.arrays()["data"][:5]
    alone, types, _ = pool.submit(run, str(compressed), None, images, True).result()
    given, _, _ = pool.submit(run, str(toy.deploy), str(compressed), images, True).result()
    assert types["ip"] == "Python"
    for name, array in given.items():
        assert np.array_equal(alone[name], array)
    tried = []
    monkeypatch.setattr(
        "deepsz_caffe.runtime.load.run_in_caffe", lambda *given: tried.append(given)
    )
    monkeypatch.setattr("deepsz_caffe.runtime.load._net", lambda *given: given)
    load_net("net", "x.dsz", compressed=True)
    load_net("net", "x.dsz", trial=False)
    assert tried == []
    load_net("net", "x.dsz")
    load_net("net", "x.dsz", compressed=True, trial=True)
    assert [(*names[1:3], names[3].compressed) for names in tried] == [
        ("net", "x.dsz", False),
        ("net", "x.dsz", True),
    ]


def test_what_one_process_decoded_is_mapped_by_the_next(toy, pool, compressed, tmp_path):
    images = toy.arrays()["data"][:3]
    job = run, str(toy.deploy), str(compressed), images, True
    plain, _, _ = pool.submit(*job).result()
    first, _, _ = pool.submit(*job, str(tmp_path / "cache")).result()
    written = {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()}
    assert len(written) == 3
    second, _, _ = run_in_caffe(*job, str(tmp_path / "cache"))
    assert {path: path.stat().st_ino for path in (tmp_path / "cache").iterdir()} == written
    for name, array in plain.items():
        assert np.array_equal(first[name], array)
        assert np.array_equal(second[name], array)


def decisions(network, weights, compressed):
    return decide(network, weights, (), None, {}, None, compressed)


@pytest.mark.parametrize("name", ["lenet_300_100", pytest.param("lenet_5", marks=pytest.mark.slow)])
def test_the_shipped_networks_decide_every_image_as_the_dense_ones(checkout, pool, name):
    network = str(ROOT / "prototxt" / name / "train_val.prototxt")
    weights = str(ROOT / "models" / name / "paper.dsz")
    dense, ours = (
        pool.submit(decisions, network, weights, form).result() for form in (False, True)
    )
    assert np.array_equal(dense, ours)
    assert dense[0].all()
    assert 9800 < dense[1].sum() < 9999


def test_the_evaluator_counts_the_same(toy, pool, compressed):
    dense = evaluate(toy.network, compressed, executor=pool)
    assert evaluate(toy.network, compressed, executor=pool, compressed=True) == dense
    assert dense.top1_correct > 1400
    with pytest.raises(InputError, match="can't be replaced"):
        evaluate(toy.network, compressed, compressed=True, replace={"ip": np.zeros((10, 40))})


INPUTS = 'layer {{ name: "data" type: "Input" top: "data" input_param {{ shape {{ {} }} }} }}'
FC = """layer { name: "%s" type: "InnerProduct" bottom: "data" top: "%s"
  inner_product_param { num_output: %d %s } %s }
"""


def make(folder, shape, layers, profile="fast"):
    """Write a network of fc layers on one input: name -> (matrix, bias, parameters, more)."""
    dims = " ".join(f"dim: {dim}" for dim in shape)
    text = INPUTS.format(dims) + "\n"
    model = schema_pb2.NetParameter()
    for name, (matrix, bias, parameters, more) in layers.items():
        outputs = matrix.shape[1 if "transpose" in parameters else 0]
        text += FC % (name, name, outputs, parameters, more)
        stored = model.layer.add(name=name.encode(), type=b"InnerProduct")
        stored.blobs.add().CopyFrom(blob(matrix))
        if bias is not None:
            stored.blobs.add().CopyFrom(blob(bias))
    network, weights = folder / "net.prototxt", folder / "net.caffemodel"
    network.write_text(text)
    weights.write_bytes(model.SerializeToString())
    path = folder / "net.dsz"
    write_dsz(path, encode(network, weights, dict.fromkeys(layers, 0.01), profile))
    return str(network), str(path)


def test_axes_biases_and_transposed_weights_are_those_of_inner_product(pool, tmp_path):
    bias = np.arange(6, dtype=np.float32)
    layers = {
        "plain": (pruned((6, 60), 0.2, 1), bias, "", ""),
        "unbiased": (pruned((6, 60), 0.2, 2), None, "bias_term: false", ""),
        "last": (pruned((6, 5), 0.3, 3), bias, "axis: -1", ""),
        "second": (pruned((6, 20), 0.3, 4), bias, "axis: 2", ""),
        "transposed": (pruned((60, 6), 0.2, 5), bias, "transpose: true", ""),
    }
    network, path = make(tmp_path, (4, 3, 4, 5), layers)
    images = np.random.default_rng(0).standard_normal((4, 3, 4, 5)).astype(np.float32)
    dense, _, _ = pool.submit(run, network, path, images, False).result()
    ours, types, params = pool.submit(run, network, path, images, True).result()
    assert {types[name] for name in layers} == {"Python"}
    assert params == {}
    for name in layers:
        assert ours[name].shape == dense[name].shape
        np.testing.assert_allclose(ours[name], dense[name], rtol=1e-5, atol=1e-5)


def test_what_is_faster_dense_or_shared_stays_dense(pool, tmp_path):
    shared = pruned((6, 60), 0.2, 1)
    names = 'param { name: "w" } param { name: "b" }'
    bias = np.ones(6, np.float32)
    layers = {
        "one": (shared, bias, "", names),
        "two": (shared, bias, "", names),
        "full": (pruned((6, 60), 0.9, 2), bias, "", ""),
        "sparse": (pruned((6, 60), 0.1, 3), bias, "", ""),
    }
    network, path = make(tmp_path, (4, 60), layers)
    images = np.random.default_rng(0).standard_normal((4, 60)).astype(np.float32)
    dense, _, _ = pool.submit(run, network, path, images, False).result()
    with pytest.warns(DeepSZWarning) as said:
        ours, types, _ = run_in_caffe(run, network, path, images, True)
    assert [str(warning.message).split(": it runs dense: ") for warning in said] == [
        [f"{path}, layer one", "it shares its weights with another layer"],
        [f"{path}, layer two", "it shares its weights with another layer"],
        [f"{path}, layer full", "90% of its weights are not 0"],
    ]
    assert types["sparse"] == "Python"
    assert {types[name] for name in ("one", "two", "full")} == {"InnerProduct"}
    for name in layers:
        np.testing.assert_allclose(ours[name], dense[name], rtol=1e-5, atol=1e-5)


def by_hand(path, phase, parameter, backward=False, dim=196):
    """Build a network with the layer as a user would write it; runs in a Caffe process."""
    caffe = import_caffe()
    network = Path(path).with_suffix(".hand.prototxt")
    network.write_text(
        INPUTS.format(f"dim: 2 dim: {dim}")
        + f'layer {{ name: "fc" type: "Python" bottom: "data" top: "fc" python_param {{ '
        'module: "deepsz_caffe.runtime.python_layer" layer: "CompressedInnerProduct" '
        f"param_str: {json.dumps(parameter)} }} }}" + ("force_backward: true" if backward else "")
    )
    net = caffe.Net(str(network), getattr(caffe, phase))
    net.blobs["data"].data[...] = 1
    out = net.forward()["fc"].copy()
    if backward:
        net.backward()
    return out


@pytest.fixture
def single(tmp_path):
    return make(
        tmp_path, (2, 196), {"fc": (pruned((6, 196), 0.1, 1), None, "bias_term: false", "")}
    )


def whole(network, path, folder):
    """Try what networks do with all of their weights; give what was said, and outputs."""
    net = load_net(network, path, compressed=True)
    weights = str(Path(folder) / "saved.caffemodel")
    said = []
    for call in (
        lambda: net.save(weights),
        lambda: net.save_hdf5(weights),
        lambda: net.copy_from(weights),
        lambda: net.load_hdf5(weights),
        lambda: net.share_with(net),
    ):
        try:
            call()
        except InputError as error:
            said.append(str(error))
    outputs = []
    for batch in (3, 1, 40):
        net.blobs["data"].reshape(batch, *net.blobs["data"].shape[1:])
        net.reshape()
        net.blobs["data"].data[...] = 1
        outputs.append(next(iter(net.forward().values())).copy())
    return said, outputs, Path(weights).exists()


def test_weights_as_a_whole_are_neither_saved_nor_replaced(pool, single, tmp_path):
    # Caffe would leave the layer out of the file, and end the process at one that has it.
    said, outputs, written = pool.submit(whole, *single, str(tmp_path)).result()
    assert len(said) == 5
    assert all("deepsz expand" in each for each in said)
    assert not written
    for batch, array in zip((3, 1, 40), outputs, strict=True):
        assert array.shape == (batch, 6)
        np.testing.assert_allclose(array[-1], outputs[0][0], rtol=1e-6)


def test_a_cache_is_for_compressed_layers(single, tmp_path):
    with pytest.raises(InputError, match="compressed"):
        load_net(*single, cache=tmp_path)


def test_a_layer_written_by_hand_runs(pool, single):
    parameter = json.dumps({"file": single[1], "layer": "fc"})
    out = pool.submit(by_hand, single[1], "TEST", parameter).result()
    np.testing.assert_allclose(out[0], decode(single[1])["fc"].sum(axis=1), rtol=1e-4, atol=1e-5)


def test_training_is_refused(pool, single):
    parameter = json.dumps({"file": single[1], "layer": "fc"})
    with pytest.raises(InputError, match=r"fc.*: a compressed layer can't be trained"):
        pool.submit(by_hand, single[1], "TRAIN", parameter).result()
    with pytest.raises(InputError, match="fc: a compressed layer has no gradients"):
        pool.submit(by_hand, single[1], "TEST", parameter, True).result()


def test_wrong_parameters_and_inputs_are_named(pool, single):
    for wrong in ("", "fc", '{"file": 3}', "[]", '{"file": 3, "layer": []}', "[" * 50_000):
        with pytest.raises(InputError, match="the parameter of a compressed layer"):
            pool.submit(by_hand, single[1], "TEST", wrong).result()
    parameter = json.dumps({"file": single[1], "layer": "fc"})
    with pytest.raises(ModelError, match=r"layer fc: its input is \[2, 60\], it takes 196 values"):
        pool.submit(by_hand, single[1], "TEST", parameter, dim=60).result()


def test_a_damaged_file_is_refused_before_the_first_product(toy, pool, compressed, tmp_path):
    content = bytearray(compressed.read_bytes())
    with DszFile(compressed) as file:
        offset = file.section_offset("left")
    content[offset + 2] ^= 1
    bad = tmp_path / "bad.dsz"
    bad.write_bytes(content)
    with pytest.raises(FormatError, match="layer left"):
        pool.submit(run, str(toy.deploy), str(bad), np.zeros(1), True).result()
    content[offset + 2] ^= 1
    content[-2] ^= 1  # in the rest
    bad.write_bytes(content)
    with pytest.raises(FormatError, match="rest"):
        pool.submit(run, str(toy.deploy), str(bad), np.zeros(1), True).result()


def test_other_files_and_networks_are_named(toy, pool, compressed, tmp_path):
    with pytest.raises(FormatError, match=r"not a \.dsz file"):
        pool.submit(run, str(toy.deploy), str(toy.weights), np.zeros(1), True).result()
    network = tmp_path / "net.prototxt"
    network.write_text(toy.deploy.read_text().replace("num_output: 24", "num_output: 25"))
    with pytest.raises(ModelError, match="layer left"):
        pool.submit(run, str(network), str(compressed), np.zeros(1), True).result()
    network.write_text(toy.deploy.read_text().replace('"TanH"', '"NoSuch"'))
    with pytest.raises(CaffeError, match="NoSuch"):
        pool.submit(run, str(network), str(compressed), np.zeros(1), True).result()
