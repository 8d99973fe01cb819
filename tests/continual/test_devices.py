"""Seeds, and the rows of a batch, shared out to devices: the same results, and no program that waits for itself."""

import json
import subprocess
import sys

import pytest

# Orthogonal first weights by LAPACK and Anderson's small systems, batched, once blocked for ever on two CPU devices.
PROGRAM = """
import dataclasses, json, jax, numpy as np, optax
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_enable_x64", True)
from bptoolkit.continual.lanes import make_lanes
from bptoolkit.continual.programs import Programs
from bptoolkit import continual as cl, data, fixed_point as fp, learning, models

stream = cl.split(data.gaussian_classes(jax.random.key(1), 4, 12, 5), classes_per_task=2)
nets = {
    "static": models.mlp(5, 7, 4),
    "recurrent": models.equilibrium(models.rate_cell(5, 6, 4), fp.implicit(fp.anderson(), fp.almeida_pineda())),
}
settles = models.equilibrium(models.rate_cell(5, 6, 4), fp.implicit(fp.picard(), fp.almeida_pineda()))
told = {}

def compare(name, learner, *layouts):
    experiment = cl.Experiment(stream, learner, optax.sgd(0.1), steps=4, batch=8)
    moments = {}
    hook = lambda moment, state: moments.update({str(state.layout): moment})
    run = lambda layout: cl.run(experiment, jax.random.key(0), seeds=3, layout=layout, on_task=hook)
    results = {str(layout): run(layout) for layout in (cl.Layout(1, True), *layouts)}
    alone = results.pop("1 device, seeds stacked")
    for layout, result in results.items():
        gaps = jax.tree.map(lambda a, b: float(np.max(np.abs(a - b))), alone.params, result.params)
        told[f"{name}, {layout}"] = [max(jax.tree.leaves(gaps)), list(np.shape(result.accuracy))]
        seen, losses = moments[layout], result.curves.loss[:, -1, -1]
        told[f"seen of {name}, {layout}"] = [list(seen.accuracy.shape), seen.loss, losses.tolist()]
    return experiment

static, recurrent = (learning.backprop(model) for model in nets.values())
compare("static", cl.ewc(10.0)(cl.replay(2)(static)), cl.Layout(2, True), cl.Layout(2, False), cl.Layout(2, True, 2))
compare("recurrent", recurrent, cl.Layout(2, True))
experiment = compare("settling", learning.backprop(settles), cl.Layout(1, False, 2))

def exchanged(layout):
    plain = dataclasses.replace(experiment, learner=static)
    lanes = make_lanes(plain, {}, jax.random.key(0), 2)
    return Programs(plain, 4, layout, lanes).train.as_text().count("all-reduce")

told["exchanged"] = {"seeds": exchanged(cl.Layout(2, True)), "rows": exchanged(cl.Layout(2, True, 2))}
try:
    cl.run(dataclasses.replace(experiment, batch=7), jax.random.key(0), 2, layout=cl.Layout(1, True, 2))
except ValueError as error:
    told["indivisible"] = str(error)
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told() -> dict:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


LAYOUTS = {
    "static": ["2 devices, seeds stacked", "2 devices, seeds in turn", "2 × 2 devices, seeds stacked"],
    "recurrent": ["2 devices, seeds stacked"],
    "settling": ["1 × 2 devices, seeds in turn"],
}


@pytest.mark.parametrize(("net", "layout"), [(net, layout) for net, layouts in LAYOUTS.items() for layout in layouts])
def test_nets_and_rows_shared_out_to_devices_train_as_on_one(told, net, layout):
    gap, shape = told[f"{net}, {layout}"]
    assert gap < 1e-9
    assert shape == [3, 2, 2]  # the spare seed that fills the last device is dropped


@pytest.mark.parametrize("layout", LAYOUTS["static"][:2])
def test_hooks_see_no_seed_twice(told, layout):
    """The third of three seeds, which fills the last device once more, counts once in the mean."""
    shape, loss, losses = told[f"seen of static, {layout}"]
    assert shape == [3, 2]
    assert loss == pytest.approx(sum(losses) / 3, rel=1e-9)
    assert loss != pytest.approx((sum(losses) + losses[-1]) / 4, rel=1e-3)


def test_only_rows_need_an_exchange_while_training(told):
    """Negative control of the law above: with rows on two devices gradients are summed over them; nets never are."""
    assert told["exchanged"]["seeds"] == 0
    assert told["exchanged"]["rows"] > 0


def test_rows_that_do_not_divide_are_refused(told):
    assert told["indivisible"] == "batch must be a multiple of the 2 devices that share its rows, got 7."
