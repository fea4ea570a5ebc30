import csv
import dataclasses
import json
from xml.etree import ElementTree

import cv2
import pytest

from deepsz_caffe.errors import DataError
from deepsz_caffe.experiments import results
from deepsz_caffe.experiments.pages import figures, page, tables
from deepsz_caffe.experiments.results import (
    Accuracy,
    Cost,
    IndexSize,
    Joint,
    JointDivergence,
    Layer,
    Point,
    Run,
    SingleTest,
)


def make_run(network="lenet-300-100", seed=1, *, after=9831, generated=False):
    def right(top1):
        return None if generated else Accuracy(10_000, top1, 9990)

    steps = {"lossless": 1e-4, "values": 2e-4, "rebuild": 3e-4}
    names = {"lenet-300-100": ("ip1", "ip2", "ip3"), "alexnet": ("fc6", "fc7", "fc8")}[network]
    layers = tuple(
        Layer(name, (300, 784), 18_800, 0.02, "sz", 5_000, "zstd", 8_000, 13_060) for name in names
    )
    points = (
        Point("deepsz", "profile paper", 19_000, right(after), right(after), False, 12.0, steps),
        Point("deepsz", "profile small", 14_000, right(after - 90), right(after), False, 12, steps),
        Point("deep-compression", "4 bits", 20_000, right(after - 10), right(after - 5), False, 1),
        Point("deep-compression", "2 bits", 12_000, right(after - 80), right(after - 90), False, 1),
        Point("deep-compression", "5 bits", 26_000, right(after), right(after), True, 30, steps),
        Point("weightless", "9, 8 bits", 38_000, right(after - 70), right(after - 60), False, 2),
        Point("weightless", "9, 8 bits", 38_000, right(after), right(after), True, 50, steps),
    )
    return Run(
        network=network,
        command=f"deepsz reproduce {network}",
        seed=seed,
        generated=generated,
        fc_dense_bytes=1_064_800,
        file_bytes=25_000,
        layers=layers,
        points=points,
        index=tuple(
            IndexSize(name, codec, 18_800, 9_000) for name in names for codec in ("gzip", "zstd")
        ),
        dense=right(9840),
        pruned=right(9838),
        pruned_validation=right(9832),
        max_loss=None if generated else 0.002,
        protocol="validation",
        tested=()
        if generated
        else tuple(
            SingleTest(name, bound, 10_000, int(900 * bound), 10_000)
            for name in names
            for bound in (0.01, 0.02, 0.05)
        ),
        joint=() if generated else (Joint({"ip1": 0.02}, 12, 10, 10_000),),
        costs=(Cost("deepsz encode", 2.5, 900_000_000),) if generated else (),
        forward_seconds=0.01,
        network_bytes=0 if generated else 1_067_087,
        whole=()
        if generated
        else (
            Point("deepsz", "profile small", 15_000, right(after), right(after)),
            Point("deep-compression", "8 bits, 5", 35_000, right(9780), right(9790)),
            Point("deep-compression", "8 bits, 5", 35_000, right(9830), right(9830), True),
        ),
        divergences=()
        if generated
        else (
            JointDivergence({"ip1": 0.02, "ip2": 0.02}, 0.002, 0.0018),
            JointDivergence({"ip1": 0.04, "ip2": 0.02}, 0.009, 0.010),
        ),
    )


@pytest.fixture
def runs():
    return [
        make_run(seed=1, after=9831),
        make_run(seed=2, after=9835),
        make_run("alexnet", generated=True),
    ]


def rows_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_run_survives_its_file(tmp_path, runs):
    for run in runs:
        results.save(run, tmp_path / "run.json")
        assert results.load(tmp_path / "run.json") == run


def test_missing_or_foreign_results_are_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none\.json: can't read: No such file"):
        results.load(tmp_path / "none.json")
    (tmp_path / "other.json").write_text('{"network": "lenet-5"}')
    with pytest.raises(DataError, match="missing required field `command`"):
        results.load(tmp_path / "other.json")


def test_results_of_other_types_are_an_error(tmp_path):
    """Every value of a run in turn is replaced by one of another type, and named."""
    document = json.loads(json.dumps(dataclasses.asdict(make_run())))
    path = tmp_path / "run.json"
    tried = 0
    for name, value in document.items():
        for wrong in ("text", [["text"]], {"text": 1}, float("nan"), 1.5):
            if type(wrong) is type(value) or (wrong == 1.5 and name == "max_loss"):
                continue
            if wrong == 1.5 and name == "forward_seconds":
                continue
            path.write_text(json.dumps(document | {name: wrong}))
            with pytest.raises(DataError, match=rf"at `\$\.{name}|malformed"):
                results.load(path)
            tried += 1
    assert tried > 4 * len(document) - 10


def test_main_table_has_mean_and_spread_and_the_papers_row_below(runs):
    ours, paper, *_ = rows_of(tables.main(tables.groups(runs)))
    assert ours["top-1 after"] == "98.33 ± 0.03 %"
    assert ours["fc after"] == "19.0 ± 0.0 KB"
    assert ours["ratio"] == "56.0 ± 0.0×"
    assert ours["seeds"] == "2"
    assert ours["top-5 after"] == tables.NONE
    assert paper["network"] == "LeNet-300-100, paper"
    assert (paper["top-1 after"], paper["ratio"]) == ("98.31 %", "55.8×")


def test_generated_weights_are_marked_in_every_row_and_have_no_accuracy(runs):
    for table in tables.every_table(runs):
        for row in rows_of(table):
            if row["network"].startswith("AlexNet") and "paper" not in row["network"]:
                assert "generated weights" in row["network"], table.name
    row = next(
        row
        for row in rows_of(tables.main(tables.groups(runs)))
        if row["network"] == "AlexNet (generated weights)"
    )
    assert row["top-1 before"] == row["top-1 after"] == row["top-5 after"] == tables.NONE


def test_comparable_ratio_takes_the_nearest_setting_without_retraining(runs):
    rows = {row["technique"]: row for row in rows_of(tables.comparable_ratio(tables.groups(runs)))}
    assert rows["Deep Compression"]["setting"] == "4 bits"
    # 98.38 − 98.26 and 98.38 − 98.30
    assert rows["Deep Compression"]["loss"] == "0.10 ± 0.03 %"
    assert rows["Deep Compression"]["loss, paper"] == "0.22 %"
    assert rows["DeepSZ"]["loss, paper"] == "0.12 %"


def test_comparable_loss_takes_the_smallest_setting_that_validation_allows(runs):
    rows = {row["technique"]: row for row in rows_of(tables.comparable_loss(tables.groups(runs)))}
    assert rows["DeepSZ"]["setting"] == "profile paper"  # the smaller one loses 0.9 % there
    assert rows["Deep Compression"]["setting"] == "4 bits"
    assert rows["Weightless"]["setting"] == "none holds the limit"
    assert rows["Weightless"]["seeds that meet it"] == "0 of 2"


def test_whole_networks_lose_against_the_trained_network(runs):
    ours, plain, retrained = rows_of(tables.whole(tables.groups(runs)))
    assert [row["technique"] for row in (ours, plain, retrained)] == [
        "DeepSZ", "Deep Compression", "Deep Compression, retrained"
    ]  # fmt: skip
    # 98.40 − 98.31 and 98.40 − 98.35
    assert ours["loss on the test set"] == "0.07 ± 0.03 %"
    assert (ours["whole network"], ours["ratio"]) == ("1.07 MB", "71.1 ± 0.0×")
    assert (ours["ratio, published"], plain["ratio, published"]) == (tables.NONE, "40×")
    assert plain["loss on the test set"] == "0.50 ± 0.00 %"


def test_negative_losses_and_zero_means_are_written_right():
    assert tables.points_of_percent(-0.0003) == "−0.03 %"
    assert tables.points_of_percent(-0.00001) == "0.00 %"
    assert tables.spread([-0.001, 0.001], tables.points_of_percent) == "0.00 ± 0.14 %"
    assert tables.spread([-0.001, -0.002], tables.points_of_percent) == "−0.15 ± 0.07 %"
    assert tables.spread([1_000_000.0, 1_100_000.0], tables.size) == "1.05 ± 0.07 MB"
    assert tables.spread([None], tables.percent) == tables.NONE


def test_files_of_tables(tmp_path, runs):
    written = page.write_tables(runs, tmp_path)
    assert {path.suffix for path in written} == {".md", ".csv"}
    with (tmp_path / "main.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][0] == "network"
    assert all(len(row) == len(rows[0]) for row in rows)
    assert "Made by `deepsz reproduce lenet-300-100" in (tmp_path / "main.md").read_text()


def test_every_figure_is_written_twice(tmp_path, runs):
    written = page.write_figures(runs, tmp_path)
    names = {
        "accuracy_by_bound", "additivity", "divergences", "tradeoff", "ratios", "encoding_time",
        "decoding_time",
    }  # fmt: skip
    assert sorted(path.name for path in written) == sorted(
        f"{name}.{ending}" for name in names for ending in ("png", "svg")
    )
    for name in names:
        picture = cv2.imread(str(tmp_path / f"{name}.png"))
        assert min(picture.shape[:2]) > 200
        assert picture.std() > 10  # something is drawn
        drawn = ElementTree.parse(tmp_path / f"{name}.svg").getroot()
        assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
        assert len(drawn.findall(".//{http://www.w3.org/2000/svg}path")) > 20


@pytest.mark.parametrize(("lost", "highest"), [(0, 0.1), (7000, 1.06)])
def test_losses_by_bound_show_what_is_near_the_limit(lost, highest):
    run = make_run()
    first, *others = (dataclasses.replace(one, lost=0) for one in run.tested)
    tested = (dataclasses.replace(first, lost=lost), *others)
    shown = tables.groups([dataclasses.replace(run, tested=tested)])
    (axis,) = figures.accuracy_by_bound(shown).figure.axes
    assert axis.get_ylim()[1] == pytest.approx(highest)
    assert axis.get_ylim()[0] < 0


def test_same_runs_same_bytes_of_a_figure(runs):
    for ending in ("png", "svg"):
        first, second = (
            page._rendered(figures.additivity(tables.groups(runs)), ending) for _ in range(2)
        )
        assert first == second


def test_page_is_self_contained(tmp_path, runs):
    page.write_page(runs, tmp_path / "index.html")
    text = (tmp_path / "index.html").read_text()
    assert text.count("data:image/png;base64,") == 7
    assert "http" not in text
    assert "AlexNet (generated weights)" in text


def test_a_run_of_one_seed_has_no_spread():
    table = tables.main(tables.groups([make_run()]))
    assert rows_of(table)[0]["top-1 after"] == "98.31 %"


def test_a_network_that_the_paper_does_not_have_gets_no_row_of_the_papers(runs):
    own = dataclasses.replace(runs[0], network="alexnet-cifar10")
    table = tables.main(tables.groups([own]))
    assert [row[0] for row in table.rows] == ["AlexNet/CIFAR-10"]
    assert {row[-1] for row in tables.comparable_loss(tables.groups([own])).rows} == {"–"}
    assert figures.tradeoff(tables.groups([own])) is not None


def test_times_name_their_machine(runs):
    (run, *_) = runs
    one, *_ = tables.every_table([dataclasses.replace(run, machine="a fast one, 2 of 2 cores")])
    assert one.markdown().rstrip().endswith("on a fast one, 2 of 2 cores.")


def test_a_lossless_codec_has_one_column_and_a_layer_one_row():
    table = tables.index_codecs(tables.groups([make_run(), make_run("alexnet", generated=True)]))
    assert table.columns == ("network", "layer", "raw bytes", "gzip", "zstd")
    assert [row[1] for row in table.rows] == ["ip1", "ip2", "ip3", "fc6", "fc7", "fc8"]
    assert all(row[3:] == ("2.089×", "2.089×") for row in table.rows)
