"""Operator splitting for z = σ(W z + d), with a proximal map σ and a W that obeys W + Wᵀ ≤ 2 (1 − m) I for some m > 0.

Such a z is unique, and is the zero of a sum of two monotone operators, A z = z − (W z + d) and ∂φ, with σ the proximal
map of φ.  Splitting methods take a step on one and on the other in turn; unlike plain iteration they converge however
large W is.

References: Winston & Kolter (2020), NeurIPS, "Monotone operator equilibrium networks"; Ryu & Boyd (2016), Applied and
Computational Mathematics 15.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bptoolkit import trees
from bptoolkit.counts import fails, positive
from bptoolkit.fixed_point.solvers import Solver
from bptoolkit.types import State

__all__ = ["Resolvent", "forward_backward", "peaceman_rachford"]

Proximal = Callable[[Float[Array, "..."]], Float[Array, "..."]]


class Resolvent(NamedTuple):
    """The operator A z = z − (W z + d) of one example, as splitting methods use it.

    A cell makes it before the loop, so that what it factorises is factorised once; the step length α of the backward
    step is therefore chosen where it is made.
    """

    affine: Callable[[State], State]  # z ↦ W z + d
    backward: Callable[[State], State]  # u ↦ (I + αA)⁻¹ u = (I + α (I − W))⁻¹ (u + α d)


def forward_backward(alpha: Float[Array, ""] | float, proximal: Proximal = jax.nn.relu) -> Solver:
    """z ← σ(z − αA z) = σ((1 − α) z + α (W z + d)).  `forward_backward(1.0)` is `picard()`.

    Contracts by √(1 − 2αm + α²L²), L = ‖I − W‖₂, so it converges for every α < 2m/L²; the best bound is at m/L².  Needs
    the extra argument `resolvent`, of which it uses `affine` alone.  A step costs two products with W: this one, and
    the one by which the driver certifies z.

    Args:
        alpha: positive step length; may be traced.
        proximal: σ, elementwise.  It must be the proximal map of αφ for every α, the projection onto a cone or a box:
            relu, or a clip to bounds.  A sigmoid or tanh is a proximal map at α = 1 only.

    Raises:
        ValueError: alpha that is not positive and finite; from the update, `resolvent` is missing.
    """
    if fails(positive, alpha):
        raise ValueError(
            f"alpha must be positive and finite, got {alpha}. Take less than 2 m / L², with L the norm of I − W."
        )

    def update(updates, state, params=None, **extra):  # optax's names: the residual, nothing, and z
        del updates
        affine = _required("forward_backward", extra).affine(params)
        moved = jax.tree.map(lambda z, a: proximal(z + jnp.asarray(alpha, z.dtype) * (a - z)), params, affine)
        return trees.subtract(moved, params), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def peaceman_rachford(proximal: Proximal = jax.nn.relu) -> Solver:
    """u ← C_A C_φ u, with the reflections C_φ u = 2 σ(u) − u and C_A u = 2 (I + αA)⁻¹ u − u, and z = σ(u).

    Converges for every step length α > 0 and every W whose m is positive, in far fewer steps than
    `forward_backward`.  Needs the extra argument `resolvent`, whose α it takes; a step costs one product with its
    inverse and the one with W by which the driver certifies z.  The memory is u, which starts as z₀; where it has
    settled, u = z − αA z.

    Args:
        proximal: σ, as in `forward_backward`.

    Raises:
        ValueError: from the update, `resolvent` is missing.
    """
    apply = lambda u: jax.tree.map(proximal, u)

    def update(updates, state, params=None, **extra):  # optax's names: the residual, u, and z
        del updates
        backward = _required("peaceman_rachford", extra).backward
        reflected = _reflect(apply(state), state)
        u = _reflect(backward(reflected), reflected)
        return trees.subtract(apply(u), params), u

    return optax.GradientTransformationExtraArgs(lambda params: params, update)


def _reflect(image: State, u: State) -> State:
    """2 · image − u: the point opposite to u, seen from its image."""
    return trees.subtract(trees.scale(2.0, image), u)


def _required(solver: str, extra: dict) -> Resolvent:
    resolvent = extra.get("resolvent")
    if resolvent is None:
        raise ValueError(
            f"{solver} needs the extra argument `resolvent`, got none. Settle a cell that has one, such as "
            "monotone_cell, or write solve(f, z0, solver, resolvent=Resolvent(affine, backward))."
        )
    return resolvent
