"""Fixed points z* = f(z*): how to reach them, and how to differentiate them.

`solvers` move the state, `solve` drives a solver and judges the end, `adjoints` solve the transposed network, `relax`
joins the two into something differentiable.
"""

from bptoolkit.fixed_point.adjoints import Adjoint, almeida_pineda, dense, neumann, one_step
from bptoolkit.fixed_point.relax import Relaxation, implicit, new_probe, unrolled, value_and_grad
from bptoolkit.fixed_point.solve import Solution, Status, Stop, solve
from bptoolkit.fixed_point.solvers import Solver, anderson, damped, picard, relaxation

__all__ = [
    "Adjoint",
    "Relaxation",
    "Solution",
    "Solver",
    "Status",
    "Stop",
    "almeida_pineda",
    "anderson",
    "damped",
    "dense",
    "implicit",
    "neumann",
    "new_probe",
    "one_step",
    "picard",
    "relaxation",
    "solve",
    "unrolled",
    "value_and_grad",
]
