"""The public API: typed, complete, and the same for a type checker as for Python."""

import ast
import dataclasses
import importlib.metadata
import inspect
import re
import typing
from pathlib import Path

import pytest
from mypy import api as mypy

import deepsz_caffe

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import deepsz_caffe as dsz
from deepsz_caffe import CompressResult, Score

pruned: dsz.Pruned = dsz.prune("solver.prototxt", "d.caffemodel", {"ip1": 0.08}, "p.caffemodel")
result: CompressResult = dsz.compress("n.prototxt", "p.caffemodel", "o.dsz", max_loss=0.002)
before: Score = result.before
plan: dsz.Plan = dsz.optimize(dsz.assess("n.prototxt", "p.caffemodel"), target_ratio=60)
dsz.write_dsz("o.dsz", dsz.encode("n.prototxt", "p.caffemodel", plan.bounds, profile="small"))
print(dsz.__version__.upper(), pruned.layers[0].nonzeros + before.top1_correct)
print(dsz.decode("o.dsz")["ip1"].mean(), dsz.evaluate("n.prototxt", "o.dsz").total)
"""
WRONG = """
import deepsz_caffe as dsz

dsz.compress("n", "w", "o", max_los=1)
dsz.compress("n", "w", "o", max_loss="1")
dsz.assess("n", "w", search="other")
dsz.optimize("A.json", max_loss=0.1)
dsz.encode("n", "w", {"a": 0.1}).layer
dsz.no_such_name
"""


def errors_of(tmp_path, source):
    script = tmp_path / "script.py"
    script.write_text(source)
    # Kept from run to run: all of numpy's types are read otherwise.
    cache = ROOT / ".mypy_cache" / "script"
    said, problem, _ = mypy.run(
        ["--strict", "--config-file=", "--cache-dir", str(cache), str(script)]
    )
    assert not problem
    return [line for line in said.splitlines() if "error:" in line]


def test_a_users_script_is_type_checked(tmp_path):
    assert errors_of(tmp_path, SCRIPT) == []
    lines = WRONG.strip().splitlines()
    found = {int(line.split(":")[1]) - 2 for line in errors_of(tmp_path, WRONG)}
    assert found == {n for n, line in enumerate(lines) if line.startswith("dsz.")}


def test_a_type_checker_sees_the_same_names():
    tree = ast.parse(Path(deepsz_caffe.__file__).read_text())
    imported = {
        (node.module.removeprefix("deepsz_caffe."), alias.name, alias.asname)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("deepsz_caffe.")
        for alias in node.names
    }
    assert imported == {(m, name, name) for name, m in deepsz_caffe._MODULES.items()}
    assert [name for name in deepsz_caffe.__all__ if not hasattr(deepsz_caffe, name)] == []
    assert set(deepsz_caffe.__all__) < set(dir(deepsz_caffe))
    with pytest.raises(AttributeError, match="no_such_name"):
        deepsz_caffe.no_such_name  # noqa: B018


def test_the_version_is_that_of_the_package():
    assert deepsz_caffe.__version__ == importlib.metadata.version("deepsz-caffe")


PUBLIC = {name: getattr(deepsz_caffe, name) for name in deepsz_caffe.__all__}
#: what modules import for a type checker alone; Caffe's and OpenCV's networks have the same name
NAMES = PUBLIC | {"Net": object}
#: lines with `Any`, which only a library's want of types or JSON's contents excuse
MOST_ANY = 49


def mentioned(hint):
    """List the classes of this package in a type."""
    if inspect.isclass(hint) and hint.__module__.startswith("deepsz_caffe"):
        yield hint
    for part in typing.get_args(hint):
        yield from (
            [each for one in part for each in mentioned(one)]
            if isinstance(part, list)
            else mentioned(part)
        )


def hints_of(thing):
    """Collect the types of a function's parameters, or of a class's public fields and methods."""
    if inspect.isfunction(thing):
        return list(typing.get_type_hints(thing, localns=NAMES).values())
    if not inspect.isclass(thing):
        return [thing]
    if thing is deepsz_caffe.Contents:  # goes from `encode` to `write_dsz` as it is
        return []
    fields = (
        typing.get_type_hints(thing, localns=NAMES).values()
        if dataclasses.is_dataclass(thing)
        else ()
    )
    members = [m for name, m in vars(thing).items() if not name.startswith("_")]
    members = [m.fget if isinstance(m, property) else m for m in members]
    members = [getattr(m, "__func__", m) for m in members]
    return [*fields, *(h for m in members if inspect.isfunction(m) for h in hints_of(m))]


def test_whatever_a_signature_mentions_is_public():
    public = {name: getattr(deepsz_caffe, name) for name in deepsz_caffe.__all__}
    missing = {
        f"{name} mentions {each.__name__}"
        for name, thing in public.items()
        for hint in hints_of(thing)
        for each in mentioned(hint)
        if each not in public.values()
    }
    assert not missing


def test_few_types_are_any():
    package = Path(deepsz_caffe.__file__).parent
    found = {
        path.relative_to(package).as_posix(): len(re.findall(r"^.*\bAny\b", text, re.MULTILINE))
        for path in package.rglob("*.py")
        if "Any" in (text := path.read_text(encoding="utf-8"))
    }
    assert sum(found.values()) <= MOST_ANY, found
