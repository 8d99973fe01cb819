"""Every solver and every exact adjoint, by name, for the tests that hold all of them to one law."""

import chex

from bptoolkit.fixed_point import (
    almeida_pineda,
    bicgstab,
    cg_normal,
    chebyshev,
    dense,
    exact,
    gmres,
    newton,
    quasi_newton,
    solvers,
)

__all__ = ["SOLVERS", "adjoints", "assert_apart_by_rounding", "paired"]

SOLVERS = {**solvers.EXAMPLES, **quasi_newton.EXAMPLES, **newton.EXAMPLES, "chebyshev": chebyshev(), "default": None}


def adjoints(stop):
    """Every exact adjoint with one stopping rule; `default` and Newton's method are no relaxations of their own."""
    relaxed = {name: s for name, s in SOLVERS.items() if name not in ("newton_krylov", "default")}
    return {
        **{f"almeida_pineda({name})": almeida_pineda(solver, stop) for name, solver in relaxed.items()},
        "bicgstab": bicgstab(stop),
        "cg_normal": cg_normal(stop),
        "dense": dense(),
        "exact": exact(stop),
        "gmres": gmres(stop=stop),
    }


def paired(first, second, shift=0):
    """(name of the first, name of the second): each of the longer list once, the shorter taken in turn."""
    first, second = list(first), list(second)
    longest = range(max(len(first), len(second)))
    return [(first[(i + shift) % len(first)], second[i % len(second)]) for i in longest]


def assert_apart_by_rounding(one, two):
    """Equal steps and ends, values to 1e-9; the rate, whose last residuals may be rounding or 0, to a third or 0.05."""
    chex.assert_trees_all_equal((one.steps, one.status), (two.steps, two.status))
    kept = lambda solution: (solution.value, solution.residual, solution.error)
    chex.assert_trees_all_close(kept(one), kept(two), rtol=1e-9, atol=1e-11)
    chex.assert_trees_all_close(one.rate, two.rate, rtol=0.3, atol=0.05)
