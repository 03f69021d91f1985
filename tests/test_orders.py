import numpy as np
import pytest

from skaocls.scoring.orders import draw_orders, resolve_orders


def test_orders_are_nested_permutations():
    orders = draw_orders(20, 9, seed=3)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    assert len(np.unique(orders, axis=0)) == 20
    for k in (1, 5, 19):
        np.testing.assert_array_equal(draw_orders(k, 9, seed=3), orders[:k])
    assert (draw_orders(20, 9, seed=4) != orders).any()


def test_antithetic_orders_are_followed_by_their_reverse():
    orders = resolve_orders("antithetic", 7, 6, seed=3)
    np.testing.assert_array_equal(orders[::2], draw_orders(4, 6, seed=3))
    np.testing.assert_array_equal(orders[1::2], orders[:-1:2, ::-1])
    for k in range(1, 8):
        np.testing.assert_array_equal(resolve_orders("antithetic", k, 6, seed=3), orders[:k])


def test_raster_is_row_by_row():
    found = resolve_orders("raster", 20, 5, seed=0)
    assert found.tolist() == [[0, 1, 2, 3, 4]] and found.dtype == np.int64
    assert resolve_orders([[1.0, 0.0]], 1, 2, seed=0).dtype == np.int64


def test_orders_are_uniform():
    # each of the 6 permutations is drawn in 1/6 of the cases, within 5 standard errors
    _, counts = np.unique(draw_orders(6000, 3, seed=0), axis=0, return_counts=True)
    assert len(counts) == 6
    assert abs(counts - 1000).max() < 5 * np.sqrt(6000 * 5 / 36)


def test_explicit_orders_are_returned_unchanged():
    given = [[2, 0, 1], [0, 1, 2], [1, 0, 2]]
    np.testing.assert_array_equal(resolve_orders(given, 2, 3, seed=0), given[:2])
    np.testing.assert_array_equal(resolve_orders(given, 20, 3, seed=0), given)


@pytest.mark.parametrize(
    "order, message",
    [
        ("snail", "'snail' is unknown"),
        ([[0, 1, 1]], r"order\[0\] is not a permutation"),
        ([[0, 1, 2], [1, 2, 3]], r"order\[1\] is not a permutation"),
        ([[0.0, 1.0, 2.5]], r"order\[0\] is not a permutation"),
        ([[0, 1]], r"shape \(1, 2\), but \(n, 3\) is expected"),
        ([0, 1, 2], r"shape \(3,\), but \(n, 3\) is expected"),
        (np.empty((0, 3)), r"shape \(0, 3\)"),
    ],
)
def test_invalid_orders(order, message):
    with pytest.raises(ValueError, match=message):
        resolve_orders(order, 20, 3, seed=0)
