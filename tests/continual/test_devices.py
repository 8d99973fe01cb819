"""Seeds sharded over devices: the same results, and no program that waits for itself."""

import json
import subprocess
import sys

import pytest

# Orthogonal first weights by LAPACK and Anderson's small systems, batched, once blocked for ever on two CPU devices.
PROGRAM = """
import json, jax, numpy as np, optax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_enable_x64", True)
from bptoolkit import continual as cl, data, fixed_point as fp, learning, models

stream = cl.split(data.gaussian_classes(jax.random.key(1), 4, 12, 5), classes_per_task=2)
nets = {
    "static": models.mlp(5, 7, 4),
    "recurrent": models.equilibrium(models.rate_cell(5, 6, 4), fp.implicit(fp.anderson(), fp.almeida_pineda())),
}
told = {}
for name, model in nets.items():
    learner = cl.ewc(10.0)(cl.replay(2)(learning.backprop(model)))
    experiment = cl.Experiment(stream, learner, optax.sgd(0.1), steps=4, batch=8)
    results = {
        str(layout): cl.run(experiment, jax.random.key(0), seeds=3, layout=layout)
        for layout in (cl.Layout(1, True), cl.Layout(2, True), cl.Layout(2, False))
    }
    alone = results.pop("1 device, seeds stacked")
    for layout, result in results.items():
        gaps = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), alone.params, result.params)
        told[f"{name}, {layout}"] = [max(jax.tree.leaves(gaps)), list(np.shape(result.accuracy))]
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("layout", ["2 devices, seeds stacked", "2 devices, seeds in turn"])
@pytest.mark.parametrize("net", ["static", "recurrent"])
def test_seeds_sharded_over_devices_train_as_on_one(told, net, layout):
    gap, shape = told[f"{net}, {layout}"]
    assert gap < 1e-9
    assert shape == [3, 2, 2]  # the spare seed that fills the last device is dropped
