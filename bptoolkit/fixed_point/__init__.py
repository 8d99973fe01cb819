"""Fixed points z* = f(z*): how to reach them, and how to differentiate them.

`solvers` move the state, `solve` drives a solver and judges the end, `adjoints` solve the transposed network, `relax`
joins the two into something differentiable.
"""

from bptoolkit.fixed_point.adjoints import Adjoint, Biased, almeida_pineda, dense, neumann, one_step, phantom
from bptoolkit.fixed_point.chebyshev import chebyshev
from bptoolkit.fixed_point.failure import Policy, require
from bptoolkit.fixed_point.quasi_newton import broyden, shine
from bptoolkit.fixed_point.relax import Relaxation, implicit, new_probe, unrolled, value_and_grad
from bptoolkit.fixed_point.solve import Solution, Status, Stop, solve
from bptoolkit.fixed_point.solvers import Solver, anderson, damped, picard, relaxation

__all__ = [
    "Adjoint",
    "Biased",
    "Policy",
    "Relaxation",
    "Solution",
    "Solver",
    "Status",
    "Stop",
    "almeida_pineda",
    "anderson",
    "broyden",
    "chebyshev",
    "damped",
    "dense",
    "implicit",
    "neumann",
    "new_probe",
    "one_step",
    "phantom",
    "picard",
    "relaxation",
    "require",
    "shine",
    "solve",
    "unrolled",
    "value_and_grad",
]
