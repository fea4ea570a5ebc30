"""DeepSZ for Caffe: error-bounded compression of fully connected layers (Jin et al., HPDC 2019).

The four steps are `prune`, `assess`, `optimize` and `encode`; `decode` is the way back, and
`compress` does steps two to four. Names are imported when first used, so that decoding never
loads Caffe and ``import deepsz_caffe`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepsz_caffe.api import Progress as Progress
    from deepsz_caffe.api import assess as assess
    from deepsz_caffe.api import compare as compare
    from deepsz_caffe.api import compress as compress
    from deepsz_caffe.api import prune as prune
    from deepsz_caffe.auto import compress_auto as compress_auto
    from deepsz_caffe.dsz.decode import decode as decode
    from deepsz_caffe.dsz.decode import decode_layer as decode_layer
    from deepsz_caffe.dsz.layout import ChangedBlob as ChangedBlob
    from deepsz_caffe.dsz.layout import Contents as Contents
    from deepsz_caffe.dsz.layout import EncodedLayer as EncodedLayer
    from deepsz_caffe.dsz.layout import LayerEntry as LayerEntry
    from deepsz_caffe.dsz.layout import Measured as Measured
    from deepsz_caffe.dsz.layout import Origin as Origin
    from deepsz_caffe.dsz.limits import Limits as Limits
    from deepsz_caffe.dsz.reader import DszFile as DszFile
    from deepsz_caffe.dsz.reader import LayerSummary as LayerSummary
    from deepsz_caffe.dsz.reader import Summary as Summary
    from deepsz_caffe.dsz.writer import write_dsz as write_dsz
    from deepsz_caffe.errors import CaffeError as CaffeError
    from deepsz_caffe.errors import CodecError as CodecError
    from deepsz_caffe.errors import DataError as DataError
    from deepsz_caffe.errors import DeepSZError as DeepSZError
    from deepsz_caffe.errors import DeepSZWarning as DeepSZWarning
    from deepsz_caffe.errors import FormatError as FormatError
    from deepsz_caffe.errors import InputError as InputError
    from deepsz_caffe.errors import LimitError as LimitError
    from deepsz_caffe.errors import ModelError as ModelError
    from deepsz_caffe.errors import TargetError as TargetError
    from deepsz_caffe.network.caffemodel import read_caffemodel as read_caffemodel
    from deepsz_caffe.network.layers import Selection as Selection
    from deepsz_caffe.network.weights import Blob as Blob
    from deepsz_caffe.network.weights import CaffeModel as CaffeModel
    from deepsz_caffe.network.weights import LayerWeights as LayerWeights
    from deepsz_caffe.network.writer import write_caffemodel as write_caffemodel
    from deepsz_caffe.running.linear import CompressedLinear as CompressedLinear
    from deepsz_caffe.running.opencv import opencv_net as opencv_net
    from deepsz_caffe.running.quantized import Panel as Panel
    from deepsz_caffe.running.quantized import Quantized as Quantized
    from deepsz_caffe.runtime.data import Data as Data
    from deepsz_caffe.runtime.evaluate import evaluate as evaluate
    from deepsz_caffe.runtime.load import load_net as load_net
    from deepsz_caffe.runtime.pictures import Pictures as Pictures
    from deepsz_caffe.runtime.pictures import open_pictures as open_pictures
    from deepsz_caffe.runtime.preprocess import Preprocessing as Preprocessing
    from deepsz_caffe.runtime.preprocess import preprocess as preprocess
    from deepsz_caffe.runtime.preprocess import preprocessing_of as preprocessing_of
    from deepsz_caffe.runtime.removal import Removed as Removed
    from deepsz_caffe.runtime.removal import remove as remove
    from deepsz_caffe.runtime.training import TrainingProgress as TrainingProgress
    from deepsz_caffe.steps.agreement import Agreement as Agreement
    from deepsz_caffe.steps.agreement import MaxChange as MaxChange
    from deepsz_caffe.steps.assess.result import Assessment as Assessment
    from deepsz_caffe.steps.assess.result import LayerAssessment as LayerAssessment
    from deepsz_caffe.steps.assess.result import Point as Point
    from deepsz_caffe.steps.assess.setup import Protocol as Protocol
    from deepsz_caffe.steps.assess.tester import Biases as Biases
    from deepsz_caffe.steps.assess.tester import Search as Search
    from deepsz_caffe.steps.auto import AutoResult as AutoResult
    from deepsz_caffe.steps.auto import Tradeoff as Tradeoff
    from deepsz_caffe.steps.auto import Trial as Trial
    from deepsz_caffe.steps.compare import BlobChange as BlobChange
    from deepsz_caffe.steps.compare import ChangedClass as ChangedClass
    from deepsz_caffe.steps.compare import ClassChange as ClassChange
    from deepsz_caffe.steps.compare import Comparison as Comparison
    from deepsz_caffe.steps.compare import LayerChange as LayerChange
    from deepsz_caffe.steps.compress import CompressResult as CompressResult
    from deepsz_caffe.steps.divergence import Divergence as Divergence
    from deepsz_caffe.steps.encode import encode as encode
    from deepsz_caffe.steps.encode import encode_layer as encode_layer
    from deepsz_caffe.steps.evaluator import Score as Score
    from deepsz_caffe.steps.expand import expand as expand
    from deepsz_caffe.steps.optimize import Plan as Plan
    from deepsz_caffe.steps.optimize import optimize as optimize
    from deepsz_caffe.steps.prune import Pruned as Pruned
    from deepsz_caffe.steps.prune import PrunedLayer as PrunedLayer
    from deepsz_caffe.steps.prune import PruningSteps as PruningSteps
    from deepsz_caffe.steps.prune import Schedule as Schedule
    from deepsz_caffe.steps.prune import Shown as Shown
    from deepsz_caffe.steps.prune import Trained as Trained
    from deepsz_caffe.steps.prune import gradual as gradual
    from deepsz_caffe.steps.prune import one_shot as one_shot
    from deepsz_caffe.steps.relative import relative_bounds as relative_bounds

    __version__: str
else:
    #: module -> what of it is public, as above: a test compares the two
    _PUBLIC = {
        "api": "Progress assess compare compress prune",
        "auto": "compress_auto",
        "dsz.decode": "decode decode_layer",
        "steps.expand": "expand",
        "dsz.layout": "ChangedBlob Contents EncodedLayer LayerEntry Measured Origin",
        "dsz.limits": "Limits",
        "dsz.reader": "DszFile LayerSummary Summary",
        "dsz.writer": "write_dsz",
        "errors": "CaffeError CodecError DataError DeepSZError DeepSZWarning FormatError "
        "InputError LimitError ModelError TargetError",
        "network.caffemodel": "read_caffemodel",
        "network.layers": "Selection",
        "network.weights": "Blob CaffeModel LayerWeights",
        "network.writer": "write_caffemodel",
        "running.linear": "CompressedLinear",
        "running.opencv": "opencv_net",
        "running.quantized": "Panel Quantized",
        "runtime.data": "Data",
        "runtime.evaluate": "evaluate",
        "runtime.load": "load_net",
        "runtime.pictures": "Pictures open_pictures",
        "runtime.preprocess": "Preprocessing preprocess preprocessing_of",
        "runtime.removal": "Removed remove",
        "runtime.training": "TrainingProgress",
        "steps.agreement": "Agreement MaxChange",
        "steps.assess.result": "Assessment LayerAssessment Point",
        "steps.assess.setup": "Protocol",
        "steps.assess.tester": "Biases Search",
        "steps.auto": "AutoResult Tradeoff Trial",
        "steps.compare": "BlobChange ChangedClass ClassChange Comparison LayerChange",
        "steps.compress": "CompressResult",
        "steps.divergence": "Divergence",
        "steps.encode": "encode encode_layer",
        "steps.evaluator": "Score",
        "steps.optimize": "Plan optimize",
        "steps.prune": "Pruned PrunedLayer PruningSteps Schedule Shown Trained gradual one_shot",
        "steps.relative": "relative_bounds",
    }
    _MODULES = {name: module for module, names in _PUBLIC.items() for name in names.split()}

    __all__ = sorted(_MODULES)

    def __getattr__(name: str) -> object:
        if name == "__version__":
            from importlib.metadata import version

            return version("deepsz-caffe")
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)

    def __dir__() -> list[str]:
        return [*__all__, "__version__"]
