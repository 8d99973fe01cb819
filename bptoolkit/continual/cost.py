"""What a prediction costs: operations as the compiler counts them, and time."""

import time
from collections.abc import Iterable, Iterator

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxpr_as_fun
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.continual.experiment import Experiment, Hyper
from bptoolkit.learning.learner import Learner, StreamSpec
from bptoolkit.types import Model, Params

__all__ = ["flops_of_prediction", "memory_bytes", "time_of_predictions"]


def flops_of_prediction(
    model: Model, params: Params, x: Float[Array, "*d"], steps: Float[np.ndarray, "n"]
) -> Float[np.ndarray, "n"]:
    """Floating-point operations of one prediction, for each number of settling steps.

    The compiler counts a loop's body once whatever its length.  Loops of a known length (`lax.scan`, `lax.map`), as
    over the auto-encoders of a generative classifier and over its samples, are counted in full; a net that settles is
    counted by its parts: the drive once, a step `steps` + 1 times, the readout once.  What judges convergence is left
    out.  Of any other `lax.while_loop` one round counts.
    """
    if model.cell is None:
        return np.full(len(steps), _flops(lambda p, x: model.apply(p, x)[0], params, x))
    cell = model.cell
    z = trees.zeros_like(cell.state)
    read = _flops(cell.readout, params, z)
    if cell.drive is None or cell.respond is None:
        return read + (steps + 1) * _flops(cell.step, params, x, z)
    drive = cell.drive(params, x)
    return read + _flops(cell.drive, params, x) + (steps + 1) * _flops(cell.respond, params, drive, z)


def memory_bytes(learner: Learner, spec: StreamSpec) -> int:
    """Bytes that a strategy keeps beside the weights: stored rows, importances, anchors, side networks."""
    params = jax.eval_shape(learner.model.init, jax.random.key(0))
    memory = jax.eval_shape(lambda params, key: learner.init(params, spec, key), params, jax.random.key(0))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(memory))


def time_of_predictions(
    experiment: Experiment, nets: Iterable[tuple[Hyper, Params]], x: Float[Array, "n *d"], repeats: int = 5
) -> list[float]:
    """Milliseconds per 1000 predictions of each net, the median of a few passes over x; compiled once for all."""

    @jax.jit
    def predict(hyper, params, x):
        return jax.vmap(experiment.build(hyper)[0].model.apply, (None, 0))(params, x)[0]

    def once(*net) -> float:
        began = time.perf_counter()
        jax.block_until_ready(predict(*net, x))
        return time.perf_counter() - began

    return [float(np.median([once(*net) for _ in range(repeats + 1)][1:])) * 1e6 / len(x) for net in nets]


def _flops(function, *arguments) -> float:
    return _counts(jax.make_jaxpr(function)(*arguments))[1]


def _counts(code: ClosedJaxpr) -> tuple[float, float]:
    """Operations as the compiler counts them, each loop once, and with each loop of a known length in full."""
    shapes = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in code.jaxpr.invars]
    analysis = jax.jit(jaxpr_as_fun(code)).lower(*shapes).compile().cost_analysis()
    once = float((analysis or {}).get("flops", float("nan")))
    loops = [(length, *_counts(body)) for length, body in _loops(code.jaxpr)]
    return once, once + sum(length * full - body for length, body, full in loops)


def _loops(code: Jaxpr) -> Iterator[tuple[int, ClosedJaxpr]]:
    """Length and body of every loop of a known length that is inside no other."""
    for step in code.eqns:
        if step.primitive.name == "scan":
            yield step.params["length"], step.params["jaxpr"]
            continue
        is_code = lambda part: isinstance(part, ClosedJaxpr | Jaxpr)
        for part in jax.tree.leaves(list(step.params.values()), is_leaf=is_code):
            if is_code(part):
                yield from _loops(part.jaxpr if isinstance(part, ClosedJaxpr) else part)
