"""Scores, tails and the versions of blobs, on networks small enough to see the answer."""

import pytest
from caffe.proto import caffe_pb2
from google.protobuf import text_format

from deepsz_caffe.errors import DeepSZWarning, ModelError
from deepsz_caffe.network.graph import (
    Cut,
    Judged,
    Version,
    begun_at,
    cut,
    fc_tail,
    find_judged,
    is_row_wise,
    needed_layers,
    shared_weights,
    subnet,
)


def net(*lines):
    """Build a network from lines `name type: bottoms > tops`."""
    result = caffe_pb2.NetParameter()
    for line in lines:
        head, _, flow = line.partition(":")
        bottoms, _, tops = flow.partition(">")
        name, kind = head.split()
        result.layer.add(name=name, type=kind, bottom=bottoms.split(), top=tops.split())
    return result


CHAIN = (
    "d Data: > data label",
    "fc6 InnerProduct: data > fc6",
    "relu6 ReLU: fc6 > fc6",
    "fc7 InnerProduct: fc6 > fc7",
    "relu7 ReLU: fc7 > fc7",
    "fc8 InnerProduct: fc7 > fc8",
    "loss SoftmaxWithLoss: fc8 label > loss",
    "acc Accuracy: fc8 label > acc",
)


FIRE = (
    "d Input: > data",
    "c1 Convolution: data > c1",
    "r1 ReLU: c1 > c1",
    "left Convolution: c1 > left",
    "rl ReLU: left > left",
    "right Convolution: c1 > right",
    "both Concat: left right > both",
    "ip InnerProduct: both > ip",
)


@pytest.mark.parametrize(
    ("changed", "stored", "layers", "inputs"),
    [
        ("ip", {(6, "both")}, (7,), {(6, "both")}),
        ("ip", {(4, "left"), (5, "right"), (0, "data")}, (6, 7), {(4, "left"), (5, "right")}),
        ("ip", {(4, "left"), (2, "c1")}, (5, 6, 7), {(4, "left"), (2, "c1")}),
        ("ip", {(3, "left"), (2, "c1")}, (4, 5, 6, 7), {(3, "left"), (2, "c1")}),
        ("ip", {(4, "left"), (0, "data")}, (1, 2, 5, 6, 7), {(4, "left"), (0, "data")}),
        ("right", {(0, "data")}, (1, 2, 3, 4, 5, 6, 7), {(0, "data")}),
        ("right", {(2, "c1"), (4, "left")}, (5, 6, 7), {(2, "c1"), (4, "left")}),
        (
            "ip",
            {(4, "left"), (3, "left"), (2, "c1"), (1, "c1")},
            (5, 6, 7),
            {(4, "left"), (2, "c1")},
        ),
    ],
)
def test_a_tail_begins_with_the_nearest_blobs_that_are_stored(changed, stored, layers, inputs):
    network = net(*FIRE)
    whole = cut(network, [changed], Version(7, "ip"))
    found = begun_at(network, whole, {Version(*each) for each in stored})
    assert found.layers == layers
    assert set(found.inputs) == {Version(*each) for each in inputs}


def test_a_blob_is_not_given_where_a_state_of_it_before_is_computed():
    network = net(
        "d Input: > data",
        "c1 Convolution: data > c1",
        "side Convolution: c1 > side",
        "r1 ReLU: c1 > c1",
        "both Concat: c1 side > both",
        "ip InnerProduct: both > ip",
    )
    whole, data = cut(network, ["ip"], Version(5, "ip")), Version(0, "data")
    assert begun_at(network, whole, {data, Version(3, "c1")}) == Cut((1, 2, 3, 4, 5), (data,))


def test_a_tail_without_anything_to_begin_with_is_named():
    network = net(*FIRE)
    with pytest.raises(ModelError, match="blob data: is not stored"):
        begun_at(network, cut(network, ["ip"], Version(7, "ip")), {Version(4, "left")})


def test_scores_and_labels_come_from_accuracy_else_the_loss_else_the_only_output():
    judged = Judged(Version(5, "fc8"), Version(0, "label"))
    assert find_judged(net(*CHAIN)) == judged
    assert find_judged(net(*CHAIN[:-1])) == judged
    assert find_judged(net(*CHAIN[:-2])) == Judged(Version(5, "fc8"), None)
    classes = (*CHAIN[:-2], "class ArgMax: fc8 > class")
    assert find_judged(net(*classes)) == Judged(Version(5, "fc8"), None)


def test_of_several_classifiers_the_last_counts_and_that_is_said():
    side = (*CHAIN[:3], "acc0 Accuracy: fc6 label > acc0", *CHAIN[3:])
    with pytest.warns(DeepSZWarning, match="fc6 and fc8; top-1 is that of fc8"):
        assert find_judged(net(*side)).scores == Version(6, "fc8")
    losses = (*CHAIN[:3], "loss0 SoftmaxWithLoss: fc6 label > loss0", *CHAIN[3:-1])
    with pytest.warns(DeepSZWarning, match="fc6 and fc8"):
        assert find_judged(net(*losses)).scores == Version(6, "fc8")


def test_a_layer_that_counts_top_1_goes_before_those_that_count_top_5():
    both = net(*CHAIN, "top5 Accuracy: fc6 label > top5")
    both.layer[-1].accuracy_param.top_k = 5
    assert find_judged(both).scores == Version(5, "fc8")
    del both.layer[-2]
    assert find_judged(both).scores.blob == "fc6"


def test_an_ignored_label_is_found():
    chain = net(*CHAIN)
    chain.layer[-1].accuracy_param.ignore_label = 255
    assert find_judged(chain).ignore_label == 255


def test_several_outputs_are_refused():
    with pytest.raises(ModelError, match="a, b"):
        find_judged(net("d Data: > data", "x ReLU: data > a", "y ReLU: data > b"))


def test_the_tail_of_a_chain_starts_at_the_input_after_its_layer_in_place():
    chain = net(*CHAIN)
    scores = Version(5, "fc8")
    assert cut(chain, ["fc6"], scores).inputs == (Version(0, "data"),)
    later = cut(chain, ["fc7"], scores)
    assert later.layers == (3, 4, 5)
    assert later.inputs == (Version(2, "fc6"),)
    assert cut(chain, ["fc8", "fc7"], scores) == later


BRANCHES = (
    "d Data: > data label",
    "a InnerProduct: data > a",
    "b InnerProduct: data > b",
    "aa InnerProduct: a > aa",
    "sum Eltwise: aa b > sum",
    "c InnerProduct: sum > c",
    "side InnerProduct: a > side",
    "acc Accuracy: c label > acc",
)


def test_branches_enter_the_tail_where_it_needs_them():
    branches = net(*BRANCHES)
    scores = Version(5, "c")
    assert cut(branches, ["aa"], scores) == cut(branches, {"aa"}, scores)
    assert cut(branches, ["aa"], scores).layers == (3, 4, 5)
    assert cut(branches, ["aa"], scores).inputs == (Version(1, "a"), Version(2, "b"))
    assert cut(branches, ["b"], scores).inputs == (Version(0, "data"), Version(3, "aa"))
    assert cut(branches, ["a", "b"], scores).inputs == (Version(0, "data"),)
    assert needed_layers(branches, [scores]) == (0, 1, 2, 3, 4, 5)


def test_layers_that_do_not_matter_or_exist_are_named():
    with pytest.raises(ModelError, match="layer side: the scores do not depend"):
        cut(net(*BRANCHES), ["side"], Version(5, "c"))
    with pytest.raises(ModelError, match="layer nope: no such layer"):
        cut(net(*BRANCHES), ["nope"], Version(5, "c"))
    with pytest.raises(ModelError, match="layer x: nothing produces blob y"):
        find_judged(net("x ReLU: y > x"))


def test_a_layer_in_place_beside_a_tail_layer_keeps_its_own_version():
    # The tail starts inside: relu reads version 1 of `a` and writes version 2 in place.
    scaled = net(
        "d Data: > data label",
        "a InnerProduct: data > a",
        "b InnerProduct: data > b",
        "scale Scale: a b > a",
        "acc Accuracy: a label > acc",
    )
    assert cut(scaled, ["b"], Version(3, "a")).inputs == (Version(0, "data"), Version(1, "a"))


def test_layers_that_share_weights_change_together():
    chain = net(*CHAIN)
    for i in (3, 5):
        chain.layer[i].param.add(name="shared")
    assert shared_weights(chain) == {"fc7": ("fc7", "fc8"), "fc8": ("fc7", "fc8")}
    assert cut(chain, ["fc8"], Version(5, "fc8")).layers == (3, 4, 5)


def test_a_subnet_has_given_inputs_and_no_fillers():
    text = """
      layer { name: "d" type: "Data" top: "data" }
      layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" include { phase: TEST }
        inner_product_param { num_output: 2 weight_filler { type: "gaussian" } } }"""
    whole = text_format.Parse(text, caffe_pb2.NetParameter())
    part = subnet(whole, [1], [("data", (5, 3))])
    assert [layer.type for layer in part.layer] == ["Input", "InnerProduct"]
    assert list(part.layer[0].input_param.shape[0].dim) == [5, 3]
    assert not part.layer[1].inner_product_param.HasField("weight_filler")
    assert not part.layer[1].include
    assert whole.layer[1].inner_product_param.HasField("weight_filler")


def test_only_layers_known_to_be_row_wise_change_their_batch():
    assert is_row_wise(net(*CHAIN), [1, 2, 3])
    assert not is_row_wise(net("r Reshape: a > b"), [0])
    merged = net("ip InnerProduct: a > b")
    merged.layer[0].inner_product_param.axis = 0
    assert not is_row_wise(merged, [0])


def test_the_fc_tail_begins_at_the_dropout_that_only_fc_layers_read():
    chain = (
        "d Data: > data label",
        "conv Convolution: data > conv",
        "drop Dropout: conv > conv",
        *(line.replace("data > fc6", "conv > fc6") for line in CHAIN[1:]),
    )
    tail = fc_tail(net(*chain))
    assert tail.layers == tuple(range(2, 10))
    assert tail.inputs == (Version(0, "label"), Version(1, "conv"))
    # A convolution reads it, too: then it belongs to the body.
    shared = (*chain[:3], "side Convolution: conv > side", *chain[3:])
    assert fc_tail(net(*shared)).inputs == (Version(0, "label"), Version(2, "conv"))


def test_an_fc_tail_needs_an_fc_layer_and_one_state_of_each_blob():
    with pytest.raises(ModelError, match="no fc layer"):
        fc_tail(net("d Data: > data label", "relu ReLU: data > data"))
    twice = (
        "d Data: > data label",
        "a InnerProduct: data > a",
        "relu ReLU: data > data",
        "b InnerProduct: data > b",
    )
    with pytest.raises(ModelError, match="two states"):
        fc_tail(net(*twice))
