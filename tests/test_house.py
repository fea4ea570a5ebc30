"""The house's walls: which room may import which, and how long functions and files may be."""

import ast
import re
import sys
import threading
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "deepsz_caffe"

_UP_TO_API = {"codecs", "dsz", "network", "steps", "running", "runtime"}
#: room -> rooms that it may import, beside itself and what may be imported everywhere
MAY_IMPORT = {
    "codecs": set(),
    "dsz": {"codecs", "network"},  # to say what a file is that is none
    "network": {"codecs"},
    "steps": {"codecs", "dsz", "network"},
    "running": {"codecs", "dsz", "network"},
    "runtime": {"codecs", "dsz", "network", "steps", "running"},
    "api": _UP_TO_API,
    "auto": {*_UP_TO_API, "api"},
    "experiments": {*_UP_TO_API, "api"},
    "cli": {*_UP_TO_API, "api", "auto", "experiments"},
}
EVERYWHERE = {"errors", "files", "folders", "documents", "text"}
LONGEST_FUNCTION = 60
LONGEST_FILE = 500

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if not path.name.endswith("_pb2.py"))


def imports(tree: ast.Module) -> set[str]:
    """Return the dotted names of this package that a module imports, wherever it does."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            if node.module == "deepsz_caffe":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("deepsz_caffe."):
                found |= {f"{node.module}.{alias.name}".partition(".")[2] for alias in node.names}
        elif isinstance(node, ast.Import):
            names = (alias.name for alias in node.names)
            found |= {name.partition(".")[2] for name in names if name.startswith("deepsz_caffe.")}
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


@pytest.mark.parametrize("name", MAY_IMPORT)
def test_rooms_import_only_what_lies_below_them(name):
    allowed = {name} | MAY_IMPORT[name] | EVERYWHERE
    wrong = [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for path in MODULES
        if room(path) == name
        for module in sorted(imports(ast.parse(path.read_text(encoding="utf-8"))))
        if module.partition(".")[0] not in allowed
    ]
    assert not wrong, "\n".join(wrong)


def test_no_circle_of_modules():
    names = {}
    for path in MODULES:
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    edges = {}
    for name, path in names.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        at_import = ast.Module([n for n in tree.body if not isinstance(n, ast.If)], [])
        for node in ast.walk(at_import):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                node.body = []
        wanted = imports(at_import)
        edges[name] = {
            module if module in names else module.rpartition(".")[0] for module in wanted
        } - {name}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way, name))
        if name in done or name not in edges:
            return
        for other in sorted(edges[name]):
            visit(other, (*way, name))
        done.add(name)

    for name in edges:
        visit(name, ())


def lines_of_code(node: ast.AST, source: list[str]) -> int:
    """Count a function's lines without its docstring, comments and blank lines."""
    first = node.body[1] if len(node.body) > 1 and ast.get_docstring(node) else node.body[0]
    body = source[first.lineno - 1 : node.end_lineno]
    signature = node.body[0].lineno - node.lineno
    return signature + sum(1 for line in body if line.strip() and not line.strip().startswith("#"))


def test_functions_and_files_are_short():
    wrong = []
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        source = text.splitlines()
        if len(source) > LONGEST_FILE:
            wrong.append(f"{path.relative_to(PACKAGE)} has {len(source)} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                length = lines_of_code(node, source)
                if length > LONGEST_FUNCTION:
                    wrong.append(f"{path.relative_to(PACKAGE)}: {node.name} has {length} lines")
    assert not wrong, "\n".join(wrong)


def ways():
    """Give the files that a weight passes on its two ways, as README's last part lists them."""
    more = (PACKAGE.parent / "README.md").read_text(encoding="utf-8").partition("\n## More\n")[2]
    found: list[list[str]] = []
    for number, name in re.findall(r"^(\d+)\. `([\w/.]+)`", more, re.MULTILINE):
        if number == "1":
            found.append([])
        found[-1].append(name)
        assert int(number) == len(found[-1])
    return found


def passed(run, *arguments):
    """List the files of the package whose functions a call enters, in order, in all threads."""
    entered = [""]

    def note(frame, event, _):
        name = frame.f_code.co_filename
        if event == "call" and name != entered[-1] and name.startswith(str(PACKAGE)):
            entered.append(name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        run(*arguments)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return [Path(name).relative_to(PACKAGE).as_posix() for name in entered[1:]]


def test_a_weights_ways_are_short_and_passed_in_this_order(tmp_path):
    from plain import NumpyEvaluator, setup

    from deepsz_caffe.steps.assess.tester import Tester
    from deepsz_caffe.steps.encode import assemble, write_dsz
    from deepsz_caffe.steps.expand import expand

    evaluator = NumpyEvaluator(setup())

    def there():
        read = setup(layers=["ip3"])
        encoded = Tester(read, evaluator).encode_all({"ip3": 0.01})
        write_dsz(tmp_path / "x.dsz", assemble(read.model, ["ip3"], encoded.values(), "balanced"))

    runs = passed(there), passed(expand, tmp_path / "x.dsz", tmp_path / "x.caffemodel")
    for way, entered in zip(ways(), runs, strict=True):
        assert 1 < len(way) <= 12
        assert len(set(way)) == len(way)
        assert [name for name in way if not (PACKAGE / name).is_file()] == []
        rest = iter(entered)
        for name in way:
            assert name in rest, f"{name} is not passed where README says so"
