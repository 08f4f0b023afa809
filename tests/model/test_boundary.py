"""The boundary F-score, against shapes counted by hand."""

import numpy as np
import pytest

from model.evaluation.boundary import DEFAULT, Tolerance, boundary, boundary_f1


def square(x: int, y: int, edge: int = 8, size: int = 20) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y : y + edge, x : x + edge] = True
    return mask


def px(amount: float) -> Tolerance:
    return Tolerance(amount, "px")


def test_an_outline_is_the_ring_inside_a_mask():
    ring = boundary(square(6, 6))
    assert ring.sum() == 4 * 7 and ring[6, 6] and ring[13, 9] and not ring[7, 7] and not ring[5, 6]


def test_where_a_mask_runs_off_the_picture_there_is_no_outline():
    half = np.zeros((20, 20), bool)
    half[:, :10] = True
    assert boundary(half).sum() == 20 and boundary(half)[:, 9].all()
    assert not boundary(np.ones((5, 5), bool)).any()


@pytest.mark.parametrize(
    ("tolerance", "expected"),
    [
        # A square of 8 px moved by 2: of the 28 px of either ring, 1 px reaches 7 of 8 in the rows above and below
        # (all but the last), and 2 of the 6 between on the inner side; 2 px reach all.
        (1, 16 / 28), (1.9, 16 / 28), (2, 1.0), (3, 1.0),
    ],
)  # fmt: skip
def test_a_square_that_is_moved_by_two_pixels(tolerance, expected):
    assert boundary_f1(square(8, 6), square(6, 6), px(tolerance)) == pytest.approx(expected)


def test_precision_and_recall_are_told_apart():
    truth = square(2, 2)
    both = truth | square(14, 14, edge=4)  # a further square of 12 px of outline, 4 px and more away
    assert boundary_f1(both, truth, px(1)) == pytest.approx(2 * (28 / 40) / (28 / 40 + 1))
    assert boundary_f1(truth, both, px(1)) == boundary_f1(both, truth, px(1))  # it is symmetric


def test_distance_is_euclidean():
    point, other = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    point[5, 5], other[8, 9] = True, True  # 3 down, 4 across: 5 px
    assert boundary_f1(point, other, px(4.9)) == 0.0 and boundary_f1(point, other, px(5)) == 1.0


def test_what_has_no_outline():
    nothing, everything = np.zeros((20, 20), bool), np.ones((20, 20), bool)
    assert boundary_f1(everything, everything) == 1.0 and boundary_f1(nothing, nothing) == 1.0
    assert boundary_f1(nothing, square(6, 6)) == 0.0 and boundary_f1(everything, square(6, 6)) == 0.0


def test_dice_hardly_sees_what_the_outline_does():
    truth, wide = square(20, 20, 60, 100), square(15, 15, 70, 100)
    assert 2 * 3600 / (3600 + 4900) > 0.84  # Dice
    assert boundary_f1(wide, truth, px(3)) == 0.0


def test_a_tolerance_is_pixels_or_a_share_of_the_diagonal_rounded_up():
    assert DEFAULT.px(224, 224) == 3  # 0.008 · 316.8 = 2.5
    assert Tolerance.parse("0.008") == DEFAULT and Tolerance.parse("3px") == Tolerance.parse(" 3 px ") == px(3)
    assert (str(DEFAULT), str(px(2.5)), px(2.5).px(500, 9)) == ("0.008", "2.5px", 2.5)


@pytest.mark.parametrize("text", ["", "px", "3 pixels", "-1px", "0", "0px", "1.5", "nan"])
def test_another_tolerance_is_refused(text):
    with pytest.raises(ValueError, match="tolerance"):
        Tolerance.parse(text)


def test_masks_of_different_shape_are_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        boundary_f1(np.zeros((2, 2), bool), np.zeros((2, 3), bool))
