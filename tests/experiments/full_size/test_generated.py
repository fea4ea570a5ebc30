import numpy as np
import pytest
from caffe.proto import caffe_pb2

from deepsz_caffe.experiments.full_size import generated
from deepsz_caffe.experiments.networks import FcShape, network

LAYER = FcShape("fc6", (700, 900), 0.09, 0.014, 0.0035)


def entropy_bits(values, bound):
    _, counts = np.unique(np.rint(values / (2 * bound)), return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum())


def test_same_seed_same_weights_other_seed_others():
    first = generated.generate(LAYER, seed=3)
    np.testing.assert_array_equal(first, generated.generate(LAYER, seed=3))
    assert (first != generated.generate(LAYER, seed=4)).any()


def test_density_and_gap_are_what_was_asked_for():
    weights = generated.generate(LAYER)
    kept = weights[weights != 0]
    assert kept.size / weights.size == pytest.approx(LAYER.keep, rel=0.01)
    assert np.abs(kept).min() >= np.float32(LAYER.threshold)
    assert abs(np.sign(kept).mean()) < 0.02


def test_entropy_is_that_of_pruned_alexnet_and_vgg_layers():
    for name, bound in (("alexnet", 7e-3), ("vgg-16", 5e-3)):
        layer = network(name).fc[0]
        _, block = next(generated.generate_blocks(layer))
        assert entropy_bits(block[block != 0], bound) == pytest.approx(2.04, abs=0.06)


def test_magnitude_pruning_of_the_dense_layer_gives_the_pruned_one():
    dense = generated.generate(LAYER, pruned=False)
    assert np.count_nonzero(dense) > 0.99 * dense.size
    dense[np.abs(dense) < np.float32(LAYER.threshold)] = 0
    np.testing.assert_array_equal(dense, generated.generate(LAYER))


@pytest.mark.parametrize("v1", [False, True])
def test_caffe_reads_the_file(tmp_path, v1):
    entry = network("lenet-5")
    path = tmp_path / "net.caffemodel"
    generated.write_caffemodel(entry, path, seed=5, v1=v1)
    net = caffe_pb2.NetParameter()
    net.ParseFromString(path.read_bytes())
    layers = {layer.name: layer for layer in (net.layers if v1 else net.layer)}
    assert list(layers) == ["conv1", "conv2", "ip1", "ip2"]
    assert sum(len(blob.data) for layer in layers.values() for blob in layer.blobs) == 431_080
    for shape in entry.fc:
        weights, bias = layers[shape.name].blobs
        sizes = (
            [weights.num, weights.channels, weights.height, weights.width]
            if v1
            else list(weights.shape.dim)
        )
        assert sizes == ([1, 1] if v1 else []) + list(shape.shape)
        expected = generated.generate(shape, seed=5).ravel()
        np.testing.assert_array_equal(np.array(weights.data, np.float32), expected)
        assert len(bias.data) == shape.shape[0]
        assert not np.any(bias.data)


def test_images_are_datums_that_caffe_reads(tmp_path):
    import lmdb

    generated.write_images(tmp_path / "lmdb", 5, (3, 8, 9), 10)
    with lmdb.open(str(tmp_path / "lmdb"), readonly=True) as base, base.begin() as transaction:
        values = [value for _, value in transaction.cursor()]
    assert len(values) == 5
    for value in values:
        datum = caffe_pb2.Datum()
        datum.ParseFromString(value)
        assert (datum.channels, datum.height, datum.width) == (3, 8, 9)
        assert len(datum.data) == 3 * 8 * 9
        assert 0 <= datum.label < 10
