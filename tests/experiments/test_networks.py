import pytest

from deepsz_caffe.errors import InputError
from deepsz_caffe.experiments.networks import NETWORKS, network


@pytest.mark.parametrize(
    ("name", "parameters", "megabytes", "fc_share"),
    [
        ("lenet-300-100", 266_610, 1.1, 1.0),
        ("lenet-5", 431_080, 1.7, 0.953),
        ("alexnet", 60_965_224, 243.9, 0.961),
        ("vgg-16", 138_357_544, 553.4, 0.894),
    ],
)
def test_sizes_are_the_published_ones(name, parameters, megabytes, fc_share):
    entry = network(name)
    assert entry.parameters == parameters
    assert 4e-6 * entry.parameters == pytest.approx(megabytes, abs=0.05)
    assert entry.fc_dense_bytes / (4 * entry.parameters) == pytest.approx(fc_share, abs=0.02)


@pytest.mark.parametrize("entry", [n for n in NETWORKS.values() if n.paper], ids=lambda n: n.id)
def test_the_papers_own_figures_agree_with_each_other(entry):
    paper = entry.paper
    assert paper.fc_bytes_before / paper.fc_bytes_after == pytest.approx(paper.ratio, rel=0.01)
    assert entry.fc_dense_bytes == pytest.approx(paper.fc_bytes_before, rel=0.02)


def test_unknown_network_is_wrong_use():
    with pytest.raises(InputError, match="resnet"):
        network("resnet")
