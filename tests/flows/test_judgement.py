"""What the figures of a model mean, in words: each sentence at the edge from which it is said."""

import pytest

from flows.core.judgement import CLEARLY, LITTLE, OVERFIT, Accuracy, Cost, Quality, Remark, judgement

OF = "40 test images"


def first(bpd: float | None, **known: float) -> Remark:
    """Return what is said first of images with 256 levels, which cost 8 bits/dim if all levels are equally likely."""
    return judgement(Cost(bpd, OF, num_levels=256, **known))[0]


def texts(*figures: Accuracy | Quality | None, may_copy: bool = False, **known: float) -> list[str]:
    """Return what is said of a model that needs 2 bits/dim, after what is said first."""
    accuracy, quality = figures or (None, None)
    assert not isinstance(accuracy, Quality)
    assert not isinstance(quality, Accuracy)
    return [remark.text for remark in judgement(Cost(2.0, OF, **known), accuracy, quality, may_copy=may_copy)[1:]]


def test_a_model_that_saves_less_than_a_tenth_has_learned_almost_nothing() -> None:
    edge = 8 * (1 - LITTLE)
    said = "It has learned almost nothing: half an epoch. 40 test images cost 7.20 bits/dim, and 8.00 if every level is"
    assert first(edge + 1e-6, epochs=0.5).text == f"{said} equally likely."
    assert first(edge + 1e-6).text.startswith("It has learned almost nothing. 40")
    assert first(edge + 1e-6, png_bpd=1.0).text.startswith("It has learned almost nothing")
    saves = "It saves 10% of the bits: 40 test images cost 7.20 bits/dim, and 8.00 if every level is equally likely."
    assert first(edge) == Remark(saves)


def test_a_png_of_the_images_is_what_a_model_must_beat() -> None:
    worse = "Worse than PNG: train longer than 3 epochs. 40 test images cost 2.00 bits/dim, and 2.00 in one PNG."
    assert first(2.0001, png_bpd=2.0, epochs=3) == Remark(worse, bad=True)
    assert first(2.0, png_bpd=2.0).text.startswith("Better than PNG by 0%")
    better = "Better than PNG by 50%: 40 test images cost 1.00 bits/dim, and 2.00 in one PNG."
    assert first(1.0, png_bpd=2.0, epochs=3) == Remark(better)


def test_a_figure_that_is_not_finite_is_no_figure() -> None:
    assert first(None, png_bpd=2.0) == Remark(
        "The likelihood is not finite: something went wrong in the training.", True
    )


@pytest.mark.parametrize(
    ("epochs", "said"),
    [(0.02, ["0.02 of an epoch"]), (0.45, ["half an epoch"]), (0.999, ["0.99 of an epoch"]), (1.0, [])],
)
def test_a_training_of_less_than_an_epoch_is_told(epochs: float, said: list[str]) -> None:
    assert texts(epochs=epochs) == [f"The training has not seen every image yet: {each}." for each in said]


def test_a_gap_is_told_if_it_is_large_and_clear() -> None:
    """Of 2 bits/dim it is large above 0.1; it is clear above two standard errors."""
    assert OVERFIT * 2 == 0.1
    overfits = ["It overfits: 40 test images cost 0.11 bits/dim more than training images."]
    assert texts(gap=0.11, gap_error=0.11 / CLEARLY - 1e-6) == overfits
    assert texts(gap=0.11, gap_error=0.11 / CLEARLY + 1e-6) == []
    assert texts(gap=0.1, gap_error=0.0) == []


def test_an_accuracy_stands_beside_that_of_a_guess() -> None:
    assert texts(Accuracy(0.992, 0.005, 0.1), None) == [
        "It finds the class of 99.2% of the images, where a guess finds 10%."
    ]
    clear, unclear = (Accuracy(0.2 + each, 0.05, 0.1) for each in (1e-6, -1e-6))
    assert texts(clear, None)[0].startswith("It finds the class of 20%")
    assert texts(unclear, None) == ["It finds classes no better than a guess: 20%, where a guess finds 10%."]


def test_samples_stand_beside_real_images() -> None:
    """The error of the difference of two figures with the errors 0.3 and 0.4 is 0.5."""
    alike, other = (Quality(2.0 + each, 0.3, 1.0, 0.4, 25) for each in (0.0, 1e-6))
    figures = "a Fréchet distance of 2.00, and 1.00 for real images"
    assert texts(None, alike) == [f"Its samples are as good as 25 steps can show: {figures}."]
    assert texts(None, other) == [f"Its samples can be told from real images: {figures}; drawn in 25 steps."]
    copies = ["Its samples may be copies of training images, or are too smooth."]
    assert texts(None, alike, may_copy=True) == texts(may_copy=True) == copies
