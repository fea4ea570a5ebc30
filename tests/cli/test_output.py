"""Standard output that takes nothing, or not every sign: one line says so, without a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILE = str(ROOT / "models" / "lenet_5" / "paper.dsz")
COMMANDS = (("inspect", FILE), ("inspect", FILE, "--json"), ("--help",), ("expand", FILE, "-"))


def run(*arguments, **options):
    command = [sys.executable, "-m", "deepsz_caffe", *arguments]
    return subprocess.run(command, stderr=subprocess.PIPE, check=False, **options)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_full_disk_is_named(command):
    with Path("/dev/full").open("w") as full:
        done = run(*command, stdout=full)
    assert done.returncode == 1
    assert done.stderr == b"deepsz: standard output: No space left on device\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_gone_ends_it_quietly(command):
    reader, writer = os.pipe()
    os.close(reader)
    done = run(*command, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_closed_standard_output_is_named(command):
    done = run(*command, preexec_fn=lambda: os.close(1))
    assert done.returncode == 1
    assert done.stderr == b"deepsz: standard output: Bad file descriptor\n"


def test_nowhere_to_print_errors():
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "deepsz_caffe", "inspect"]
        for arguments, code in (["no"], 1), ([], 2):
            assert subprocess.run(command + arguments, stderr=full, check=False).returncode == code


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_signs_that_the_encoding_lacks_are_written_out(encoding, tmp_path):
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C"}
    done = run("inspect", FILE, stdout=subprocess.PIPE, env=environment)
    assert done.returncode == 0
    shown = done.stdout.decode(encoding)
    assert ("500x800" if encoding == "ascii" else "500×800") in shown
    assert "\\" not in shown
    failed = run("inspect", str(tmp_path / "卷积"), env=environment)
    expected = "卷积" if encoding == "utf-8" else "\\u5377\\u79ef"
    assert failed.stderr.decode(encoding).startswith(f"deepsz: {tmp_path}/{expected}: ")


def test_no_file_gets_the_number_of_a_closed_standard_error(tmp_path):
    code = (
        "import os; os.close(1); os.close(2); import sys;"
        f"sys.argv = ['deepsz', 'expand', {FILE!r}, {str(tmp_path / 'out')!r}];"
        "from deepsz_caffe.cli.main import _keep_standard_descriptors as keep; keep();"
        "assert os.open('/dev/null', os.O_RDONLY) > 2;"
        "from deepsz_caffe.cli import main; main()"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert (tmp_path / "out").stat().st_size > 1_000_000
