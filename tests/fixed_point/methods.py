"""Every solver and every exact adjoint, by name, for the tests that hold all of them to one law."""

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

__all__ = ["SOLVERS", "adjoints", "paired"]

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
