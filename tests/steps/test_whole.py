"""Whole networks: divergences choose, counts judge, and weights are rounded by their inputs."""

import numpy as np
import pytest
from plain import NumpyEvaluator, setup

from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.errors import InputError, TargetError
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.significance import images_needed
from deepsz_caffe.steps.assess.tester import Tester, assess
from deepsz_caffe.steps.compress import Target, settled, usual_layers
from deepsz_caffe.steps.optimize import images_allowed
from deepsz_caffe.steps.whole import within_loss

MAX_LOSS, CONFIDENCE = 0.01, 0.9


@pytest.fixture(scope="module")
def network():
    read = setup(layers=("ip2", "ip3"))
    return read, NumpyEvaluator(read)


def make(network, profile="small", rounded=True):
    return Tester(*network, profile=profile, rounded=rounded)


def test_what_is_chosen_holds_and_is_rounded_by_the_inputs(network):
    limit = images_allowed(MAX_LOSS, network[1].total)
    trial = make(network)
    plan, outcome, counted = within_loss(trial, limit, CONFIDENCE)
    assert images_needed(outcome, CONFIDENCE) <= limit
    encoded = trial.encode_all(plan.bounds)
    assert outcome == network[1].measure(encoded)
    assert plan.bytes == sum(layer.bytes for layer in encoded.values())
    assert 1 < counted < 40
    for name, layer in encoded.items():
        weights, back = trial.setup.model[name].matrix, np.empty(layer.shape, np.float32)
        decode_layer(layer, back)
        assert np.abs(back.astype(np.float64) - weights).max() <= plan.bounds[name]
        assert not back[weights == 0].any()
    # As fine a grid, each weight to its nearest level: as many bytes, but the outputs suffer more.
    halves = {name: bound / 2 for name, bound in plan.bounds.items()}
    nearest = make(network, rounded=False).encode_all(halves)
    assert plan.bytes < 1.03 * sum(layer.bytes for layer in nearest.values())
    assert network[1].diverge(encoded).mean < 0.8 * network[1].diverge(nearest).mean


def test_profiles_paper_and_fast_are_never_rounded(network):
    for profile in ("paper", "fast"):
        trial = make(network, profile)
        assert not trial.rounded
        assert trial.encode("ip3", 0.1).data_codec != "mixing-step"
    assert make(network, "balanced").encode("ip3", 0.1).data_codec == "mixing-step"


def test_what_can_not_be_met_is_said(network):
    with pytest.raises(TargetError, match="no configuration loses at most -1 of 1,500"):
        within_loss(make(network), -1, CONFIDENCE)  # the network as it is loses more


def test_it_is_for_a_loss_and_for_whole_networks(network):
    with pytest.raises(InputError, match="not for a ratio"):
        Target(ratio=10, search="divergence")
    with pytest.raises(InputError, match="deepsz compress --search divergence"):
        assess(make(network), search="divergence")


@pytest.mark.parametrize(
    ("target", "protocol", "profile", "layers"),
    [
        (Target(0.01), "validation", "balanced", "all"),
        (Target(0.01), "validation", "fast", "all"),
        (Target(0.01), "validation", "paper", "fc"),
        (Target(0.01), "paper", "small", "fc"),
        (Target(0.01, search="paper"), "validation", "small", "fc"),
        (Target(ratio=9), "validation", "small", "fc"),
        (Target(agreement=0.9), "validation", "paper", "all"),
    ],
)
def test_all_layers_are_taken_but_for_what_is_the_papers(target, protocol, profile, layers):
    assert usual_layers(target, protocol, profile) == layers


def test_divergences_choose_where_not_all_are_fc_layers(toy, network):
    whole = read_setup(toy.network, toy.weights, layers="all")
    fc = read_setup(toy.network, toy.weights)
    paper = read_setup(toy.network, toy.weights, layers="all", protocol="paper")
    assert settled(Target(0.01), whole, "small", "corrected").search == "divergence"
    for setup_, profile, target in (
        (fc, "small", Target(0.01)),
        (network[0], "small", Target(0.01)),
        (paper, "small", Target(0.01)),
        (whole, "paper", Target(0.01)),
        (whole, "small", Target(ratio=9)),
    ):
        assert settled(target, setup_, profile, "exact") == target
        with pytest.raises(InputError, match="not measured here"):
            settled(target, setup_, profile, "corrected")
    assert settled(Target(0.01, search="paper"), whole, "small", "exact").search == "paper"
