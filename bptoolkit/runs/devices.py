"""What a script settles with JAX before its first computation: devices, processes, the cache of compiled programs.

The library itself never touches `jax.config`; the scripts call this, and say what they chose.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.multihost_utils import broadcast_one_to_all, process_allgather

from bptoolkit.continual.layout import SEED, Layout, fetch, mesh_of, place
from bptoolkit.runs.lifeline import hang_by, hold, joined, patient

__all__ = ["Group", "cache_folder", "group_of", "prepare"]

PATIENCE = 300  # seconds that processes wait for each other at the start and at the end
HEARTBEAT = 30  # seconds of silence after which a process counts as lost
SILENCE = 0.8 * HEARTBEAT  # the same where we look, so that JAX's runtime is not first
PORTS = range(61440, 65536)  # that SLURM jobs take, by their number
SLURM = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID")


class Group(NamedTuple):
    """The processes that make one run together, and which of them this is.

    coordinator: HOST:PORT of process 0, as all others reach it.
    """

    coordinator: str
    process: int
    processes: int


def group_of(
    coordinator: str | None = None,
    process: int | None = None,
    processes: int | None = None,
    variables: Mapping[str, str] = os.environ,
) -> Group | None:
    """The group that is asked for, or that SLURM's `srun` has started; None for a process by itself.

    What is given goes before what is found in SLURM's variables; `processes=1` is a process by itself in any case.

    Raises:
        ValueError: only a part is given, and there is no SLURM step to complete it; numbers that cannot be.
    """
    given = {"coordinator": coordinator, "process": process, "processes": processes}
    if processes == 1 or (all(value is None for value in given.values()) and not in_slurm(variables)):
        return None
    found = of_slurm(variables)._asdict() if in_slurm(variables) else {}
    whole: dict[str, Any] = {name: found.get(name) if value is None else value for name, value in given.items()}
    if missing := [f"--{name}" for name, value in whole.items() if value is None]:
        raise ValueError(
            "A run of several processes needs --coordinator HOST:PORT, --process I and --processes N in each of them; "
            f"{' and '.join(missing)} must be added."
        )
    group = Group(**whole)
    if not 0 <= group.process < group.processes:
        raise ValueError(f"--process must be in 0 … {group.processes - 1}, got {group.process}.")
    if not re.fullmatch(r"\S+:\d+", group.coordinator):
        raise ValueError(f"--coordinator must be HOST:PORT, as in 10.0.0.1:1234, got {group.coordinator!r}.")
    return group


def in_slurm(variables: Mapping[str, str]) -> bool:
    """Whether `srun` has started this process together with others."""
    return all(name in variables for name in SLURM) and int(variables["SLURM_NTASKS"]) > 1


def of_slurm(variables: Mapping[str, str]) -> Group:
    """The group of a SLURM step; its port follows from job and step, so that two do not meet."""
    port = PORTS[(int(variables["SLURM_JOB_ID"]) + int(variables["SLURM_STEP_ID"])) % len(PORTS)]
    host = first_host(variables["SLURM_STEP_NODELIST"])
    return Group(f"{host}:{port}", int(variables["SLURM_PROCID"]), int(variables["SLURM_NTASKS"]))


def first_host(nodes: str) -> str:
    """The first name in a list of nodes as SLURM writes it.

    >>> first_host("node07"), first_host("a1,b2"), first_host("tux[003-005,9],b2"), first_host("r[1-2]n[07-08]")
    ('node07', 'a1', 'tux003', 'r1n07')
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodes)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first.group() if first else nodes)


def prepare(config, devices: int | None = None, group: Group | None = None) -> None:
    """One XLA device per core on a CPU, a persistent cache of compiled programs, and the other processes of the run.

    Args:
        config: `jax.config`.
        devices: CPU devices of this process; one per core that it may use if left out.
        group: what `group_of` says.  All its processes must come within five minutes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    config.update("jax_num_cpu_devices", cores if devices is None else devices)
    config.update("jax_compilation_cache_dir", str(cache_folder()))
    config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if group is not None:
        port = int(group.coordinator.rpartition(":")[2])
        service = hold(port, SILENCE) if group.process == 0 else hang_by(group.coordinator, SILENCE)
        with patient(PATIENCE, group.processes, group.coordinator):
            _join(group, service)


def _join(group: Group, service: str) -> None:
    """Become one of the group's processes, with this address for the coordination service."""
    jax.distributed.initialize(
        service,
        *(group.processes, group.process),
        cluster_detection_method="deactivate",
        initialization_timeout=2 * PATIENCE,  # after which JAX's runtime aborts
        heartbeat_timeout_seconds=HEARTBEAT,
        shutdown_timeout_seconds=PATIENCE,
    )
    joined.set()
    _meet()


def _meet() -> None:
    """Open the connections over which processes exchange arrays.

    Gloo gives up when a process comes half a minute late to the first exchange between some devices.  Here all come at
    once; after compiling, which takes one longer than another, they may not.
    """
    devices = jax.device_count()
    fetch(place(np.zeros(devices, np.float32), mesh_of(Layout(devices)), SEED))
    broadcast_one_to_all(process_allgather(np.int32(0)))


def cache_folder() -> Path:
    """$JAX_COMPILATION_CACHE_DIR, or bptoolkit/compiled in the user's cache."""
    stated = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    return Path(stated) if stated else home / "bptoolkit" / "compiled"
