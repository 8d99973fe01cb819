"""A synthetic result of a run, made with numpy: nothing is trained, every number is known."""

import numpy as np
import pytest
import xarray

NETS, STRATEGIES, SCENARIOS = ["static", "recurrent"], ["naive", "ewc", "replay", "joint"], ["class", "domain"]
KEPT = {"naive": 0.2, "ewc": 0.35, "replay": 0.75, "joint": 0.97}  # what is left of a task at the end


def make_results(tasks=5, seeds=4, scenarios=SCENARIOS, draw=0):
    rng = np.random.default_rng(draw)
    sizes = {"net": 2, "strategy": 4, "scenario": len(scenarios), "seed": seeds, "after": tasks + 1, "on": tasks}
    age = np.arange(tasks + 1)[:, None] - np.arange(1, tasks + 1)
    floor = np.array(list(KEPT.values()))[:, None, None, None, None]
    learnt = np.where(age >= 0, floor + (0.97 - floor) * 0.4 ** np.maximum(age, 0), 0.1)
    noise = 0.02 * rng.standard_normal(tuple(sizes.values()))
    accuracy = np.clip(learnt + noise, 0, 1).astype(np.float32)
    accuracy[1, 3, 1:] = np.nan  # recurrent × joint × domain was not run

    def spread(shape, scale, static=1.0):
        values = scale * (1 + 0.1 * rng.random(shape))
        values[0] *= static
        return values

    each = (2, 4, len(scenarios), seeds, tasks)
    run = ["net", "strategy", "scenario"]
    task, cost = [*run, "seed", "task"], ["net", "scenario"]
    unconverged = np.zeros(each)
    unconverged[1, 1] = 0.02
    unconverged[0] = np.nan
    return xarray.Dataset(
        {
            "accuracy": ([*run, "seed", "after", "on"], accuracy),
            "train_accuracy": ([*run, "seed", "after", "on"], accuracy + np.float32(0.015)),
            "loss": ([*task, "bin"], rng.random((*each, 8)).astype(np.float32)),
            "settling_steps": (task, spread(each, 23.0, np.nan)),
            "unconverged": (task, unconverged),
            "backward_steps": (task, spread(each, 31.0, np.nan)),
            "backward_unconverged": (task, 0.0 * unconverged),
            "seconds": (run, spread(each[:3], 12.0)),
            "compile_seconds": (run, spread(each[:3], 3.0)),
            "peak_bytes": (cost, np.repeat([[3e5], [5e6]], len(scenarios), axis=1)),
            "memory_bytes": (cost, np.repeat([[0.0], [2.5e4]], len(scenarios), axis=1)),
            "parameters": (cost, np.repeat([[7510], [17510]], len(scenarios), axis=1)),
            "flops": (cost, np.repeat([[14800.0], [812345.0]], len(scenarios), axis=1)),
            "ms_per_1000": (cost, spread((2, len(scenarios)), 4.2)),
        },
        coords={
            "net": NETS,
            "strategy": STRATEGIES,
            "scenario": scenarios,
            "seed": np.arange(10, 10 + seeds),
            "after": np.arange(tasks + 1),
            "on": np.arange(1, tasks + 1),
            "task": np.arange(1, tasks + 1),
        },
        attrs={"chance": [0.1, 0.5][: len(scenarios)], "question": "Does settling change how fast a net forgets?"},
    )


@pytest.fixture(scope="session")
def make():
    """Make results of other sizes."""
    return make_results


@pytest.fixture
def results():
    """Two nets × four strategies × two scenarios × four seeds × five tasks, with one combination that was not run."""
    return make_results()
