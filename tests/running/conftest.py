"""The compiled kernels of `running` or their twins."""

import pytest

from deepsz_caffe.running import _kernels, fallback

PLACES = ("build", "packed", "product", "quantized")


def use(monkeypatch, kernels):
    for place in PLACES:
        monkeypatch.setattr(f"deepsz_caffe.running.{place}.kernels", kernels)


@pytest.fixture
def twin(monkeypatch):
    """Give a function after which the twins are in use."""
    return lambda: use(monkeypatch, fallback)


@pytest.fixture(params=["compiled", "python"])
def kernels(request, monkeypatch):
    use(monkeypatch, _kernels if request.param == "compiled" else fallback)
    return request.param
