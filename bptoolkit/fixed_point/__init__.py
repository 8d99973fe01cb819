"""Fixed points z* = f(z*): how to reach them, and how to differentiate them.

`solvers` move the state, `solve` drives a solver and judges the end, `adjoints` solve the transposed network, `relax`
joins the two into something differentiable.
"""

from bptoolkit.fixed_point.adjoints import Adjoint, Biased, almeida_pineda, dense, neumann, one_step, phantom
from bptoolkit.fixed_point.automatic import exact, settle
from bptoolkit.fixed_point.chebyshev import chebyshev
from bptoolkit.fixed_point.failure import Policy, require
from bptoolkit.fixed_point.krylov import bicgstab, cg_normal, gmres
from bptoolkit.fixed_point.newton import newton_krylov
from bptoolkit.fixed_point.quasi_newton import broyden, shine
from bptoolkit.fixed_point.relax import Relaxation, implicit, new_probe, unrolled, value_and_grad
from bptoolkit.fixed_point.solve import Solution, Status, Stop, solve
from bptoolkit.fixed_point.solvers import Solver, anderson, damped, picard, relaxation
from bptoolkit.fixed_point.splitting import Resolvent, forward_backward, peaceman_rachford

__all__ = [
    "Adjoint",
    "Biased",
    "Policy",
    "Relaxation",
    "Resolvent",
    "Solution",
    "Solver",
    "Status",
    "Stop",
    "almeida_pineda",
    "anderson",
    "bicgstab",
    "broyden",
    "cg_normal",
    "chebyshev",
    "damped",
    "dense",
    "exact",
    "forward_backward",
    "gmres",
    "implicit",
    "neumann",
    "new_probe",
    "newton_krylov",
    "one_step",
    "peaceman_rachford",
    "phantom",
    "picard",
    "relaxation",
    "require",
    "settle",
    "shine",
    "solve",
    "unrolled",
    "value_and_grad",
]
