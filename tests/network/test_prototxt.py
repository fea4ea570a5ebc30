"""Definitions of all ages and of forks, read as Caffe does; what it does not know is named."""

import warnings

import pytest

from deepsz_caffe.errors import DeepSZWarning, ModelError
from deepsz_caffe.network.layers import compressible_layers
from deepsz_caffe.network.prototxt import phase, read_any_prototxt, read_prototxt, read_solver
from deepsz_caffe.runtime.pool import run_in_caffe
from deepsz_caffe.runtime.worker import import_caffe

DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 48 } } }\n'
FC = """layer { name: "fc1" type: "InnerProduct" bottom: "data" top: "fc1"
  inner_product_param { num_output: 16 } }
"""
REST = """layer { name: "fc2" type: "InnerProduct" bottom: "fc1" top: "fc2"
  inner_product_param { num_output: 5 transpose: true bias_term: false } }
"""
PLAIN = DATA + FC + REST
V1 = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4
layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv" blobs_lr: 1
  convolution_param { num_output: 4 kernel_size: 3 } }
layers { name: "fc1" type: INNER_PRODUCT bottom: "conv" top: "fc1"
  inner_product_param { num_output: 16 } }
"""
V0 = """
input: "data" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4
layers { layer { name: "pad" type: "padding" pad: 1 } bottom: "data" top: "pad" }
layers { layer { name: "conv" type: "conv" num_output: 4 kernelsize: 3 } bottom: "pad" top: "conv" }
layers { layer { name: "fc1" type: "innerproduct" num_output: 16 } bottom: "conv" top: "fc1" }
"""


@pytest.fixture
def read(tmp_path):
    """Write a definition, text or bytes, and read it leniently; give the network and the notes."""

    def read(content, unknown="note"):
        path = tmp_path / "net.prototxt"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", DeepSZWarning)
            net = read_any_prototxt(path)[0] if unknown == "note" else read_prototxt(path)
        return net, [str(each.message) for each in caught]

    return read


def built(text):
    """Let Caffe build a network in this (Caffe) process: names, types and shapes."""
    from pathlib import Path

    Path("net.prototxt").write_text(text)
    caffe = import_caffe()
    net = caffe.Net("net.prototxt", caffe.TEST)
    types = [layer.type for layer in net.layers]
    shapes = {name: [tuple(b.data.shape) for b in blobs] for name, blobs in net.params.items()}
    return list(zip(net._layer_names, types, strict=True)), shapes


@pytest.mark.parametrize("text", [PLAIN, V1, V0])
def test_definitions_of_all_ages_are_those_that_caffe_builds(text, read, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, notes = read(text)
    layers, shapes = run_in_caffe(built, text)
    assert [(layer.name, layer.type) for layer in net.layer] == layers
    for layer in compressible_layers(net):
        rows, columns = shapes[layer.name][0]
        assert layer.rows in (None, rows)
        assert layer.columns in (None, columns)
        assert layer.num_output == (columns if layer.rows is None else rows)
        assert layer.bias == (len(shapes[layer.name]) == 2)
    assert not notes


UNKNOWN = {
    # what a fork added -> the note
    FC.replace("16", '16 weight_mask_filler { type: "constant" value: 1 }'): "weight_mask_filler",
    'layer { name: "n" type: "ReLU" norm_param { across_spatial: false scale_filler { value: 2 } } '
    'bottom: "data" top: "data" }': "layer n: norm_param (line 2)",
    'layer { name: "n" type: "ReLU6" bottom: "data" top: "data" }': "layer n: type ReLU6",
    'layer { type: "Permute" name: "p" permute_param < order: 0 order: [1, 2,3] >; bottom: "data", '
    'top: "data" }': "layer p: permute_param",
    'layer { name: "p" type: "Pooling" pooling_param { pool: SOFT } }': "layer p: pool SOFT",
    'layer { name: "q" type: "ReLU" relu_param { engine: INT8 } x: -8.5e-3 }': "engine INT8",
    "quantization { bits: 8 }": "quantization",
    'layer { name: "e" type: "ReLU" [fork.options] { x: "}" } }': "[fork.options]",
    'layer { name: "e" type: "ReLU" x { a { b < c: 1 > d: { } } e: "a" "b" \'c\' } }': "layer e: x",
    'layer { name: "d" type: "Data" transform_param { fixed_crop: true # } "\n } }': "fixed_crop",
}  # fmt: skip


@pytest.mark.parametrize("added", UNKNOWN)
def test_what_this_caffe_does_not_know_is_named(added, read):
    net, notes = read(DATA + added + "\n" + PLAIN.removeprefix(DATA))
    assert len(notes) == 1
    assert UNKNOWN[added] in notes[0]
    assert [layer.name for layer in compressible_layers(net)] == ["fc1", "fc2"]


@pytest.mark.parametrize("added", [key for key in UNKNOWN if "ReLU6" not in key])
def test_what_runs_a_network_refuses_it(added, read):
    with pytest.raises(ModelError, match="which does not know"):
        read(DATA + added + "\n" + PLAIN.removeprefix(DATA), unknown="refuse")


def test_a_type_that_v1_lacks_is_kept(read):
    net, notes = read(V1.replace("CONVOLUTION", "DEPTHWISE_CONVOLUTION"))
    assert [layer.type for layer in net.layer] == ["Input", "DEPTHWISE_CONVOLUTION", "InnerProduct"]
    assert "layer conv: type DEPTHWISE_CONVOLUTION" in notes[0]


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "utf-8"])
def test_comments_and_names_are_read_in_any_encoding(encoding, read):
    comment = {"latin-1": "café", "gbk": "全连接层", "utf-8": "層"}[encoding]
    content = f'# {comment} "\nname: "{comment}" # {{\n{PLAIN}'.encode(encoding)
    net, notes = read(content)
    assert [layer.name for layer in net.layer] == ["data", "fc1", "fc2"]
    assert not notes
    net, _ = read(content, unknown="refuse")
    assert net.name == (comment if encoding == "utf-8" else net.name)


def test_a_name_that_is_no_utf8_is_that_of_the_weights(read):
    for name in (b"caf\xe9", rb"caf\351", rb"caf\xe9"):
        net, _ = read(PLAIN.encode().replace(b'name: "fc1"', b'name: "' + name + b'"'))
        assert net.layer[1].name == "caf\\xe9"
    net, _ = read(PLAIN.replace('name: "fc1"', r'name: "\345\261\202=2,b"'))
    assert net.layer[1].name == "层=2,b"


def test_a_byte_order_mark_is_named(read):
    net, notes = read(b"\xef\xbb\xbf" + PLAIN.encode())
    assert len(net.layer) == 3
    assert "byte order mark" in notes[0]
    with pytest.raises(ModelError, match="byte order mark, which Caffe refuses"):
        read(b"\xef\xbb\xbf" + PLAIN.encode(), unknown="refuse")
    with pytest.raises(ModelError, match="UTF-16"):
        read(PLAIN.encode("utf-16"))


@pytest.mark.parametrize(
    "content",
    ["", "garbage", "layer {", 'layer { name: "x', "}", "layer: 5", "layer {" * 1000, "a:" * 1000,
     'layer { name: "a" name: "b" }', b"\x0a\x00\x01", 'layer { name: "\\777777" }{', "[" * 5000,
     'layer { name: "a" convolution_param { num_output: "x" } }'],
)  # fmt: skip
def test_what_is_no_definition_is_an_error(content, read):
    with pytest.raises(ModelError):
        read(content)


def test_layers_of_a_phase_and_stage(read):
    net, _ = read(PLAIN + FC.replace("fc1", "aux").replace("bottom", "include{phase:TRAIN} bottom"))
    assert [layer.name for layer in phase(net, "TEST").layer] == ["data", "fc1", "fc2"]
    assert [layer.name for layer in phase(net, "TRAIN").layer] == ["data", "fc1", "fc2", "aux"]


SOLVERS = {
    "SGD": "SGD", "NESTEROV": "Nesterov", "ADAGRAD": "AdaGrad", "RMSPROP": "RMSProp",
    "ADADELTA": "AdaDelta", "ADAM": "Adam",
}  # fmt: skip


def test_the_old_solver_type_is_the_type_that_caffe_builds(tmp_path):
    found = set()
    for old, new in SOLVERS.items():
        (tmp_path / "s.prototxt").write_text(f'net: "n"\nsolver_type: {old}\n')
        solver = read_solver(tmp_path / "s.prototxt")
        assert (solver.type, solver.HasField("solver_type")) == (new, False)
        found.add(solver.type)
    assert found <= run_in_caffe(_solver_types)


def _solver_types():
    caffe = import_caffe()
    return {each.removesuffix("Solver") for each in dir(caffe) if each.endswith("Solver")}


def test_networks_of_a_solver_are_found_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("train.prototxt", "test.prototxt"):
        (folder / name).write_text(PLAIN)
    (folder / "s.prototxt").write_text(
        'train_net: "x/train.prototxt" test_net: "x/test.prototxt" test_iter: 1'
    )
    solver = read_solver(folder / "s.prototxt")
    assert solver.train_net == str(folder / "train.prototxt")
    assert list(solver.test_net) == [str(folder / "test.prototxt")]


@pytest.mark.parametrize("level", ["0", "4"])
@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            'input: "x" layers { layer { name: "a" type: "bogus" } bottom: "x" top: "y" }',
            "Unknown layer name: bogus",
        ),
        ('layers { layer { name: "a" type: "relu" } bottom: "x" top: 3 }', "string"),
    ],
)
def test_why_caffe_can_not_upgrade_a_definition_is_said(text, why, level, read, monkeypatch):
    monkeypatch.setenv("GLOG_minloglevel", level)  # 4 silences Caffe's last words, too
    with pytest.raises(ModelError, match=why):
        read(text)
