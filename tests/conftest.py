"""What every test runs under: float64, strict promotion, no key used twice.  The library itself sets none of these."""

import os

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `mnist` needs the real images: skipped with its reason where there are none, but not in CI."""
    if item.get_closest_marker("mnist") is None:
        return
    from bptoolkit import data

    if data.available("mnist") and data.available("fashion_mnist"):
        return
    reason = "MNIST and Fashion-MNIST are not on this machine: set BPTOOLKIT_DATA to the folder that holds them."
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
