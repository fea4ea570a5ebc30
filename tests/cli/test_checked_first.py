"""Whatever can be wrong with an option is said before any work: no Caffe process has started."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from deepsz_caffe.runtime import process

COMPRESS = "compress NET W out.dsz --max-loss 0.1"
ASSESS = "assess NET W --out A.json"
PRUNE = "prune SOLVER --weights W --keep ip=0.5 --out p.caffemodel"
ENCODE = "encode NET W out.dsz"

PICTURES = "compress NET W out.dsz --agreement 0.9 --images x.npz"

#: options that `assess` and `compress` share, wrong, with exit code and what is said
MEASURE = [
    ("--profile other", 2, "no profile 'other'"),
    ("--protocol other", 2, "'other'"),
    ("--search other", 2, "'other'"),
    ("--layers none", 1, "layer none"),
    ("--workers 0", 2, "at least one worker"),
    ("--workers x", 2, "'x'"),
    ("--gpu x", 2, "not a list"),
    ("--features W", 1, "pruned.caffemodel: can't write: not a folder"),
    ("--features W/in/it", 1, "not a folder"),
    ("--features-limit 0", 2, "x>=1"),
    ("--features-limit much", 2, "'much'"),
    ("--journal folder", 1, "folder: can't write: it is a folder"),
    ("--journal none/j", 1, "none/j: can't write: the folder does not exist"),
    ("--journal W", 2, "read and written at once"),
    ("--data none", 1, "none"),
    ("--data W", 1, "pruned.caffemodel"),
    ("--data short.npz", 1, "no array"),
    ("--max-loss -0.1", 2, "fraction"),
    ("--max-loss 1", 2, "fraction"),
    ("--max-loss nan", 2, "fraction"),
    ("--max-loss much", 2, "'much'"),
]
WRONG = [
    *((f"{COMPRESS} {options}", *result) for options, *result in MEASURE),
    *((f"{ASSESS} {options}", *result) for options, *result in MEASURE),
    (f"{COMPRESS} --target-ratio 9", 2, "maximal loss or a target ratio"),
    ("compress NET W out.dsz", 2, "maximal loss or a target ratio"),
    ("compress NET W out.dsz --target-ratio 0", 2, "ratio is over 0"),
    ("compress NET W out.dsz --target-ratio nan", 2, "ratio is over 0"),
    (f"{COMPRESS} --confidence 1", 2, "confidence"),
    (f"{COMPRESS} --confidence 0.4", 2, "confidence"),
    (f"{COMPRESS} --confidence nan", 2, "confidence"),
    (f"{COMPRESS} --biases none", 2, "'none'"),
    (f"{COMPRESS} --max-loss 0.1 --profile fast --biases corrected", 2, "not measured here"),
    (f"{COMPRESS} --original none", 1, "none"),
    (f"{COMPRESS} --original NET", 1, "train_val.prototxt"),
    (f"{COMPRESS} --original other.caffemodel", 1, "other.caffemodel"),
    (f"{COMPRESS} --time 9m", 2, "--time goes with --auto alone"),
    (f"{COMPRESS} --run r", 2, "--run goes with --auto alone"),
    (f"{COMPRESS} --seed 2", 2, "--seed goes with --auto alone"),
    (f"{COMPRESS} --threads 2", 2, "--threads goes with --auto alone"),
    ("compress NET W out.dsz --auto", 2, "--auto needs --max-loss"),
    (f"{COMPRESS} --auto --time 0", 2, "'0' is no time"),
    (f"{COMPRESS} --auto --time soon", 2, "'soon' is no time"),
    (f"{COMPRESS} --auto --extra-blobs drop", 2, "don't go together"),
    (f"{COMPRESS} --auto --images x.npz", 2, "don't go together"),
    (f"{COMPRESS} --auto --target-ratio 9", 2, "don't go together"),
    (f"{COMPRESS} --auto --seed -1", 2, "seed"),
    (f"{COMPRESS} --auto --threads 0", 2, "thread"),
    (f"{COMPRESS} --auto --profile other", 2, "no profile"),
    (f"{COMPRESS} --auto --layers none", 1, "none"),
    (f"{COMPRESS} --auto --run W", 1, "not a folder"),
    (f"{COMPRESS} --auto --with-prototxt none", 2, "none: can't read"),
    (f"{COMPRESS} --auto --confidence 2", 2, "confidence"),
    (f"{COMPRESS} --auto --workers 0", 2, "at least one worker"),
    (f"{COMPRESS} --biases other", 2, "'other' is not one of"),
    (f"{COMPRESS} --layers fc --biases corrected", 2, "--search divergence"),
    (f"{COMPRESS} --extra-blobs some", 2, "'some' is not one of"),
    (f"{COMPRESS} --with-prototxt none", 2, "none: can't read"),
    (f"{COMPRESS} --with-prototxt W", 1, "not a prototxt"),
    ("compress NET W out.dsz --agreement 0.9", 2, "measured on pictures"),
    ("compress NET W out.dsz --agreement 0.9 --images none", 2, "none: no such folder"),
    ("compress NET W out.dsz --agreement 0.9 --images folder", 1, "folder: no pictures"),
    ("compress NET W out.dsz --agreement 0.9 --images short.npz", 1, "no array data"),
    ("compress NET W out.dsz --max-loss 0.1 --images short.npz", 1, "no array data"),
    ("compress NET W x.npz --agreement 0.9 --images x.npz", 2, "read and written at once"),
    ("compress NET W out.dsz --agreement 0.9999 --images x.npz", 2, "at least 23,025 pictures"),
    ("compress NET W out.dsz --agreement 99 --images x.npz", 2, "an agreement is a fraction"),
    (f"{PICTURES} --max-loss 0.1", 2, "maximal loss or a target ratio"),
    (f"{PICTURES} --data x.npz", 2, "either --images or --data"),
    (f"{PICTURES} --search paper", 2, "not for an agreement"),
    (f"{PICTURES} --labels x.npz", 2, "not for an agreement"),
    (f"{PICTURES} --mean 1,2", 2, "2 values for the 1 channels"),
    (f"{PICTURES} --mean none", 2, "neither values nor"),
    (f"{PICTURES} --mean W", 1, "can't read the mean"),
    (f"{PICTURES} --scale 0", 2, "no scale"),
    (f"{PICTURES} --channel-swap 0,1,2", 2, "1 channels, not three"),
    (f"{PICTURES} --channel-swap x", 2, "not numbers"),
    (f"{PICTURES} --resize 9", 2, "smaller than the input"),
    (f"{PICTURES} --resize 9,9,9", 2, "neither a size"),
    (f"{PICTURES} --crop 5", 2, "'5' is not one of"),
    (f"{COMPRESS} --mean 1", 2, "--mean: is for pictures"),
    ("compress NET W out.dsz --max-change 0.1", 2, "measured on pictures"),
    ("compress NET W out.dsz --max-change 0 --images x.npz", 2, "a largest change is a number"),
    (f"{PICTURES} --max-change 0.1", 2, "maximal loss or a target ratio"),
    (f"{PICTURES} --outputs ip", 2, "outputs are for a largest change"),
    ("compress NET W out.dsz --max-change 0.1 --images x.npz --outputs no", 1, "no such blob"),
    ("compress NET W out.dsz --relative-bound 0", 2, "a relative bound is a number over 0"),
    ("compress NET W out.dsz --relative-bound nan", 2, "a relative bound is a number over 0"),
    ("compress NET W out.dsz --relative-bound 0.1 --layers none", 1, "none"),
    (f"{COMPRESS} --relative-bound 0.1", 2, "--max-loss: nothing is measured"),
    (f"{PICTURES} --relative-bound 0.1", 2, "--images: nothing is measured"),
    ("compress none W out.dsz --max-loss 0.1", 1, "none"),
    ("compress NET none out.dsz --max-loss 0.1", 1, "none"),
    ("compress NET other.caffemodel out.dsz --max-loss 0.1", 1, "other.caffemodel"),
    ("compress NET W folder --max-loss 0.1", 1, "folder: can't write: it is a folder"),
    ("compress NET W none/x --max-loss 0.1", 1, "none/x: can't write: the folder does not"),
    ("compress NET W /dev/null --max-loss 0.1", 1, "it is a device"),
    ("compress NET W W --max-loss 0.1", 2, "read and written at once"),
    ("compress NET W NET --max-loss 0.1", 2, "read and written at once"),
    ("compress NET W link --max-loss 0.1", 2, "link: is to be read and written at once"),
    ("compress NET W copy --max-loss 0.1 --original copy", 2, "read and written at once"),
    ("compress NET W x.npz --max-loss 0.1 --data x.npz", 2, "read and written at once"),
    (f"{COMPRESS} --journal ./out.dsz", 2, "written twice"),
    (f"{ASSESS} --journal A.json", 2, "written twice"),
    (f"{ASSESS} --journal x.npz --data x.npz", 2, "read and written at once"),
    ("assess NET W --out x.npz --data x.npz", 2, "read and written at once"),
    (f"{ASSESS} --bounds 0", 2, "error bound"),
    (f"{ASSESS} --bounds 0.1,inf", 2, "error bound"),
    (f"{ASSESS} --bounds 1,x", 2, "not a list"),
    ("assess NET W --out folder", 1, "folder: can't write: it is a folder"),
    ("assess NET W --out none/A.json", 1, "none/A.json: can't write: the folder does not"),
    ("assess NET W --out W", 2, "read and written at once"),
    ("assess NET none --out A.json", 1, "none"),
    (f"{ENCODE} --bounds ip=0", 2, "layer ip: an error bound"),
    (f"{ENCODE} --bounds ip=nan", 2, "layer ip: an error bound"),
    (f"{ENCODE} --bounds ip", 2, "--bounds ip1=0.02"),
    (f"{ENCODE} --bounds other=0.1", 1, "other"),
    (f"{ENCODE} --bounds ip=0.1 --plan none", 2, "--bounds or --plan"),
    (f"{ENCODE} --relative-bound 0", 2, "a relative bound is a number over 0"),
    (f"{ENCODE} --relative-bound 0.1 --bounds ip=0.1", 2, "--bounds or --plan"),
    (f"{ENCODE} --plan none", 2, "none"),
    (f"{ENCODE} --plan NET", 2, "train_val.prototxt: not a plan"),
    (f"{ENCODE} --bounds ip=0.1 --profile other", 2, "no profile"),
    (f"{ENCODE} --bounds ip=0.1 --with-prototxt none", 2, "none: can't read"),
    (f"{ENCODE} --bounds ip=0.1 --with-prototxt W", 1, "not a prototxt"),
    (f"{ENCODE} --bounds ip=0.1 --extra-blobs some", 2, "'some' is not one of"),
    ("encode NET W W --bounds ip=0.1", 2, "read and written at once"),
    ("encode NET W link --bounds ip=0.1", 2, "read and written at once"),
    ("encode NET W folder --bounds ip=0.1", 1, "it is a folder"),
    (f"{PRUNE} --keep ip=0", 2, "(0, 1]"),
    (f"{PRUNE} --keep ip=2", 2, "(0, 1]"),
    (f"{PRUNE} --keep other=0.5", 1, "other"),
    (f"{PRUNE} --schedule other", 2, "'other'"),
    (f"{PRUNE} --seed -1", 2, "seed"),
    (f"{PRUNE} --iterations -1", 2, "iteration"),
    (f"{PRUNE} --lr 0", 2, "learning rate"),
    (f"{PRUNE} --lr nan", 2, "learning rate"),
    (f"{PRUNE} --lr nan --freeze-body features", 2, "learning rate"),
    (f"{PRUNE} --threads 0", 2, "at least one thread"),
    (f"{PRUNE} --threads -1 --freeze-body features", 2, "at least one thread"),
    (f"{PRUNE} --layers fc", 2, "layers: is what --keep all=PART stands for"),
    (f"{PRUNE} --keep all=0.5 --layers none", 1, "none"),
    (f"{PRUNE} --teacher none", 1, "none: can't read"),
    (f"{PRUNE} --teacher other.caffemodel", 1, "other.caffemodel"),
    (f"{PRUNE} --teacher W --freeze-body features", 2, "don't go together"),
    (f"{PRUNE} --noise -1", 2, "noise"),
    (f"{PRUNE} --noise nan", 2, "noise"),
    (f"{PRUNE} --bounds ip=0", 2, "over 0"),
    (f"{PRUNE} --bounds none=0.1", 1, "none"),
    (f"{PRUNE} --bounds ip", 2, "LAYER=BOUND"),
    (f"{PRUNE} --weights none", 1, "none"),
    (f"{PRUNE} --weights other.caffemodel", 1, "other.caffemodel"),
    (f"{PRUNE} --out W", 2, "read and written at once"),
    (f"{PRUNE} --out folder", 1, "it is a folder"),
    (f"{PRUNE} --out none/p", 1, "none/p"),
    (f"{PRUNE} --freeze-body W", 1, "not a folder"),
    ("prune none --weights W --keep ip=0.5 --out p.caffemodel", 1, "none"),
    ("optimize A1.json --max-loss 2", 2, "fraction"),
    ("optimize A1.json --target-ratio -1", 2, "ratio is over 0"),
    ("optimize A1.json", 2, "maximal loss or a target ratio"),
    ("optimize A1.json --max-loss 0.1 --out A1.json", 2, "read and written at once"),
    ("optimize A1.json --max-loss 0.1 --out none/x", 1, "none/x"),
    ("expand one.dsz one.dsz", 2, "read and written at once"),
    ("expand one.dsz one.dsz --isolated", 2, "read and written at once"),
]


@pytest.fixture(scope="module")
def folder(toy, tmp_path_factory):
    """Give a folder with right things, to copy, and wrong ones."""
    from assessments import assessment

    from deepsz_caffe.dsz.writer import write_dsz
    from deepsz_caffe.steps.encode import encode

    path = tmp_path_factory.mktemp("checked")
    (path / "folder").mkdir()
    (path / "link").symlink_to(toy.weights)
    shutil.copy(toy.weights, path / "copy")
    other = toy.folder / "other.caffemodel"
    if not other.exists():
        models = Path(__file__).parents[2] / "models"
        other.symlink_to(models / "lenet_300_100" / "dense.caffemodel")
    (path / "other.caffemodel").symlink_to(other)
    np.savez(path / "x.npz", **toy.arrays())
    np.savez(path / "short.npz", other=np.zeros(3))
    solver = f'net: "{toy.network}" base_lr: 0.01 lr_policy: "fixed" max_iter: 9'
    (path / "solver.prototxt").write_text(solver)
    assessment().save(path / "A1.json")
    write_dsz(path / "one.dsz", encode(toy.network, toy.weights, {"ip": 0.1}, "fast"))
    return path


@pytest.fixture
def started(monkeypatch):
    """Count the Caffe processes that are started."""
    calls = []
    begin = process.CaffeProcess.__init__

    def counting(self, *arguments):
        calls.append(arguments)
        begin(self, *arguments)

    monkeypatch.setattr(process.CaffeProcess, "__init__", counting)
    return calls


@pytest.mark.parametrize(("command", "code", "said"), WRONG)
def test_nothing_is_started_for_what_is_wrong(
    toy, folder, deepsz, started, monkeypatch, command, code, said
):
    monkeypatch.chdir(folder)
    there = {path: path.stat().st_mtime_ns for path in sorted(folder.iterdir())}
    names = {"NET": toy.network, "W": toy.weights, "SOLVER": "solver.prototxt"}
    words = command.replace(" W/", f" {toy.weights}/").split()
    done = deepsz(*(names.get(word, word) for word in words))
    assert done.returncode == code, done.stderr
    assert said in done.stderr.splitlines()[-1]
    assert done.stdout == ""
    assert not started
    assert {path: path.stat().st_mtime_ns for path in sorted(folder.iterdir())} == there


def test_every_option_of_these_commands_is_in_the_table():
    """An option that is added must be tried here, or be named as one that can't be wrong."""
    from deepsz_caffe.cli.main import deepsz

    harmless = {"--json", "--resume", "--isolated", "--scheduler", "--max-memory"}
    for name in ("compress", "assess", "encode", "prune", "optimize"):
        context = deepsz.make_context("deepsz", [name], resilient_parsing=True)
        command = deepsz.get_command(context, name)
        options = {each.opts[0] for each in command.params if each.opts[0].startswith("--")}
        tried = {w for line, _, _ in WRONG if line.startswith(name) for w in line.split()}
        gpu = {"--gpu"} if name == "prune" else set()
        assert options - harmless - gpu <= tried


def test_a_right_command_does_start_caffe(toy, folder, deepsz, started, monkeypatch):
    """Nothing would be proved by a counter that counts nothing."""
    monkeypatch.chdir(folder)
    done = deepsz("eval", toy.network, toy.weights)
    assert done.returncode == 0
    assert started
