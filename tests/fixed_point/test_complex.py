"""Complex states: every solver and adjoint on a map that is not holomorphic, against the same map in real pairs."""

import chex
import jax
import jax.numpy as jnp
import pytest
from jax import lax

from bptoolkit.fixed_point import (
    Status,
    Stop,
    adjoints,
    almeida_pineda,
    anderson,
    broyden,
    chebyshev,
    implicit,
    krylov,
    newton,
    picard,
    quasi_newton,
    shine,
    solve,
    solvers,
)

TIGHT = Stop(rtol=1e-12)
UNITS = 4
SOLVERS = {**solvers.EXAMPLES, **quasi_newton.EXAMPLES, **newton.EXAMPLES, "nothing said": None}
ADJOINTS = {
    "almeida_pineda": almeida_pineda(stop=TIGHT),
    "almeida_pineda(anderson)": almeida_pineda(anderson(), TIGHT),
    "almeida_pineda(broyden)": almeida_pineda(broyden(), TIGHT),
    "dense": adjoints.dense(),
    "gmres": krylov.gmres(stop=TIGHT),
    "bicgstab": krylov.bicgstab(TIGHT),
    "cg_normal": krylov.cg_normal(TIGHT),
}
START = jnp.zeros(UNITS, complex)


def numbers(seed, *shape):
    return lax.complex(*jax.random.normal(jax.random.key(seed), (2, *shape)))


ARGS = (0.2 * numbers(1, UNITS, UNITS), numbers(2, UNITS))


def f(args, z):
    """Squashes sizes and keeps phases, and adds a conjugate: real-linear at best."""
    u = args[0] @ z + args[1]
    return u / jnp.sqrt(1 + jnp.square(jnp.abs(u))).astype(u.dtype) + 0.3 * z.conj()


def loss(z):
    return jnp.sum(jnp.arange(1.0, UNITS + 1) * jnp.square(jnp.abs(z))) + jnp.sum(z.real * z.imag)


def pair(z):
    return jnp.concatenate([z.real, z.imag])


def unpair(p):
    return lax.complex(p[:UNITS], p[UNITS:])


@pytest.fixture(scope="module")
def truth():
    """The fixed point, and ∂L/∂Re b and ∂L/∂Im b, from a dense solve in real pairs."""
    z = lax.fori_loop(0, 400, lambda _, z: f(ARGS, z), START)
    jacobian = jax.jacobian(lambda p: pair(f(ARGS, unpair(p))))(pair(z))
    moved = jax.jacobian(lambda b: pair(f((ARGS[0], unpair(b)), z)))(pair(ARGS[1]))
    adjoint = jnp.linalg.solve((jnp.eye(2 * UNITS) - jacobian).T, jax.grad(lambda p: loss(unpair(p)))(pair(z)))
    return z, moved.T @ adjoint


@pytest.mark.parametrize("name", SOLVERS)
def test_every_solver_finds_the_fixed_point(name, truth):
    found = jax.jit(lambda: implicit(SOLVERS[name], stop=TIGHT)(f, ARGS, START))()
    assert found.status == Status.CONVERGED
    assert found.residual.dtype == jnp.float64
    chex.assert_trees_all_close(found.value, truth[0], atol=1e-10)


@pytest.mark.parametrize("name", ADJOINTS)
def test_every_exact_adjoint_gives_the_gradient_in_jax_convention(name, truth):
    """jax.grad is ∂L/∂Re − i ∂L/∂Im."""
    relax = implicit(picard(), ADJOINTS[name], TIGHT)
    gradient = jax.jit(jax.grad(lambda b: loss(relax(f, (ARGS[0], b), START).value)))(ARGS[1])
    chex.assert_trees_all_close(gradient, unpair(truth[1]).conj(), atol=1e-9)


def test_forward_mode_batches_and_trees_of_real_and_complex_leaves():
    """z = {a z / 2 + b, |z| + r / 3}: the second leaf is real, and reads the first."""

    def both(args, z):
        return {"z": args * z["z"] / 2 + 1, "r": jnp.abs(z["z"]) + z["r"] / 3}

    start = {"z": jnp.zeros(3, complex), "r": jnp.zeros(3)}
    settled = jax.jit(jax.vmap(lambda a: implicit(picard(), stop=TIGHT)(both, a, start).value["r"]))
    a = numbers(3, 2, 3) / 2
    direct = lambda a: 1.5 * jnp.abs(1 / (1 - a / 2))
    chex.assert_trees_all_close(settled(a), direct(a), atol=1e-10)
    pushed, right = (jax.jvp(g, (a,), (numbers(4, 2, 3),))[1] for g in (settled, direct))
    chex.assert_trees_all_close(pushed, right, atol=1e-9)
    pulled, right = (jax.grad(lambda a, g=g: jnp.sum(jnp.sin(g(a))))(a) for g in (settled, direct))
    chex.assert_trees_all_close(pulled, right, atol=1e-9)


def test_descent_along_the_conjugate_lowers_the_loss():
    value = jax.jit(jax.value_and_grad(lambda b: loss(implicit(stop=TIGHT)(f, (ARGS[0], b), START).value)))
    before, gradient = value(ARGS[1])
    assert value(ARGS[1] - 1e-3 * gradient.conj())[0] < before - 0.5e-3 * jnp.sum(jnp.square(jnp.abs(gradient)))
    assert value(ARGS[1] + 1e-3 * gradient.conj())[0] > before


def test_complex64_settles_by_anderson():
    narrow = jax.tree.map(lambda x: x.astype(jnp.complex64), ARGS)
    g = lambda z: jnp.sin(narrow[0] @ z) / 2 + narrow[1]
    found = solve(g, jnp.zeros(UNITS, jnp.complex64), anderson())
    assert found.status == Status.CONVERGED
    assert found.value.dtype == jnp.complex64


def test_what_needs_a_real_state_or_spectrum_says_so():
    turned = solve(lambda z: 0.9j * z + 1, START, chebyshev())
    assert turned.status == Status.DIVERGED
    with pytest.raises(ValueError, match="shine needs a real state, got complex128"):
        jax.grad(lambda b: loss(implicit(broyden(), shine())(f, (ARGS[0], b), START).value))(ARGS[1])
