"""The same gradient by other libraries: jaxopt, optimistix with lineax, torchdeq, and autodiff through the steps.

Each is a function of a problem that makes (tolerance) -> `Gradient`; the tolerance is traced wherever the library
allows, so that one compilation serves all.
"""

import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from fixed_point_problems import Problem
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

TOLERANCES = [10 ** (-k / 2) for k in range(2, 14)]
MAX_STEPS = 2000
PATIENT = 600  # torchdeq pads its records to the largest number of steps, and pays for it
PEERS = ("jaxopt", "optimistix", "torchdeq")


class Gradient(NamedTuple):
    """∂loss/∂W at one tolerance, ready to run."""

    call: Callable[[], Any]
    told: Callable[[], list[int]] | None = None  # steps forward and backward of the slowest sample
    cost: dict[str, float] | None = None  # of compiling, and the memory of the compiled program


Make = Callable[[float], Gradient]


def on_device(problem: Problem) -> tuple[jax.Array, jax.Array, jax.Array]:
    """w, x and c in float32."""
    w, x, c = (jnp.asarray(a, jnp.float32) for a in (problem.w, problem.x, problem.c))
    return w, x, c


def compiled(function: Callable, arguments: tuple) -> tuple[Callable, dict[str, float]]:
    """function(*arguments, tolerance), one program for all tolerances; seconds of compiling it, bytes it needs."""
    began, before = time.perf_counter(), time.process_time()
    program = jax.jit(function).lower(*arguments, jnp.float32(0)).compile()
    passed, computed = time.perf_counter() - began, time.process_time() - before
    cost: dict[str, float] = {"compile_seconds": round(passed, 2), "compile_cpu_seconds": round(computed, 2)}
    needed = program.memory_analysis()
    if needed is not None:
        cost["bytes"] = needed.temp_size_in_bytes
    return lambda tolerance: program(*arguments, jnp.float32(tolerance)), cost


def gradient_of(loss: Callable, problem: Problem) -> Make:
    """The gradient of loss(w, x, c, tolerance) with respect to w; compiled when it is first asked for."""
    known = []

    def make(tolerance: float) -> Gradient:
        if not known:
            known.append(compiled(jax.grad(loss), on_device(problem)))
        program, cost = known[0]
        return Gradient(lambda: program(tolerance), None, cost)

    return make


def by_jaxopt(problem: Problem) -> Iterator[tuple[str, Make]]:
    import jaxopt  # pyright: ignore[reportMissingImports]
    from jaxopt import linear_solve  # pyright: ignore[reportMissingImports]

    forward = {
        "picard": jaxopt.FixedPointIteration,
        "anderson": partial(jaxopt.AndersonAcceleration, history_size=5, ridge=1e-6),
    }

    def loss(solver, w, x, c, tolerance):
        settle = solver(
            lambda z, w, x: problem.batched(w, z, x),
            maxiter=MAX_STEPS,
            tol=tolerance,
            implicit_diff=True,
            implicit_diff_solve=partial(linear_solve.solve_bicgstab, tol=tolerance),
        )
        return jnp.sum(settle.run(jnp.zeros_like(x), w, x).params * c)

    for name, solver in forward.items():  # its GMRES and its CG on the normal equations were slower wherever tried
        yield f"jaxopt {name} + bicgstab", gradient_of(partial(loss, solver), problem)


def by_optimistix(problem: Problem) -> Iterator[tuple[str, Make]]:
    import lineax  # pyright: ignore[reportMissingImports]
    import optimistix  # pyright: ignore[reportMissingImports]

    def loss(linear, f, over, w, x, c, tolerance):
        def settle(w, x):
            solver = optimistix.FixedPointIteration(rtol=tolerance, atol=tolerance)
            adjoint = optimistix.ImplicitAdjoint(linear_solver=linear(tolerance))
            g = lambda z, a: f(a[0], z, a[1])
            return optimistix.fixed_point(
                g, solver, jnp.zeros_like(x), (w, x), max_steps=MAX_STEPS, adjoint=adjoint, throw=False
            ).value

        return jnp.sum(over(settle)(w, x) * c)

    gmres = lambda t: lineax.GMRES(rtol=t, atol=t)
    yield "optimistix picard + gmres", gradient_of(partial(loss, gmres, problem.batched, lambda f: f), problem)
    if problem.c.size <= 256:  # a dense elimination of each sample
        vmapped = partial(jax.vmap, in_axes=(None, 0))
        elimination = partial(loss, lambda _: lineax.LU(), problem.step, vmapped)
        yield "optimistix picard + lu, vmapped", gradient_of(elimination, problem)


def by_torchdeq(problem: Problem) -> Iterator[tuple[str, Make]]:
    import torch  # pyright: ignore[reportMissingImports]
    import torchdeq  # pyright: ignore[reportMissingImports]

    w, x, c = (torch.tensor(np.asarray(a)) for a in on_device(problem))
    w.requires_grad_()

    def make(solver: str, tolerance: float) -> Gradient:
        limits = {"f_tol": tolerance, "b_tol": tolerance, "f_max_iter": PATIENT, "b_max_iter": PATIENT}
        modes = {"f_stop_mode": "rel", "b_stop_mode": "rel"}
        deq = torchdeq.get_deq(f_solver=solver, b_solver=solver, ift=True, **limits, **modes)

        def call():
            settled, _ = deq(lambda z: problem.by_torch(w, z, x), torch.zeros_like(x))
            return torch.autograd.grad((settled[-1] * c).sum(), w)[0].detach().numpy()

        return Gradient(call)

    for solver in ("fixed_point_iter", "anderson", "broyden"):
        yield f"torchdeq {solver}", partial(make, solver)


def unrolled(problem: Problem, tolerance: float) -> Gradient:
    """Backpropagation through as many steps as half decades say: 4, 6, 9, …"""
    return through(problem, round(4 * 1.6 ** TOLERANCES.index(tolerance)))


def through(problem: Problem, steps: int) -> Gradient:
    """Backpropagation through so many steps."""

    def loss(w, x, c, _):
        z = lax.scan(lambda z, _: (problem.batched(w, z, x), None), jnp.zeros_like(x), length=steps)[0]
        return jnp.sum(z * c)

    return gradient_of(loss, problem)(0.0)


def others(problem: Problem, libraries: tuple[str, ...]) -> Iterator[tuple[str, Make]]:
    """All configurations of the named libraries that are installed."""
    for name, library in {"jaxopt": by_jaxopt, "optimistix": by_optimistix, "torchdeq": by_torchdeq}.items():
        if name in libraries and importlib.util.find_spec(name):
            yield from library(problem)
    if "unrolled" in libraries:
        yield "unrolled", partial(unrolled, problem)


class Counter:
    """Applications of f and of its transpose to a whole batch, by a mark on the state as it passes.

    The mark is a linear primitive of its own: it survives linearisation, transposition and `vmap`, which a callback
    alone does not.
    """

    def __init__(self, problem: Problem):
        self.size = problem.x.size
        self.elements = 0
        step, batched, by_torch = problem.step, problem.batched, problem.by_torch
        mark, tensor = self.primitive().bind, self.mark_of_torch
        self.problem = problem._replace(
            step=lambda w, z, x: step(w, mark(z), x),
            batched=lambda w, z, x: batched(w, mark(z), x),
            by_torch=lambda w, z, x: by_torch(w, tensor().apply(z), x),
        )

    def primitive(self) -> Primitive:
        """The identity, which tells at run time how many numbers passed."""
        mark = Primitive("mark")

        def passed(z):
            told = jax.pure_callback(lambda _: self.add(z.size), jax.ShapeDtypeStruct((), z.dtype), z.ravel()[0])
            return z + told

        mark.def_abstract_eval(lambda z: z)
        mlir.register_lowering(mark, mlir.lower_fun(passed, multiple_results=False))
        ad.deflinear2(mark, lambda g, _: [mark.bind(g)])
        batching.defvectorized(mark)
        return mark

    def mark_of_torch(self) -> Any:
        """The same for PyTorch."""
        import torch  # pyright: ignore[reportMissingImports]

        counter = self

        class Mark(torch.autograd.Function):
            @staticmethod
            def forward(ctx, z):
                counter.add(z.numel())
                return z.view_as(z)

            @staticmethod
            def backward(ctx, g):
                counter.add(g.numel())
                return g

        return Mark

    def add(self, elements: int) -> np.ndarray:
        """Zero, and so many numbers more."""
        self.elements += elements
        return np.zeros((), np.float32)

    def count(self, gradient: Gradient) -> int:
        """Of one run."""
        self.elements = 0
        jax.block_until_ready(gradient.call())
        return round(self.elements / self.size)
