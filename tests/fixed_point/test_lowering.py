"""Every solver and every adjoint lowers for every backend, without such a device: none calls what one of them lacks.

Written over the EXAMPLES of all modules of `fixed_point`, so that what is added to one of them is covered.
"""

import importlib
import pkgutil

import jax
import jax.export
import jax.numpy as jnp
import optax
import pytest

from bptoolkit import fixed_point
from bptoolkit.fixed_point import broyden, implicit, picard

PLATFORMS = ("cpu", "cuda", "tpu")
MODULES = [
    importlib.import_module(f"bptoolkit.fixed_point.{m.name}") for m in pkgutil.iter_modules(fixed_point.__path__)
]
LISTED = {
    f"{module.__name__.rpartition('.')[2]}.{name}": example
    for module in MODULES
    for examples in (getattr(module, "EXAMPLES", {}), getattr(module, "ADJOINTS", {}))
    for name, example in examples.items()
}
SOLVERS = {name: item for name, item in LISTED.items() if isinstance(item, optax.GradientTransformation)}
RELAXATIONS = {name: item for name, item in LISTED.items() if name.startswith(("relax.", "unrolled."))}
ADJOINTS = {name: item for name, item in LISTED.items() if name not in SOLVERS and name not in RELAXATIONS}


def exported(function, *shapes):
    return jax.export.export(jax.jit(function), platforms=PLATFORMS)(*shapes)


def batch_of_gradients(relax):
    """Values and gradients of three examples of a tanh network of four units, in float32."""

    def loss(w, b):
        z = relax(lambda args, z: jnp.tanh(args[0] @ z + args[1]), (w, b), jnp.zeros(4, jnp.float32)).value
        return jnp.sum(jnp.square(z))

    shapes = jax.ShapeDtypeStruct((4, 4), jnp.float32), jax.ShapeDtypeStruct((3, 4), jnp.float32)
    return exported(jax.vmap(jax.value_and_grad(loss), (None, 0)), *shapes)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_lowers_for_every_backend(name):
    assert batch_of_gradients(implicit(SOLVERS[name])).platforms == PLATFORMS


@pytest.mark.parametrize("name", ADJOINTS)
def test_an_adjoint_lowers_for_every_backend(name):
    forward = broyden() if "shine" in name else picard()
    assert batch_of_gradients(implicit(forward, ADJOINTS[name])).platforms == PLATFORMS


@pytest.mark.parametrize("name", RELAXATIONS)
def test_a_relaxation_lowers_for_every_backend(name):
    assert batch_of_gradients(RELAXATIONS[name]).platforms == PLATFORMS


def test_something_is_listed():
    """Empty lists would pass all of the above."""
    assert {"solvers.picard", "quasi_newton.broyden"} <= set(SOLVERS)
    assert {"adjoints.dense", "krylov.gmres", "quasi_newton.shine"} <= set(ADJOINTS)
    assert {"relax.implicit", "unrolled.unrolled"} <= set(RELAXATIONS)


def test_what_a_backend_lacks_is_refused():
    """The control: eigenvalues of a matrix that is not symmetric exist on the CPU alone."""
    with pytest.raises(NotImplementedError):
        exported(jnp.linalg.eigvals, jax.ShapeDtypeStruct((4, 4), jnp.float32))
