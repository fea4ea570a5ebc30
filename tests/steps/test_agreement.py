"""What an agreement asks of images, and what counts of them show."""

import pytest

from deepsz_caffe.errors import InputError
from deepsz_caffe.steps.agreement import Agreement
from deepsz_caffe.steps.compress import Target
from deepsz_caffe.steps.evaluator import Score


@pytest.mark.parametrize("share", [0, 1, -1, 99, float("nan")])
def test_an_agreement_is_a_fraction(share):
    with pytest.raises(InputError, match="an agreement is"):
        Agreement(share, 0.9)
    with pytest.raises(InputError, match="an agreement is"):
        Target(agreement=share)


@pytest.mark.parametrize(
    "others", [{"max_loss": 0.01}, {"ratio": 10}, {"search": "paper"}, {"confidence": 1}]
)
def test_options_that_contradict_it_are_refused(others):
    with pytest.raises(InputError):
        Target(agreement=0.99, **others)


def test_it_holds_by_its_lower_limit_not_by_what_was_counted():
    asked = Agreement(0.99, 0.9)
    assert not asked.holds(Score(500, 496, 500))  # 99.2 %
    assert not asked.holds(Score(500, 498, 500))
    assert asked.holds(Score(500, 499, 500))
    assert asked.at_least(Score(500, 500, 500)) == pytest.approx(0.1 ** (1 / 500))


@pytest.mark.parametrize(("share", "confidence"), [(0.99, 0.9), (0.95, 0.9), (0.5, 0.5)])
@pytest.mark.parametrize("images", [1, 30, 231])
def test_as_many_may_change_as_still_show_it(share, confidence, images):
    asked = Agreement(share, confidence)
    shown = [asked.holds(Score(images, images - n, 0)) for n in range(images + 1)]
    assert asked.most_changed(images) == shown.count(True) - 1
    assert shown == sorted(shown, reverse=True)


def test_too_few_images_are_refused_with_the_number_that_would_do():
    asked = Agreement(0.99, 0.9)
    with pytest.raises(InputError, match="at least 230 pictures"):
        asked.check_images(229)
    asked.check_images(230)
    with pytest.raises(InputError):
        asked.check_images(0)
