"""Matched sizes: counts by formula, and the nearest of all numbers of units by trying them all."""

import jax
import numpy as np
import pytest

from bptoolkit.models import equilibrium, mlp, rate_cell
from bptoolkit.models.gated import gated_cell
from bptoolkit.models.matching import count_parameters, matched_units

MAKERS = {
    "rate": lambda units: rate_cell(7, units, 3),
    "gated": lambda units: gated_cell(7, units, 3),
    "model": lambda units: equilibrium(rate_cell(7, units, 3)),
    "static": lambda units: mlp(7, units, 3),
}


def test_counts_are_those_of_the_arrays_drawn(key):
    for make, k in zip(MAKERS.values(), jax.random.split(key, len(MAKERS)), strict=True):
        net = make(5)
        assert count_parameters(net) == sum(np.size(leaf) for leaf in jax.tree.leaves(net.init(k)))
    assert count_parameters(rate_cell(7, 5, 3)) == 5 * 5 + 7 * 5 + 5 + 5 * 3 + 3


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("wanted", [40, 505, np.int64(700)])
def test_no_other_number_of_units_is_nearer(name, wanted):
    make = MAKERS[name]
    distances = [abs(count_parameters(make(units)) - wanted) for units in range(1, 70)]
    assert matched_units(make, wanted) == 1 + int(np.argmin(distances))  # the first, so the smaller of two


def test_a_static_net_is_matched_by_the_root_of_its_equation():
    """n² + 75 n + 10 = 7510 for 64 inputs and 10 outputs, n = 56.8: 57 units are nearest."""
    assert matched_units(lambda units: rate_cell(64, units, 10), mlp(64, 100, 10)) == 57
    assert matched_units(lambda units: mlp(64, units, 10), mlp(64, 100, 10)) == 100


def test_of_two_equally_near_the_smaller():
    """mlp(1, n, 2) has 4 n + 2 parameters: 18 at four units, 22 at five."""
    assert matched_units(lambda units: mlp(1, units, 2), 20) == 4
    assert matched_units(lambda units: mlp(1, units, 2), 21) == 5


def test_a_net_too_small_to_be_matched_is_refused():
    with pytest.raises(ValueError, match="Even one unit has 18 parameters, wanted 5"):
        matched_units(lambda units: rate_cell(10, units, 3), 5)


def test_a_maker_that_ignores_its_units_is_refused():
    with pytest.raises(ValueError, match="more parameters the more units"):
        matched_units(lambda units: mlp(7, 5, 3), 1000)


def test_what_is_neither_a_net_nor_a_number_is_refused():
    with pytest.raises(ValueError, match=r"like must be a whole number, got 7510\.0\. Or give the net"):
        matched_units(lambda units: mlp(7, units, 3), 7510.0)
