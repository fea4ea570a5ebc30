"""Definitions with bytes changed, lost, doubled or repeated: read, or an error of the family, soon.

Every unknown field counted the lines before it: 4 MB of them would have taken days. Now the places
of lines are found once, and a definition of more than 4 MB, eight times the largest, is refused.
"""

import random
import time
import warnings
from contextlib import suppress

import pytest

from deepsz_caffe.errors import DeepSZError
from deepsz_caffe.network.layers import compressible_layers
from deepsz_caffe.network.prototxt import read_any_prototxt
from deepsz_caffe.network.shapes import bottom_shapes

ROUNDS = 400
DEFINITION = """name: "n" # comment
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 4 dim: 5 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 6 kernel_size: 3 group: 2 weight_filler { type: "xavier" } } }
layer { name: "p" type: "Pooling" bottom: "conv" top: "p" pooling_param { pool: AVE kernel_size: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "p" top: "fc" include { phase: TEST }
  inner_product_param { num_output: 7 } param { name: "w\\303\\251" lr_mult: 1e-3 } }
"""  # noqa: E501


def damaged(content, chance):
    """Change some bytes, cut, double or move a part."""
    content = bytearray(content)
    for _ in range(chance.choice([1, 1, 2, 8])):
        kind, place = chance.randrange(5), chance.randrange(len(content) + 1)
        length = chance.choice([1, 4, 30])
        if kind < 2 and place < len(content):
            content[place] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
        elif kind == 2:
            del content[place : place + length]
        elif kind == 3:
            content[place:place] = content[place : place + length]
        else:
            content[place:place] = chance.randbytes(length)
    return bytes(content)


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        net, doubtful = read_any_prototxt(path)
    compressible_layers(net, shapes=bottom_shapes(net, doubtful))


def test_damage_is_an_error_of_the_family(tmp_path):
    content, chance = DEFINITION.encode(), random.Random(5)
    path = tmp_path / "net"
    path.write_bytes(content)
    read(path)
    refused = 0
    for _ in range(ROUNDS):
        path.write_bytes(damaged(content, chance))
        try:
            read(path)
        except DeepSZError:
            refused += 1
    assert 0 < refused < ROUNDS


@pytest.mark.parametrize(
    "unit", ["a: 1\n", "a { ", "a { } ", '"a"', "layer { } ", "layer { a: 1 }\n"]
)
def test_it_takes_time_by_its_size(unit, tmp_path):
    path = tmp_path / "net"
    seconds = []
    for size in (20_000, 80_000):
        path.write_text("layer { }\n" + unit * (size // len(unit)))
        began = time.process_time()
        with suppress(DeepSZError):
            read(path)
        seconds.append(time.process_time() - began)
    assert seconds[1] < 12 * seconds[0] + 0.5


def test_much_too_large_ones_are_refused_at_once(tmp_path):
    path = tmp_path / "net"
    path.write_text("a: 1\n" * 1_000_000)
    with pytest.raises(DeepSZError, match="are no prototxt"):
        read(path)
