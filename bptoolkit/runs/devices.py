"""What a script settles with JAX before its first computation: devices, and the cache of compiled programs.

The library itself never touches `jax.config`; the scripts call this, and say what they chose.
"""

import os
from pathlib import Path

__all__ = ["cache_folder", "prepare"]


def prepare(config, devices: int | None = None) -> None:
    """One XLA device per core on a CPU, and a persistent cache of compiled programs.

    Args:
        config: `jax.config`.
        devices: CPU devices; one per core this process may use if left out.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    config.update("jax_num_cpu_devices", cores if devices is None else devices)
    config.update("jax_compilation_cache_dir", str(cache_folder()))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def cache_folder() -> Path:
    """$JAX_COMPILATION_CACHE_DIR, or bptoolkit/compiled in the user's cache."""
    stated = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(stated) if stated else home / "bptoolkit" / "compiled"
