"""What a folder of features keeps; `test_tail` measures with it."""

from types import SimpleNamespace

from caffe.proto import caffe_pb2

from deepsz_caffe.network import graph
from deepsz_caffe.runtime.kept import images_kept


def test_more_images_are_kept_of_what_enters_fc_layers_alone(tmp_path):
    net = caffe_pb2.NetParameter()
    kinds = {"data": "Input", "c1": "Convolution", "c2": "Convolution", "ip": "InnerProduct"}
    for bottom, (name, kind) in zip([None, *kinds], kinds.items(), strict=False):
        net.layer.add(name=name, type=kind, top=[name], bottom=[bottom] if bottom else [])
    versions = [graph.Version(place, name) for place, name in enumerate(kinds)]
    of_an_image = SimpleNamespace(
        prepared=SimpleNamespace(
            net=net,
            images=SimpleNamespace(total=2000),
            judged=SimpleNamespace(scores=versions[3]),
        ),
        shapes=dict(zip(versions[:3], [(3, 99, 99), (8, 50, 50), (4, 9, 9)], strict=True)),
        bytes_each=4 * (3 * 99 * 99 + 8 * 50 * 50 + 4 * 9 * 9),
    )
    layers = ("c1", "c2", "ip")
    kept = images_kept(of_an_image, layers, (), whole=True, limit=1 << 40, folder=tmp_path)
    assert kept == dict(zip(versions, [2000, 256, 2000], strict=False))
    kept = images_kept(of_an_image, layers, (), whole=False, limit=1 << 40, folder=tmp_path)
    assert set(kept.values()) == {2000}
