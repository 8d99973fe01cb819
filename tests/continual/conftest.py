"""Runs of a few steps spend their time in the compiler: here it optimises little, and compiles nothing twice."""

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(autouse=True, scope="package")
def compiled(tmp_path_factory):
    """The folder of the compilation cache."""
    folder = tmp_path_factory.mktemp("compiled")
    fast = {
        "jax_disable_most_optimizations": True,
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    usual = {name: jax.config.values[name] for name in fast}
    for name, value in fast.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in usual.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
