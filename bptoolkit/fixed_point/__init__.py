"""Fixed points z* = f(z*): how to reach them, how to differentiate them, and how to tell what they are worth.

`solve` drives a solver and judges the end; `arguments` is what it is given, `sizes` what it measures by; `solvers`,
`chebyshev`, `quasi_newton`, `newton` and `splitting` move the state; `adjoints` and `krylov` solve the transposed
network; `relax` joins both into something differentiable, with `automatic` for what is not said, `failure` for what
has failed and `auxiliary` for what f returns beside its state; `unrolled` goes through the steps themselves; `diagnose`
and `stability` look at the spectrum.
"""

from bptoolkit.fixed_point.adjoints import Adjoint, Biased, almeida_pineda, dense, neumann, one_step, phantom
from bptoolkit.fixed_point.arguments import Stop
from bptoolkit.fixed_point.automatic import exact, settle
from bptoolkit.fixed_point.auxiliary import with_aux
from bptoolkit.fixed_point.chebyshev import chebyshev
from bptoolkit.fixed_point.diagnose import (
    Diagnosis,
    GradientCheck,
    Range,
    diagnose,
    gradient_check,
    numerical_range,
    residual_history,
    spectral_abscissa,
    spectral_radius,
)
from bptoolkit.fixed_point.failure import Policy, require
from bptoolkit.fixed_point.integrated import integrated
from bptoolkit.fixed_point.krylov import bicgstab, cg_normal, gmres
from bptoolkit.fixed_point.newton import newton_krylov
from bptoolkit.fixed_point.quasi_newton import broyden, shine
from bptoolkit.fixed_point.relax import Relaxation, implicit, new_probe, value_and_grad
from bptoolkit.fixed_point.solve import Solution, Status, solve
from bptoolkit.fixed_point.solvers import Solver, anderson, damped, picard, relaxation
from bptoolkit.fixed_point.splitting import Resolvent, forward_backward, peaceman_rachford
from bptoolkit.fixed_point.stability import (
    Spectrum,
    automatic_dt,
    jacobian_penalty,
    largest_dt,
    monotone,
    ritz,
    singular_vector,
    spectral_normalise,
    symmetric,
)
from bptoolkit.fixed_point.unrolled import BiasedRelaxation, unrolled

__all__ = [
    "Adjoint",
    "Biased",
    "BiasedRelaxation",
    "Diagnosis",
    "GradientCheck",
    "Policy",
    "Range",
    "Relaxation",
    "Resolvent",
    "Solution",
    "Solver",
    "Spectrum",
    "Status",
    "Stop",
    "almeida_pineda",
    "anderson",
    "automatic_dt",
    "bicgstab",
    "broyden",
    "cg_normal",
    "chebyshev",
    "damped",
    "dense",
    "diagnose",
    "exact",
    "forward_backward",
    "gmres",
    "gradient_check",
    "implicit",
    "integrated",
    "jacobian_penalty",
    "largest_dt",
    "monotone",
    "neumann",
    "new_probe",
    "newton_krylov",
    "numerical_range",
    "one_step",
    "peaceman_rachford",
    "phantom",
    "picard",
    "relaxation",
    "require",
    "residual_history",
    "ritz",
    "settle",
    "shine",
    "singular_vector",
    "solve",
    "spectral_abscissa",
    "spectral_normalise",
    "spectral_radius",
    "symmetric",
    "unrolled",
    "value_and_grad",
    "with_aux",
]
