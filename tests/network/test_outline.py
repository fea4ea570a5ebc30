"""Definitions read without Caffe, against Caffe's own reading of the same files."""

from pathlib import Path

import pytest
from caffe.proto import caffe_pb2

from deepsz_caffe.errors import ModelError
from deepsz_caffe.network import outline_pb2, schema_pb2
from deepsz_caffe.network.graph import find_outputs
from deepsz_caffe.network.outline import read_outline
from deepsz_caffe.network.prototxt import phase, read_prototxt

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted(
    path
    for name in ("deploy", "train_val", "retrain_net")
    for path in (ROOT / "prototxt").glob(f"*/{name}.prototxt")
)
BODY = """
  blobs_lr: 1 convolution_param { num_output: 4 kernel_size: 3 } }
layers { name: "relu" type: RELU bottom: "conv" top: "conv" }
layers { name: "p" type: SOFTMAX bottom: "conv" top: "p" include { phase: TEST } }
layers { name: "loss" type: SOFTMAX_LOSS bottom: "conv" top: "loss" include { phase: TRAIN } }
"""
V1 = (
    'input: "data" input_dim: 2 input_dim: 3 input_dim: 4 input_dim: 4\n'
    'layers { name: "conv" type: CONVOLUTION bottom: "data" top: "conv"' + BODY
)


def test_every_field_is_one_of_caffes():
    """Names, numbers, types and defaults, in the messages that Caffe has them in."""
    waiting = [
        (outline_pb2.NetParameter.DESCRIPTOR, caffe_pb2.NetParameter.DESCRIPTOR),
        (schema_pb2.Datum.DESCRIPTOR, caffe_pb2.Datum.DESCRIPTOR),
    ]
    seen = set()
    while waiting:
        ours, caffes = waiting.pop()
        if ours.full_name in seen:
            continue
        seen.add(ours.full_name)
        for field in ours.fields:
            other = caffes.fields_by_name[field.name]
            facts = [(f.number, f.type) for f in (field, other)]
            assert facts[0] == facts[1], field.full_name
            assert field.default_value == other.default_value, field.full_name
            if field.message_type is not None:
                waiting.append((field.message_type, other.message_type))
            if field.enum_type is not None:
                for value in field.enum_type.values:
                    assert other.enum_type.values_by_name[value.name].number == value.number
    assert len(seen) > 15


def described(net):
    return [(x.name, x.type, list(x.bottom), list(x.top)) for x in net.layer]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
@pytest.mark.parametrize("wanted", ["TEST", "TRAIN"])
def test_layers_are_those_that_caffe_reads(path, wanted):
    outline = read_outline(path, wanted)
    truth = phase(read_prototxt(path), wanted)
    assert described(outline.net) == described(truth)
    assert find_outputs(outline.net) == find_outputs(truth)


def test_an_old_definition_is_todays(tmp_path):
    path = tmp_path / "v1.prototxt"
    path.write_text(V1)
    outline, truth = read_outline(path), phase(read_prototxt(path), "TEST")
    assert described(outline.net) == described(truth)
    assert outline.net.layer[0].input_param.shape[0].dim == [2, 3, 4, 4]
    (output,) = find_outputs(outline.net)
    assert (output.version.blob, output.scores, output.sure) == ("p", True, True)


def test_what_is_fed_takes_the_place_of_what_reads(tmp_path):
    """What OpenCV is given is read again by Caffe: the layers that are needed, and no others."""
    path = ROOT / "prototxt" / "lenet_5" / "train_val.prototxt"
    outline = read_outline(path)
    names = [layer.name for layer in outline.net.layer]
    needed = [names.index(name) for name in ("data", "conv1", "pool1")]
    fed = tmp_path / "fed.prototxt"
    fed.write_text(outline.fed({"data": (7, 1, 28, 28)}, needed))
    net = read_prototxt(fed)
    assert [layer.name for layer in net.layer] == ["input", "conv1", "pool1"]
    assert net.layer[0].input_param.shape[0].dim == [7, 1, 28, 28]
    original = read_prototxt(path)
    kept = {layer.name: layer for layer in original.layer}
    assert list(net.layer[1:]) == [kept["conv1"], kept["pool1"]]


def test_nothing_of_a_forks_layer_is_lost(tmp_path):
    fork = (
        'input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\n'
        'layer { name: "n" type: "Normalize" bottom: "data" top: "n" # 20 at first\n'
        "  norm_param { across_spatial: false scale_filler { value: 20 } } }\n"
    )
    path = tmp_path / "fork.prototxt"
    path.write_text(fork)
    outline = read_outline(path)
    assert outline.text == fork
    assert outline.fed({"data": (1, 3, 8, 8)}, [0, 1]) == fork
    assert described(outline.net)[1] == ("n", "Normalize", ["data"], ["n"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no layer in it"),
        ('layer { name: "a" ', "ends in the middle"),
        ('layer { name: "a" type: 3 }', "not a prototxt"),
        (
            'input: "a" input: "b" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1 layer { }',
            "2",
        ),
        ('layer: [{ name: "a" }, { name: "b" }]', "in more than one way"),
    ],
)
def test_what_is_no_definition_is_refused(content, said, tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(content)
    with pytest.raises(ModelError, match=said):
        read_outline(path)
