"""A small assessment: two layers, five points, 1,000 images."""

from deepsz_caffe.steps.assess.result import Assessment, LayerAssessment, Point


def point(bound, size, correct, images=1000):
    lost, gained = max(0, 900 - correct), max(0, correct - 900)
    return Point(bound, size, images, correct, correct, lost, gained, stopped=images < 1000)


def assessment(protocol="validation"):
    layers = (
        LayerAssessment("a", (100, 10), 80, (point(0.01, 400, 900), point(0.02, 300, 895))),
        LayerAssessment(
            "b", (50, 10), 40, (point(0.01, 200, 904), point(0.02, 90, 890), point(1, 1, 0, 100))
        ),
    )
    return Assessment(
        network="n", weights="w", protocol=protocol, stages=(), profile="paper", search="paper",
        max_loss=0.02, total=1000, top1_correct=900, top5_correct=900, digests={}, layers=layers,
    )  # fmt: skip
