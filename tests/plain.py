"""A network of fc layers, its data and its evaluator in a few lines of numpy: no Caffe in it.

The prototxt and the caffemodel are those of a real network, LeNet-300-100, pruned to the paper's
densities; images are made up, labels are what the network says of them, but for a few.
"""

import threading
from pathlib import Path

import numpy as np

from deepsz_caffe.dsz.decode import decode_layer
from deepsz_caffe.steps.assess.setup import read_setup
from deepsz_caffe.steps.assess.significance import certainly_over
from deepsz_caffe.steps.divergence import Divergence, divergences
from deepsz_caffe.steps.evaluator import Moments, Outcome, Score

ROOT = Path(__file__).resolve().parent.parent
NETWORK = ROOT / "prototxt" / "lenet_300_100" / "train_val.prototxt"
WEIGHTS = ROOT / "models" / "lenet_300_100" / "pruned.caffemodel"
IMAGES = 1500
#: what moments and divergences are measured on
SAMPLED = 256


def setup(**options):
    return read_setup(NETWORK, WEIGHTS, **options)


class NumpyEvaluator:
    """Implements `deepsz_caffe.steps.evaluator.Evaluator` for LeNet-300-100.

    `original`: layer name -> weights of the network that losses count against.
    """

    workers = 1

    def __init__(self, setup, original=None):
        random = np.random.default_rng(7)
        self.model = setup.model
        # A pattern that each class answers to, in noise.
        patterns = np.linalg.multi_dot([self.model[n].matrix for n in ("ip3", "ip2", "ip1")])
        patterns /= abs(patterns).max(axis=1, keepdims=True)
        noise = 0.5 * random.random((IMAGES, 784)) * (random.random((IMAGES, 784)) < 0.3)
        shown = patterns[random.integers(0, 10, IMAGES)]
        self.images = np.clip(noise + 0.4 * shown, 0, 1).astype(np.float32)
        self.labels = self._scores({}).argmax(axis=1)
        wrong = random.random(IMAGES) < 0.02
        self.labels[wrong] = random.integers(0, 10, wrong.sum())
        self.before = self._right({})
        self.first = self.before if original is None else self._right(original)
        self.digests = {"network": "lenet", "weights": "pruned", "data": "random"}
        self.total = IMAGES
        self.chance = int(np.bincount(self.labels).max())
        self.calls = []
        self.closed = False
        self._lock = threading.Lock()

    @property
    def score(self):
        return Score(IMAGES, *(int(right.sum()) for right in self.before))

    @property
    def original(self):
        return Score(IMAGES, *(int(right.sum()) for right in self.first))

    def measure(self, layers, limit=None):
        with self._lock:
            self.calls.append({name: layer.error_bound for name, layer in layers.items()})
        matrices = _decoded(layers)
        top1, top5 = self._right(matrices)
        for seen in range(100, IMAGES + 1, 100):
            changes = [
                int((one & ~other)[:seen].sum())
                for reference in (self.before[0], self.first[0])
                for one, other in ((reference, top1), (top1, reference))
            ]
            if limit is not None and certainly_over(*changes[:2], seen, IMAGES, limit):
                break
        return Outcome(seen, int(top1[:seen].sum()), int(top5[:seen].sum()), *changes)

    def moments(self, layer, layers):
        values = self._entering(layer, _decoded(layers))
        matrix = (values.T @ values / len(values))[None].astype(np.float32)
        return Moments(matrix, values.mean(axis=0)[None].astype(np.float32), len(values))

    def diverge(self, layers):
        before, after = self._scores({}), self._scores(_decoded(layers))
        return Divergence.of(divergences(before[:SAMPLED], after[:SAMPLED], "scores"))

    def close(self):
        self.closed = True

    def _right(self, matrices):
        scores = self._scores(matrices)
        own = scores[np.arange(IMAGES), self.labels]
        better = (scores >= own[:, None]).sum(axis=1) - 1
        return better < 1, better < 5

    def _entering(self, layer, matrices):
        """Give what enters a layer for the few images that moments are measured on."""
        return self._scores(matrices, until=layer)[:SAMPLED]

    def _scores(self, matrices, until=None):
        values = self.images
        for name in ("ip1", "ip2", "ip3"):
            if name == until:
                break
            matrix = matrices.get(name, self.model[name].matrix)
            bias = matrices.get((name, 1), self.model[name].blobs[1].data.ravel())
            values = values @ matrix.T + bias
            if name != "ip3":
                values = np.maximum(values, 0)
        return values


def _decoded(layers):
    matrices = {}
    for name, layer in layers.items():
        matrices[name] = np.empty(layer.shape, np.float32)
        decode_layer(layer, matrices[name])
        for change in layer.changes:
            matrices[change.layer, change.blob] = np.frombuffer(change.values, "<f4")
    return matrices
