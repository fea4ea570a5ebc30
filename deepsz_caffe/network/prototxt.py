"""Network and solver definitions: which fc layers a network has, in which phase.

A prototxt is parsed with pycaffe's own `caffe_pb2`, so this module needs Caffe's Python package,
and is the only one of this folder that does; it is imported when the first file is read.
Definitions of Caffe's earlier versions (V0 and V1 ``layers``, ``input`` fields) come out in today's
form, upgraded by Caffe's own tool.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from deepsz_caffe.errors import CaffeError, InputError, ModelError
from deepsz_caffe.network.caffemodel import CaffeModel

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import LayerParameter, NetParameter, NetStateRule, SolverParameter

Path_ = str | os.PathLike[str]

_UPGRADE_TOOL = "upgrade_net_proto_text"


def read_prototxt(path: Path_) -> NetParameter:
    """Read a network definition, in today's form whatever its age.

    Parameters
    ----------
    path
        A train_val or deploy prototxt.

    Returns
    -------
    caffe_pb2.NetParameter
        Its layers are in ``layer``; ``layers`` and ``input`` are empty.

    Raises
    ------
    ModelError
        The file can't be read, is not a network definition, or can't be upgraded.
    CaffeError
        pycaffe, or for old definitions Caffe's upgrade tool, is not installed.
    """
    net = _parse(path, "NetParameter")
    if net.layers or net.input:
        net = _upgraded(path)
    if not net.layer:
        raise ModelError(
            "no layer in it",
            where=path,
            hint="a network definition is wanted, such as train_val.prototxt or deploy.prototxt",
        )
    return net


def read_solver(path: Path_) -> SolverParameter:
    """Read a solver definition; the old ``solver_type`` comes out as ``type``.

    Its network is looked for as Caffe does, relative to the working directory; where it is not
    there, but a file of that name lies beside the solver, `net` names that one.

    Raises
    ------
    ModelError
        The file can't be read, is not a solver definition, or names no network.
    CaffeError
        pycaffe is not installed.
    """
    solver = _parse(path, "SolverParameter")
    named = ("net", "net_param", "train_net", "train_net_param")
    if not any(solver.HasField(field) for field in named):
        raise ModelError(
            "names no network: none of net, net_param, train_net, train_net_param", where=path
        )
    if solver.HasField("solver_type"):
        if solver.HasField("type"):
            raise ModelError("has both type and the old solver_type", where=path)
        # Two methods are not written in their enum's capitals; SGD stays as it is.
        names = {"NESTEROV": "Nesterov", "ADAGRAD": "AdaGrad", "RMSPROP": "RMSProp"}
        names |= {"ADADELTA": "AdaDelta", "ADAM": "Adam"}
        old = type(solver).SolverType.Name(solver.solver_type)
        solver.type = names.get(old, old)
        solver.ClearField("solver_type")
    beside = Path(path).parent / Path(solver.net).name
    if solver.net and not Path(solver.net).exists() and beside.is_file():
        solver.net = str(beside)
    return solver


def phase(
    net: NetParameter, phase: Literal["TRAIN", "TEST"], stages: Sequence[str] = ()
) -> NetParameter:
    """Keep the layers that Caffe would build in this phase: `include` and `exclude` rules applied.

    Parameters
    ----------
    net
        From `read_prototxt`; it is not changed.
    phase
        ``"TRAIN"`` or ``"TEST"``.
    stages
        Stages that are on beside those of the network's own ``state``.

    Returns
    -------
    caffe_pb2.NetParameter
        A copy that has `phase` and `stages` in its ``state``.

    Raises
    ------
    InputError
        An unknown phase.
    ModelError
        A layer has both include and exclude rules, which Caffe refuses.
    """
    caffe_pb2 = _caffe_pb2()
    if phase not in ("TRAIN", "TEST"):
        raise InputError(f"phase {phase!r} is neither TRAIN nor TEST")
    filtered: NetParameter = caffe_pb2.NetParameter()
    filtered.CopyFrom(net)
    filtered.state.phase = caffe_pb2.Phase.Value(phase)
    filtered.state.stage.extend(name for name in stages if name not in filtered.state.stage)
    del filtered.layer[:]
    filtered.layer.extend(layer for layer in net.layer if _included(layer, filtered.state))
    return filtered


@dataclass(frozen=True)
class FcLayer:
    """An InnerProduct layer as the prototxt defines it.

    Attributes
    ----------
    name, bottom, top
        Names of the layer, of its input blob and of its output blob.
    num_output
        Outputs: rows of the weights, or their columns with `transpose`.
    bias
        There is a second blob of `num_output` values.
    transpose
        Weights are stored as inputs × outputs.
    axis
        First axis of the input that is flattened into the inputs.
    params
        Names by which the weights (and bias) are shared with other layers; "" where they are not.
    """

    name: str
    bottom: str
    top: str
    num_output: int
    bias: bool = True
    transpose: bool = False
    axis: int = 1
    params: tuple[str, ...] = ()


def fc_layers(net: NetParameter) -> tuple[FcLayer, ...]:
    """List the InnerProduct layers of a network in the order of the prototxt.

    A layer that an unfiltered network defines once a phase under one name is listed once.
    """
    found: dict[str, FcLayer] = {}
    for layer in net.layer:
        if layer.type != "InnerProduct" or layer.name in found:
            continue
        if not layer.bottom or not layer.top:
            raise ModelError("an InnerProduct layer without bottom or top", where=layer.name)
        found[layer.name] = FcLayer(
            name=layer.name,
            bottom=layer.bottom[0],
            top=layer.top[0],
            num_output=layer.inner_product_param.num_output,
            bias=layer.inner_product_param.bias_term,
            transpose=layer.inner_product_param.transpose,
            axis=layer.inner_product_param.axis,
            params=tuple(param.name for param in layer.param),
        )
    return tuple(found.values())


def check_weights(network: NetParameter | Iterable[FcLayer], model: CaffeModel) -> None:
    """Check that every fc layer of a network has weights that fit it.

    Caffe leaves a layer that the weights file lacks at random values, silently, and aborts the
    process where shapes differ. The number of inputs is known to Caffe alone and is not checked.
    Layers of the file that the network lacks are fine, as they are in Caffe.

    Parameters
    ----------
    network
        A network, or what `fc_layers` gave for it.
    model
        The weights.

    Raises
    ------
    ModelError
        There is no fc layer, or one is missing or does not fit; the layer is named.
    """
    layers = tuple(network) if not hasattr(network, "layer") else fc_layers(network)
    if not layers:
        raise ModelError("the network has no fc layer (InnerProduct)")
    for layer in layers:
        where = f"{model.path}, layer {layer.name}"
        if layer.name not in model:
            if _owner_present(layer, layers, model):
                continue
            raise ModelError(
                "the network's fc layer is not in the weights file",
                where=where,
                hint="it has " + (", ".join(x.name for x in model.layers if x.blobs) or "none"),
            )
        stored = model[layer.name]
        if stored.type not in ("InnerProduct", ""):  # HDF5 files hold no types
            raise ModelError(f"an fc layer in the prototxt, here a {stored.type}", where=where)
        wanted = 2 if layer.bias else 1
        if len(stored.blobs) != wanted:
            raise ModelError(f"{len(stored.blobs)} blobs where {wanted} are wanted", where=where)
        rows, columns = stored.matrix_shape
        outputs, side = (columns, "columns") if layer.transpose else (rows, "rows")
        if outputs != layer.num_output:
            raise ModelError(
                f"weights of {rows} × {columns}, but num_output is {layer.num_output} and must be "
                f"the number of {side}",
                where=where,
            )
        if layer.bias and stored.blobs[1].data.size != layer.num_output:
            raise ModelError(
                f"{stored.blobs[1].data.size} biases, but num_output is {layer.num_output}",
                where=where,
            )


def _owner_present(layer: FcLayer, layers: Iterable[FcLayer], model: CaffeModel) -> bool:
    """Shared weights need to be in the file once: HDF5 snapshots hold only the owner's."""
    shared = layer.params[0] if layer.params else ""
    return bool(shared) and any(
        other.params[:1] == (shared,) and other.name in model for other in layers
    )


def _included(layer: LayerParameter, state: Any) -> bool:  # noqa: ANN401
    if layer.include and layer.exclude:
        raise ModelError("has both include and exclude rules", where=f"layer {layer.name}")
    if layer.include:
        return any(_meets(state, rule) for rule in layer.include)
    return not any(_meets(state, rule) for rule in layer.exclude)


def _meets(state: Any, rule: NetStateRule) -> bool:  # noqa: ANN401
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and all(stage in state.stage for stage in rule.stage)
        and not any(stage in state.stage for stage in rule.not_stage)
    )


def _caffe_pb2() -> Any:  # noqa: ANN401
    try:
        from caffe.proto import caffe_pb2
    except ImportError as error:
        raise CaffeError(
            f"pycaffe can't be imported: {error}",
            hint="docker/install-caffe.sh installs it; deepsz doctor says what is there",
        ) from error
    return caffe_pb2


def _parse(path: Path_, kind: str) -> Any:  # noqa: ANN401
    message = getattr(_caffe_pb2(), kind)()
    from google.protobuf import text_format

    try:
        text = Path(path).read_text(encoding="utf-8")
        return text_format.Parse(text, message)
    except OSError as error:
        raise ModelError(f"can't read: {error.strerror}", where=path) from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"not a prototxt: byte {error.start} is not text",
            where=path,
            hint="weights go where a caffemodel is wanted",
        ) from error
    except text_format.ParseError as error:
        raise ModelError(f"not a prototxt that Caffe understands: {error}", where=path) from error


def _upgraded(path: Path_) -> NetParameter:
    """Upgrade an old definition with Caffe's own tool, which knows every version."""
    # The tool is installed beside the interpreter, whose folder need not be on the PATH.
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    tool = shutil.which(_UPGRADE_TOOL, path=places)
    if tool is None:
        raise CaffeError(
            f"an old definition, and Caffe's {_UPGRADE_TOOL} is not installed to upgrade it",
            where=path,
            hint="docker/install-caffe.sh installs it",
        )
    with tempfile.TemporaryDirectory(prefix="deepsz-") as folder:
        output = Path(folder) / "upgraded.prototxt"
        done = subprocess.run(
            [tool, os.fspath(path), str(output)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            # glog: "F1124 10:00:00.000000  1234 upgrade_proto.cpp:42] message"
            said = [
                line.partition("] ")[2] for line in done.stderr.splitlines() if line[:1] in "EF"
            ]
            raise ModelError(
                f"Caffe can't upgrade this definition: {' / '.join(filter(None, said))}",
                where=path,
            )
        return _parse(output, "NetParameter")
