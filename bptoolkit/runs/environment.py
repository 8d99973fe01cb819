"""Where a run took place: interpreter, packages, source, machine, devices, settings, command and time."""

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

PROVENANCE = ("command", "started", "ended", "python", "machine", "devices", "source")
EARLIER = ("started", "machine", "source")  # of each start that was broken off
LIBRARIES = ("jax", "jaxlib", "optax", "flax", "numpy")
PLACE = re.compile(r"(?<![^\s='\"])/(?:[^\s/'\"]+/)*")  # the folders of an absolute path


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """All that could explain why the same configuration gave another number elsewhere, as plain data."""
    return {
        "state": "running",
        "started": now(),
        "ended": None,
        "error": None,
        "command": command(),
        "seeds": config.get("seeds"),
        "python": platform.python_version(),
        "source": source(),
        "machine": machine(),
        "devices": [f"{device.platform}:{device.id} {device.device_kind}" for device in jax.devices()],
        "settings": settings(),
        "packages": packages(),
    }


def provenance(told: Mapping[str, Any], beside: Sequence[str] = ()) -> dict[str, Any]:
    """What is committed with a result, of what `environment` told: all but what is long or a place on this machine.

    `beside` are further libraries that took part, whose versions are kept where they are installed.
    """
    known = lambda of, names: {name: of[name] for name in names if of.get(name) is not None}
    settings = {name: value for name, value in (told.get("settings") or {}).items() if not name.endswith("_dir")}
    packages = known(told.get("packages") or {}, (*LIBRARIES, *beside))
    kept = known(told, PROVENANCE) | {"settings": settings, "packages": packages}
    if "command" in kept:
        kept["command"] = PLACE.sub("…/", kept["command"])
    earlier = [known(start, EARLIER) for start in told.get("earlier") or ()]
    return kept | ({"earlier": earlier} if earlier else {})


def software() -> dict[str, Any]:
    """What must be the same for two halves of a run to be one: whatever else is, one bit may differ."""
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "optax", "numpy")}
    flags = {name: getattr(jax.config, f"jax_{name}") for name in ("enable_x64", "default_matmul_precision")}
    return versions | flags | {"platform": jax.devices()[0].platform}


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def command() -> str:
    """The command line of this process, ready to paste into a shell."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def machine() -> dict[str, Any]:
    """The computer, and how busy it was (load: running processes, averaged over 1, 5 and 15 minutes)."""
    load = [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None
    return {"system": platform.platform(), "processor": platform.machine(), "cpus": os.cpu_count(), "load": load}


def settings() -> dict[str, Any]:
    """What changes JAX's numbers from outside the program."""
    names = ("enable_x64", "default_matmul_precision", "compilation_cache_dir")
    flags = {name: getattr(jax.config, f"jax_{name}") for name in names}
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(("JAX_", "XLA_"))}
    return flags | {"variables": variables}


def packages() -> dict[str, str]:
    """Every installed distribution and its version."""
    return dict(sorted((found.name, found.version) for found in metadata.distributions() if found.name))


def source() -> dict[str, Any] | None:
    """Commit of the repository that the running script lies in, and whether files differ from it; None without one."""
    script = Path(sys.argv[0])
    folder = script.resolve().parent if script.is_file() else Path.cwd()
    commit = git(folder, "rev-parse", "HEAD")
    return None if commit is None else {"commit": commit, "dirty": git(folder, "status", "--porcelain") != ""}


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints in `folder`; None where there is no git, no repository or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
