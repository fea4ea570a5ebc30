"""What a decoding process can still do, tried from within it; and that it ends with its parent."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

#: what is tried: an expression that works in any other process
ATTEMPTS = {
    "read a file": "open('/etc/passwd').read()",
    "read by a descriptor's name": "open('/proc/self/mem')",
    "write a file": "open(folder + '/new', 'w')",
    "list a folder": "os.listdir('/')",
    "make a folder": "os.mkdir(folder + '/new')",
    "remove a file": "os.unlink(folder + '/there')",
    "rename a file": "os.rename(folder + '/there', folder + '/new')",
    "link": "os.link(folder + '/there', folder + '/new')",
    "change permissions": "os.chmod(folder + '/there', 0o777)",
    "cut a file by its name": "os.truncate(folder + '/there', 0)",
    "change the folder": "os.chdir('/')",
    "open a socket": "socket.socket()",
    "open a local socket": "socket.socket(socket.AF_UNIX)",
    "pair sockets": "socket.socketpair()",
    "fork": "os.fork() or os._exit(0)",
    "run a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "become a program": "os.execv('/bin/true', ['true'])",
    "run a file in memory": "os.memfd_create('x')",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "limit the parent": "resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0))",
    "trace": "libc.ptrace(0, 0, 0, 0) and no()",
    "make a name space": "libc.unshare(0x10000000) and no()",
    "lift the filter": "libc.prctl(22, 0, 0, 0, 0) and no()",
}
BEFORE = textwrap.dedent("""
    import ctypes, json, os, resource, socket, sys, threading
    folder, how = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    def no():
        raise OSError(ctypes.get_errno(), "refused")
    from deepsz_caffe.dsz import sandbox
    own = open(folder + "/there", "r+b")
    def attempt(what):
        try:
            eval(what)
        except OSError as error:
            return error.errno
        return 0
""")


def within(folder, how, code):
    (folder / "there").write_bytes(b"old")
    command = [sys.executable, "-c", BEFORE + textwrap.dedent(code), str(folder), how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_nothing_can_be_reached_from_within(tmp_path):
    code = f"""
        held = getattr(sandbox, how)()
        results = {{name: attempt(what) for name, what in {ATTEMPTS!r}.items()}}
        print(json.dumps([held, results]))
    """
    held, results = within(tmp_path, "confine", code)
    if "system calls" not in held:
        pytest.skip(f"this kernel or machine gives {held} only")
    assert held[0] == "no new privileges"
    assert {name for name, error in results.items() if not error} == set()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_files_are_refused_without_the_filter_too(tmp_path):
    files = {name: what for name, what in ATTEMPTS.items() if "open(" in what or "os.un" in what}
    code = f"""
        sandbox._prctl(38, 1)
        held = sandbox._refuse_files()
        print(json.dumps([held, {{name: attempt(what) for name, what in {files!r}.items()}}]))
    """
    held, results = within(tmp_path, "-", code)
    if not held:
        pytest.skip("this kernel has no Landlock")
    assert all(results.values()), results


def test_what_decoding_needs_still_works(tmp_path):
    code = """
        sandbox.confine()
        found = []
        thread = threading.Thread(target=lambda: found.append(own.read()))
        thread.start()
        thread.join()
        own.write(b"new")
        own.flush()
        print(json.dumps([found[0].decode(), len(bytearray(50_000_000))]))
    """
    assert within(tmp_path, "-", code) == ["old", 50_000_000]
    assert (tmp_path / "there").read_bytes() == b"oldnew"


def test_a_decoder_ends_with_its_parent(tmp_path):
    code = """
        import os, subprocess, sys, time
        child = "from deepsz_caffe.dsz import sandbox; import time; "
        child += "sandbox.end_with_parent(PARENT); print(1, flush=True); time.sleep(600)"
        child = child.replace("PARENT", str(os.getpid()))
        started = subprocess.Popen([sys.executable, "-c", child], stdout=subprocess.PIPE)
        started.stdout.readline()
        print(started.pid, flush=True)
        time.sleep(600)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child = int(parent.stdout.readline())
        os.kill(child, 0)
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    for _ in range(100):
        stat = Path(f"/proc/{child}/stat")
        if not stat.exists() or stat.read_text().split(")")[1].split()[0] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("the child lives on")


def test_one_whose_parent_has_ended_before_ends_at_once():
    code = "from deepsz_caffe.dsz import sandbox; sandbox.end_with_parent(1 << 22); print('alive')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
