"""Several data sets as one: classes follow one another, images keep their content."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import continual as cl
from bptoolkit import data
from bptoolkit.checks import check
from bptoolkit.types import Dataset, Rows


def images(n, side, classes, scale, dtype=np.uint8):
    rng = np.random.default_rng(n)
    rows = lambda n: Rows(
        jnp.asarray(rng.integers(0, int(scale) + 1, (n, side, side)).astype(dtype)),
        jnp.asarray(np.arange(n) % classes, jnp.int32),
    )
    return Dataset(rows(n), rows(classes), classes, scale, f"of{side}")


def test_classes_follow_one_another_and_pixels_stay():
    small, large = images(6, 4, 3, 16.0), images(8, 7, 2, 255.0)
    both = check(data.joined(small, large, side=7))
    assert (both.classes, both.scale, both.name) == (5, 255.0, "of4+of7")
    assert both.train.x.shape == (14, 7, 7)
    np.testing.assert_array_equal(both.train.y, [0, 1, 2, 0, 1, 2, 3, 4, 3, 4, 3, 4, 3, 4])
    np.testing.assert_array_equal(both.train.x[6:], large.train.x)  # of its size already: bit for bit
    same = data.joined(small, side=4)
    np.testing.assert_array_equal(same.train.x, np.round(np.asarray(small.train.x) / 16 * 255))


def test_test_rows_are_those_of_each_at_its_own_scale():
    small, large = images(6, 7, 3, 16.0), images(8, 7, 2, 255.0)
    test = data.joined(large, small, side=7).test
    np.testing.assert_array_equal(test.y, [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(test.x[:2], large.test.x)
    np.testing.assert_array_equal(test.x[2:], np.round(np.asarray(small.test.x) / 16 * 255))


def test_a_flat_image_stays_flat_and_a_mean_stays_near():
    """Bilinear scaling keeps constants; the mean of a smooth image to 2 %."""
    ramp = np.linspace(0, 16, 8)[None, :, None] * np.ones((1, 8, 8))
    x = jnp.asarray(np.concatenate([np.full((1, 8, 8), 4.0), ramp]))
    one = Dataset(Rows(x, jnp.zeros(2, jnp.int32)), Rows(x, jnp.zeros(2, jnp.int32)), 1, 16.0)
    sized = np.asarray(data.joined(one).train.x) / 255
    assert sized.shape == (2, 28, 28)
    np.testing.assert_allclose(sized[0], 0.25, atol=1 / 255)
    assert sized[1].mean() == pytest.approx(0.5, abs=0.01)
    assert (np.diff(sized[1][:, 0]) >= 0).all()


def test_each_is_a_task_of_a_split_in_order():
    small, large = images(6, 4, 3, 16.0), images(9, 7, 3, 255.0)
    stream = cl.split(data.joined(small, large, side=7), 3, shuffle=False)
    assert stream.tasks == 2


def test_what_is_no_set_of_images_is_refused():
    with pytest.raises(ValueError, match="at least one data set"):
        data.joined()
    with pytest.raises(ValueError, match=r"needs images \(n, h, w\) with class numbers, got gaussian_classes"):
        data.joined(data.gaussian_classes(jax.random.key(0), 2, 3, 4))


SMALL = images(6, 4, 3, 16.0)
real = lambda rows: rows._replace(x=rows.x.astype(float))
WRONG = {
    "labels from 1": (lambda rows: rows._replace(y=rows.y + 1), "y must be class numbers 0 … 2, got 3"),
    "float labels": (lambda rows: rows._replace(y=rows.y.astype(float)), "y must be integer class numbers"),
    "NaN": (lambda rows: rows._replace(x=real(rows).x.at[1, 0, 0].set(jnp.nan)), "x must be finite"),
    "centred": (lambda rows: rows._replace(x=real(rows).x - 8), "values in 0 … scale, here 0 … 16, got -8 … 8"),
    "brighter": (lambda rows: rows._replace(x=2 * real(rows).x), "here 0 … 16, got 0 … 32 in .*.x of of4"),
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("what", WRONG)
def test_what_would_become_another_image_or_class_is_refused(what, part):
    spoil, sentence = WRONG[what]
    good = SMALL._replace(train=real(SMALL.train), test=real(SMALL.train))
    with pytest.raises(ValueError, match=sentence):
        data.joined(images(8, 7, 2, 255.0), good._replace(**{part: spoil(getattr(good, part))}))


@pytest.mark.parametrize("side", [0, -1, 2.5])
def test_an_image_has_a_pixel(side):
    with pytest.raises(ValueError, match="side must be"):
        data.joined(SMALL, side=side)
