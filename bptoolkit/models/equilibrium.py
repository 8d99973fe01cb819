"""A model that answers with the fixed point of its cell: z* = step(params, x, z*), logits = readout(params, z*)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.fixed_point import Relaxation, Solution, implicit
from bptoolkit.fixed_point.relax import check_relaxation
from bptoolkit.types import Cell, Info, Model, Params, PyTree, Settling, State

__all__ = ["equilibrium", "settling"]


def equilibrium(cell: Cell, relax: Relaxation | None = None) -> Model:
    """Settle the cell from z = 0, read its outputs; gradients come by recurrent backpropagation.

    `apply(params, x, probe=None)` returns the logits and, in `Info.forward`, how the settling ended: a model that did
    not settle still answers.  Through the gradient of `probe`, a `fixed_point.new_probe`, the backward report comes
    out.  The model's `cell` also has `settle(params, x, probe=None, *, z0=None, start=None, push=None)`, which returns
    the whole `Solution`: from z0, with λ₀ = start for the adjoint, and with `push` added to the step, so that the
    gradient with respect to a push of zero is λ.

    Args:
        cell: a `rate_cell`, a `hopfield_cell`, `cell_from_nnx(…)`, or your own.
        relax: `fixed_point.implicit()` if left out; `unrolled(steps)` is backpropagation through time.

    Raises:
        ValueError: something else than a cell or a relaxation; from `apply`, where step returns another shape or dtype
            than the state it was given.
    """
    if not isinstance(cell, Cell):
        raise ValueError(
            f"equilibrium needs a Cell, got {type(cell).__name__}. Make one with rate_cell, or cell_from_nnx of a step."
        )
    relax = implicit() if relax is None else relax
    check_relaxation("relax", relax)

    def settle(
        params: Params,
        x: Float[Array, "*d"],
        probe: Float[Array, "p"] | None = None,
        *,
        z0: State | None = None,
        start: State | None = None,
        push: State | None = None,
    ) -> Solution:
        _check_step(cell, params, x)
        z0 = trees.zeros_like(cell.state) if z0 is None else z0
        pushed = lambda z: z if push is None else trees.add(z, push)
        resolvent, drive, respond = cell.resolvent, cell.drive, cell.respond
        extra = {} if resolvent is None else {"extra": lambda args: {"resolvent": resolvent(*args)}}
        step, entering = cell.step, x
        if drive is not None and respond is not None:
            step, entering = respond, drive(params, x)
        f = lambda args, z: pushed(step(args[0], args[1], z))
        return relax(f, (params, entering), z0, probe=probe, start=start, **extra)

    def apply(
        params: Params, x: Float[Array, "*d"], probe: Float[Array, "p"] | None = None
    ) -> tuple[Float[Array, "k"], Info]:
        solution = settle(params, x, probe)
        return cell.readout(params, solution.value), Info(forward=settling(solution))

    return Model(cell.init, apply, cell=cell._replace(settle=settle))


def settling(solution: Solution) -> Settling:
    """The report of a relaxation, which is a `Solution` without its state, memory and error."""
    return Settling(solution.steps, solution.residual, solution.rate, solution.status)


def _check_step(cell: Cell, params: Params, x: Float[Array, "*d"]) -> None:
    """Raise unless step returns states of the shape that cell.state declares."""
    returned = jax.eval_shape(cell.step, params, x, cell.state)
    if _describe(returned) != _describe(cell.state):
        weights = [f"  params{jax.tree_util.keystr(path)} has shape {jnp.shape(w)}." for path, w in _leaves(params)]
        raise ValueError(
            f"cell.step must return a state of the shape it was given: {_describe(cell.state)}, "
            f"got {_describe(returned)}.\n" + "\n".join(weights) + "\n"
            "Return one value per unit, for example tanh(z @ w + x @ u + b) with w of shape (units, units)."
        )


def _describe(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: f"{leaf.dtype}{list(leaf.shape)}", tree)


def _leaves(tree: PyTree) -> list:
    return jax.tree_util.tree_leaves_with_path(tree)
