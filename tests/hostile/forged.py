"""Files with a single layer whose streams are whatever an attacker likes; all checksums right."""

from deepsz_caffe import write_dsz
from deepsz_caffe.codecs.varint import pack_varints
from deepsz_caffe.dsz.layout import Contents, EncodedLayer, Rest, rest_checksum


def write_forged(path, shape, *, bound=0.01, nonzeros=1, digest=1, **streams):
    """Write a file; `streams` are those of `EncodedLayer.unsealed`."""
    layer = EncodedLayer.unsealed("ip", shape, bound, **streams).sealed(digest, nonzeros)
    write_dsz(path, Contents((layer,), Rest(0, (0,), (), rest_checksum((0,), [layer.digest], ()))))
    return path


def packed_stream(log_cells, chunks):
    """Give a stream of chunks of 2^log_cells cells without an entry."""
    return pack_varints((2, 48, 48, 1, 1, 1, log_cells)) + bytes(chunks)


def mixing_stream(*, transposed=False, stride=0, prior=40, tail=b"\xff" * 4):
    return pack_varints((int(transposed), 2, 48, 48, stride, prior)) + tail
