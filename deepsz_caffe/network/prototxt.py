"""Network and solver definitions, as Caffe reads them, and a network's layers in one phase.

A prototxt is parsed with pycaffe's own `caffe_pb2`, so this module needs Caffe's Python package,
and is the only one of this folder that does; it is imported when the first file is read.
Definitions of Caffe's earlier versions (V0 and V1 ``layers``, ``input`` fields) come out in today's
form, upgraded by Caffe's own tool.
"""

from __future__ import annotations

import codecs
import importlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal
from warnings import warn

from deepsz_caffe.errors import CaffeError, DeepSZWarning, InputError, ModelError
from deepsz_caffe.files import read_input
from deepsz_caffe.folders import temporary_folder
from deepsz_caffe.network.legacy import TYPES
from deepsz_caffe.network.text import Definition, known_part

if TYPE_CHECKING:
    from caffe.proto.caffe_pb2 import (
        LayerParameter,
        NetParameter,
        NetState,
        NetStateRule,
        SolverParameter,
    )

Path_ = str | os.PathLike[str]

_Unknown = Literal["refuse", "note"]
#: things that are named in a warning
_NAMED = 8

#: Caffe's numbers of them
_PHASES = {"TRAIN": 0, "TEST": 1}

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
        The file can't be read, is not a network definition, has something that this Caffe does not
        know, or can't be upgraded.
    CaffeError
        pycaffe, or for old definitions Caffe's upgrade tool, is not installed.
    """
    return _read_net(path, "refuse")[0]


def read_any_prototxt(path: Path_) -> tuple[NetParameter, frozenset[str]]:
    """Read a network definition of any fork of Caffe, for what does not run the network.

    What this Caffe lacks (fields, values of enums) is left out and named in a `DeepSZWarning`; the
    type of a layer is kept in any case.

    Returns
    -------
    net : caffe_pb2.NetParameter
        As of `read_prototxt`.
    doubtful : frozenset of str
        Names of the layers that something was left out of.

    Raises
    ------
    ModelError, CaffeError
        As `read_prototxt`.
    """
    net, definition = _read_net(path, "note")
    types = {layer.type: layer.name for layer in net.layer if layer.type not in TYPES}
    strange = [f"layer {name}: type {kind}" for kind, name in types.items()]
    strange += [
        str(each)
        for each in definition.unknown
        if each.what != f"type {definition.types.get(each.layer)}"
    ]
    if strange:
        more = f" and {len(strange) - _NAMED:,} more" if len(strange) > _NAMED else ""
        known = "; ".join(strange[:_NAMED])
        warn(f"{path}: this Caffe does not know {known}{more}", DeepSZWarning, stacklevel=2)
    return net, frozenset(each.layer for each in definition.unknown)


def _read_net(path: Path_, unknown: _Unknown) -> tuple[NetParameter, Definition]:
    net, definition = _parse(path, "NetParameter", unknown)
    if net.layers or net.input:
        net = _upgraded(path, definition.text)
        for layer in net.layer:
            layer.type = layer.type or definition.types.get(layer.name, "")
    if not net.layer:
        raise ModelError(
            "no layer in it",
            where=path,
            hint="a network definition is wanted, such as train_val.prototxt or deploy.prototxt",
        )
    return net, definition


def read_solver(path: Path_) -> SolverParameter:
    """Read a solver definition; the old ``solver_type`` comes out as ``type``.

    Its networks are looked for as Caffe does, relative to the working directory; where one is not
    there, but a file of that name lies beside the solver, that one is named.

    Raises
    ------
    ModelError
        The file can't be read, is not a solver definition, or names no network.
    CaffeError
        pycaffe is not installed.
    """
    solver: SolverParameter = _parse(path, "SolverParameter")[0]
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
    for field in ("net", "train_net"):
        if name := getattr(solver, field):
            setattr(solver, field, _found(path, name))
    solver.test_net[:] = [_found(path, name) for name in solver.test_net]
    return solver


def _found(solver: Path_, name: str) -> str:
    beside = Path(solver).parent / Path(name).name
    return str(beside) if not Path(name).exists() and beside.is_file() else name


def phase(
    net: NetParameter, phase: Literal["TRAIN", "TEST"], stages: Sequence[str] = ()
) -> NetParameter:
    """Keep the layers that Caffe would build in this phase: `include` and `exclude` rules applied.

    Parameters
    ----------
    net
        From `read_prototxt`, or the net of an `outline.Outline`; it is not changed.
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
        An unknown phase, or a stage that no layer names: with Caffe's rules it would change
        nothing.
    ModelError
        A layer has both include and exclude rules, which Caffe refuses.
    """
    if phase not in _PHASES:
        raise InputError(f"phase {phase!r} is neither TRAIN nor TEST")
    _check_stages(net, stages)
    filtered = type(net)()
    filtered.CopyFrom(net)
    filtered.state.phase = _PHASES[phase]
    filtered.state.stage.extend(name for name in stages if name not in filtered.state.stage)
    del filtered.layer[:]
    filtered.layer.extend(layer for layer in net.layer if _included(layer, filtered.state))
    return filtered


def _check_stages(net: NetParameter, stages: Sequence[str]) -> None:
    named = {
        stage
        for layer in net.layer
        for rule in (*layer.include, *layer.exclude)
        for stage in (*rule.stage, *rule.not_stage)
    }
    for stage in stages:
        if stage not in named:
            raise InputError(
                "no layer of the network names this stage",
                where=f"stage {stage!r}",
                hint=f"its stages: {', '.join(sorted(named)) or 'none'}",
            )


def _included(layer: LayerParameter, state: NetState) -> bool:
    if layer.include and layer.exclude:
        raise ModelError("has both include and exclude rules", where=f"layer {layer.name}")
    if layer.include:
        return any(_meets(state, rule) for rule in layer.include)
    return not any(_meets(state, rule) for rule in layer.exclude)


def _meets(state: NetState, rule: NetStateRule) -> bool:
    return (
        (not rule.HasField("phase") or rule.phase == state.phase)
        and (not rule.HasField("min_level") or state.level >= rule.min_level)
        and (not rule.HasField("max_level") or state.level <= rule.max_level)
        and all(stage in state.stage for stage in rule.stage)
        and not any(stage in state.stage for stage in rule.not_stage)
    )


def _caffe_pb2() -> ModuleType:
    try:
        return importlib.import_module("caffe.proto.caffe_pb2")
    except ImportError as error:
        raise CaffeError(
            f"pycaffe can't be imported: {error}",
            hint="docker/install-caffe.sh installs it; deepsz doctor says what is there",
        ) from error


def _parse(path: Path_, kind: str, unknown: _Unknown = "refuse") -> tuple[Any, Definition]:
    from google.protobuf import text_format

    message = getattr(_caffe_pb2(), kind)()
    content = read_input(path, ModelError)
    if content.startswith(codecs.BOM_UTF8):
        what = "begins with a UTF-8 byte order mark"
        if unknown == "refuse":
            raise ModelError(
                f"{what}, which Caffe refuses", where=path, hint="save it as UTF-8 without it"
            )
        warn(f"{path}: {what}, which Caffe refuses", DeepSZWarning, stacklevel=3)
        content = content.removeprefix(codecs.BOM_UTF8)
    definition = known_part(content, message.DESCRIPTOR, path)
    if definition.unknown and unknown == "refuse":
        if kind == "SolverParameter":
            what, hint = "solver's definition", "deepsz doctor says what is installed"
        else:
            what = "network's definition"
            hint = "it can't run the network; encode, expand and compare --opencv need not"
        raise ModelError(
            f"not a {what} for this Caffe, which does not know {definition.unknown[0]}",
            where=path,
            hint=hint,
        )
    try:
        return text_format.Parse(definition.text, message), definition
    except text_format.ParseError as error:
        raise ModelError(f"not a prototxt that Caffe understands: {error}", where=path) from error


def _upgraded(path: Path_, text: str) -> NetParameter:
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
    with temporary_folder() as folder:
        known, output = folder / "known.prototxt", folder / "upgraded.prototxt"
        known.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [tool, str(known), str(output)],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env={**os.environ, "GLOG_minloglevel": "0", "GLOG_logtostderr": "1"},
        )
        if done.returncode:
            # glog: "F1124 10:00:00.000000  1234 upgrade_proto.cpp:42] message"; protobuf's parser:
            # "[libprotobuf ERROR google/protobuf/text_format.cc:337] message"
            said = re.findall(
                r"^(?:[EF]\d|\[libprotobuf ERROR).*?\] (.+)$", done.stderr, re.MULTILINE
            )
            why = " / ".join(said) or f"{_UPGRADE_TOOL} ended with {done.returncode}"
            raise ModelError(f"Caffe can't upgrade this definition: {why}", where=path)
        net: NetParameter = _parse(output, "NetParameter")[0]
        return net
