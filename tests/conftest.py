"""What every test runs under: float64, strict promotion, no key used twice.  The library itself sets none of these."""

import gc
import itertools
import os
from collections import Counter
from importlib.metadata import version

# The older emitter of loop bodies compiles three times as fast without optimisation, and a program in one piece a fifth
# faster than in pieces for several cores, which other tests keep busy; XLA ends where it knows no such flag, and reads
# its flags when the first array is made.
if version("jaxlib").startswith("0.10."):
    fast = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {fast}"
# Small nets spend their time in the compiler: it optimises little, here and in the processes that tests start.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "true"

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

gc.set_threshold(200_000, 20, 100)  # tracing makes many objects that live: looking for cycles took a tenth of the time

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_debug_key_reuse", True)


@pytest.fixture
def key() -> jax.Array:
    return jax.random.key(0)


@pytest.fixture(autouse=True, scope="session")
def compiled(request):
    """Nothing is compiled twice: programs stay in pytest's own cache, and tests run again compile what has changed."""
    folder = request.config.cache.mkdir("compiled")
    kept = {
        "jax_compilation_cache_dir": str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    usual = {name: jax.config.values[name] for name in kept}
    for name, value in kept.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield folder
    for name, value in usual.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


REMEMBERED = 8  # modules after which compiled programs are let go
modules = itertools.count(1)


@pytest.fixture(autouse=True, scope="module")
def forgotten():
    """The small programs of one module are of use to the next, but all of them would fill gigabytes by the end."""
    yield
    if next(modules) % REMEMBERED == 0:
        jax.clear_caches()


@pytest.fixture
def empty_cache(compiled, tmp_path):
    """A cache of compiled programs that holds nothing yet, in place of the shared one."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", str(compiled))
    compilation_cache.reset_cache()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that none of them is left for the end; a slow test is as long as ten others."""
    length = Counter()
    for item in items:
        length[item.path] += 10 if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -length[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `mnist` needs the real images: skipped with its reason where there are none, but not in CI."""
    if item.get_closest_marker("mnist") is None:
        return
    from bptoolkit import data

    if data.available("mnist") and data.available("fashion_mnist"):
        return
    reason = "MNIST and Fashion-MNIST are not on this machine: set BPTOOLKIT_DATA to the folder that holds them."
    (pytest.fail if os.environ.get("CI") else pytest.skip)(reason)
