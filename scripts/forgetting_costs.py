"""What `bench_forgetting.py` times beside plain training: products, strategies, a grid, a PyTorch loop, growth."""

import importlib.util
import itertools
import time
from collections.abc import Callable
from dataclasses import replace

import jax
import numpy as np
import optax

from bptoolkit import continual as cl
from bptoolkit import learning, models
from bptoolkit.types import Dataset

STRENGTHS = [1.0, 10.0, 100.0, 1e3, 1e4, 1e5, 1e6]
SMALL, SMALL_BATCH, SMALL_SEEDS = (784, 100, 100, 10), 10, 20
TORCH_UPDATES, PRODUCTS = 500, 4000


def mnist_net(images: Dataset, learner, steps: int) -> cl.Experiment:
    """The net of van de Ven et al. (2022) with a strategy, or a learner made of numbers."""
    stream = cl.split(images, classes_per_task=2)
    return cl.Experiment(stream, learner, optax.adam(1e-3), steps, 128, hyper={"strength": 1e3})


def strategies(images: Dataset, steps: int, repeats: int) -> dict:
    """Seconds of EWC (exact, all rows, all labels) and of replay over those of plain training, in turn."""
    rule = learning.backprop(models.mlp(784, 400, 400, 10))
    every = {"ewc": cl.ewc(1e3), "replay": cl.replay(100)}
    plain = mnist_net(images, rule, steps)
    ratios: dict[str, list[float]] = {name: [] for name in every}
    for _ in range(repeats):
        base = trained(plain)
        for name, strategy in every.items():
            ratios[name].append(trained(mnist_net(images, strategy(rule), steps)) / base)
    return {name: float(np.median(found)) for name, found in ratios.items()} | {"updates": steps * plain.stream.tasks}


def grid(images: Dataset, steps: int, seeds: int, products: Callable[[], float]) -> dict:
    """Seven strengths of EWC × seeds in one compiled program, over the products of the updates of so many nets.

    The exact Fisher information of all rows costs as much as some 400 updates a task, which the ratio holds too.
    The products are timed before the nets and after: a shared machine changes its pace within a quarter of an hour.
    """
    rule = learning.backprop(models.mlp(784, 400, 400, 10))
    experiment = mnist_net(images, lambda hyper: cl.ewc(hyper["strength"])(rule), steps)
    before = products()
    results = cl.run_grid(experiment, {"strength": STRENGTHS}, jax.random.key(0), seeds)
    took = sum(result.cost.seconds for result in results.values())
    nets = seeds * len(STRENGTHS)
    bare = [before, products()]
    return {
        "nets": nets,
        "updates": steps * 5,
        "seconds": took,
        "products_seconds_of_one": bare,
        "ratio": took / (nets * float(np.mean(bare))),
    }


def growth(images: Dataset, steps: int) -> dict:
    """Seconds against steps, seeds and tasks, each over the first row: linear would be the factor itself.

    On 1 … 4 seeds, of which a machine of two cores does two at a time.
    """
    rule = learning.backprop(models.mlp(784, 100, 10))
    one = cl.Experiment(cl.split(images, 2), rule, optax.adam(1e-3), steps, 128)
    took = lambda experiment, seeds=2: cl.run(experiment, jax.random.key(0), seeds).cost.seconds
    permuted = lambda tasks: replace(one, stream=cl.permuted(images, tasks))
    return {
        "steps": {factor: took(replace(one, steps=factor * steps)) for factor in (1, 2, 4)},
        "seeds": {factor: took(one, 2 * factor) for factor in (1, 2, 4)},
        "tasks, tested after each, so that tests grow with their square": {
            factor: took(permuted(2 * factor)) for factor in (1, 2, 4)
        },
    }


def small_against_torch(images: Dataset, steps: int) -> dict:
    """Microseconds an update of 784-100-100-10, batch 10, SGD: twenty seeds at once, and a plain PyTorch loop.

    The products of the same shapes on as many devices are what no loop can be faster than.
    """
    experiment = cl.Experiment(
        cl.split(images, 2), learning.backprop(models.mlp(*SMALL)), optax.sgd(0.1), steps, SMALL_BATCH
    )
    cost = cl.run(experiment, jax.random.key(0), SMALL_SEEDS).cost
    ours = 1e6 * cost.seconds / (cost.steps * SMALL_SEEDS)
    products = bare_products(SMALL, SMALL_BATCH, PRODUCTS)
    alone = 1e6 * float(np.median([seconds(products) for _ in range(5)])) / PRODUCTS
    theirs = torch_loop() if importlib.util.find_spec("torch") else None
    return {
        "seeds": SMALL_SEEDS,
        "updates": cost.steps,
        "layout": cost.layout,
        "microseconds_per_update_and_seed": ours,
        "products_microseconds_on_one_device": alone,
        "torch_microseconds_per_update": theirs,
        "times_faster": None if theirs is None else theirs / ours,
        "our_time_includes": "drawing, gathering and testing",
    }


def torch_loop() -> float:
    """Microseconds an update, by the loop that most would write: the batches are there already."""
    import torch  # pyright: ignore[reportMissingImports]

    layers = []
    for inputs, outputs in itertools.pairwise(SMALL):
        layers += [torch.nn.Linear(inputs, outputs), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    optimizer, loss = torch.optim.SGD(net.parameters(), lr=0.1), torch.nn.CrossEntropyLoss()
    x, y = torch.rand(TORCH_UPDATES, SMALL_BATCH, SMALL[0]), torch.randint(10, (TORCH_UPDATES, SMALL_BATCH))

    def epoch() -> float:
        began = time.perf_counter()
        for rows, target in zip(x, y, strict=True):
            optimizer.zero_grad()
            loss(net(rows), target).backward()
            optimizer.step()
        return time.perf_counter() - began

    epoch()
    return 1e6 * float(np.median([epoch() for _ in range(5)])) / TORCH_UPDATES


def trained(experiment: cl.Experiment) -> float:
    """Seconds of training and testing one seed, without compiling."""
    return cl.run(experiment, jax.random.key(0), seeds=1).cost.seconds


def bare_products(sizes: tuple[int, ...], batch: int, steps: int):
    """The forward, weight-gradient and input-gradient products of `steps` updates, and nothing else."""
    key = jax.random.key(0)
    weights = [jax.random.normal(key, shape) / shape[0] ** 0.5 for shape in itertools.pairwise(sizes)]
    x = jax.random.normal(key, (batch, sizes[0]))

    def step(weights, _):
        h = [x]
        for w in weights:
            h.append(h[-1] @ w)
        delta, moved = h[-1], []
        for i, w in reversed(list(enumerate(weights))):
            moved.insert(0, w - 1e-9 * (h[i].T @ delta))  # the product is used, so it is made
            delta = delta @ w.T if i else delta
        return moved, None

    run = jax.jit(lambda weights: jax.lax.scan(step, weights, length=steps)[0])
    jax.block_until_ready(run(weights))
    return lambda: jax.block_until_ready(run(weights))


def seconds(function: Callable[[], object]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began
