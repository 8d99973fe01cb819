"""Split MNIST in three scenarios, to the protocol of van de Ven, Tuytelaars & Tolias (2022).

Run:    python scripts/reproduce.py vandeven2022/split_mnist --seeds 5
Net:    784-400-400-out, ReLU; Adam 1e-3, 2000 steps a context, batch 128; 5 contexts × 2 digits, dealt by the seed.
"""

import functools
from collections.abc import Callable

import optax

from bptoolkit import continual as cl
from bptoolkit import data, learning, models
from bptoolkit.continual.experiment import Experiment
from bptoolkit.continual.streams import Scenario
from bptoolkit.learning.learner import Curriculum
from bptoolkit.runs.published import Column, Figure, Table
from bptoolkit.types import Model

STEPS, BATCH, RATE, PER_CLASS, CONTEXTS = 2000, 128, 1e-3, 100, 5

# Mean and SEM over 20 seeds, with where they were read.
PUBLISHED = {
    "None": {"Task": (84.32, 0.99, "rec"), "Domain": (60.13, 1.66, "rec"), "Class": (19.89, 0.02, "3p")},
    "Joint": {"Task": (99.67, 0.03, "rec"), "Domain": (98.59, 0.05, "rec"), "Class": (98.17, 0.04, "3p")},
    "Separate": {"Task": (99.57, 0.03, "rec")},
    "XdG": {"Task": (99.10, 0.10, "rec")},
    "EWC": {"Task": (99.06, 0.15, "rec"), "Domain": (63.03, 1.58, "rec"), "Class": (20.64, 0.52, "3p")},
    "SI": {"Task": (99.20, 0.11, "rec"), "Domain": (66.94, 1.13, "rec"), "Class": (21.20, 0.57, "3p")},
    "LwF": {"Task": (99.60, 0.03, "rec"), "Domain": (72.18, 1.34, "rec"), "Class": (21.89, 0.32, "3p")},
    "FROMP": {"Task": (99.12, 0.13, "rec"), "Domain": (84.86, 1.02, "rec"), "Class": (77.38, 0.64, "rec")},
    "DGR": {"Task": (99.50, 0.03, "rec"), "Domain": (95.57, 0.30, "rec"), "Class": (90.35, 0.24, "rec")},
    "BI-R": {"Task": (99.61, 0.03, "rec"), "Domain": (97.26, 0.15, "rec"), "Class": (94.41, 0.15, "rec")},
    "ER": {"Task": (98.98, 0.07, "rec"), "Domain": (93.75, 0.24, "rec"), "Class": (88.79, 0.20, "3p")},
    "A-GEM": {"Task": (98.58, 0.17, "rec"), "Domain": (87.67, 1.33, "rec"), "Class": (65.10, 3.64, "3p")},
    "Generative": {"Class": (93.82, 0.06, "rec")},
    "iCaRL": {"Class": (92.49, 0.12, "rec")},
}

SCENARIOS: tuple[Scenario, ...] = ("task", "domain", "class")
EWC_STRENGTH = {"task": 1e5, "domain": 1e10, "class": 1e9}
SI_STRENGTH = {"task": 10.0, "domain": 5e4, "class": 5e3}
FROMP_TAU = {"task": 0.01, "domain": 10.0, "class": 1000.0}
# The last stage is the protocol's: 10,000 steps on all contexts.  The runner wants each stage to train on something.
JOINT = Curriculum(sources=lambda tasks, k: tasks <= k, rounds=lambda k: k + 1 if k == CONTEXTS - 1 else 1, fresh=True)
DEVIATIONS = {
    ("Joint", "task"): ("batches of 128 rows from all contexts, where the protocol takes 26 of each of the five",),
    ("XdG", "task"): (
        "a silent unit sends 0, where the authors' code leaves it its bias, and trains what is behind it",
    ),
    **{
        ("FROMP", scenario): ("128 memorable rows a step in all, where the code takes ⌈128/k⌉ of each context behind",)
        for scenario in SCENARIOS
    },
    ("iCaRL", "class"): (
        "rows and exemplars are drawn independently, not in epochs over both, and the exemplars' share is that of a "
        "context of the mean size so far",
    ),
    **{("BI-R", scenario): ("not run: brain-inspired replay is no strategy here",) for scenario in SCENARIOS},
    ("Generative", "class"): ("the mean is over ten digits, where the protocol takes it over five contexts of two",),
}
# The cost of a run against that of plain training, estimated; only for saying how long it takes.
WEIGHT = {
    "None": 1.0,
    "Joint": 1.8,
    "Separate": 0.3,
    "XdG": 1.1,
    "EWC": 1.6,
    "SI": 1.2,
    "LwF": 3.0,
    "FROMP": 4.0,
    "ER": 2.0,
    "A-GEM": 2.1,
    "DGR": 6.0,
    "iCaRL": 2.0,
    "Generative": 8.0,
}

# Measured by hand with the authors' code, given the contexts of seeds 0 to 4 here; the runs are not committed.
DEALINGS = (
    "SI, domain-incremental: the authors' code, run by hand on the contexts of seeds 0 to 4 here, gives 80.9, 82.3, "
    "62.3, 69.5 and 67.3; ours gave 71.2, 71.9, 71.8, 73.5 and 73.0 in an earlier run, on another "
    "machine."
)

mnist = functools.cache(data.mnist)


def strategy(method: str, scenario: Scenario):
    """The strategy by which a method is run in a scenario; None where there is none yet."""
    replayed = {"rows": BATCH, "epochs": True, "per_task": scenario == "task"}
    made = {
        "None": cl.naive,
        "Joint": lambda learner: learner._replace(curriculum=JOINT),
        "EWC": cl.ewc(EWC_STRENGTH[scenario]),
        "Separate": cl.separate,
        "XdG": cl.xdg(0.9),
        "SI": cl.si(SI_STRENGTH[scenario]),
        "LwF": cl.lwf(),
        "FROMP": cl.fromp(FROMP_TAU[scenario], PER_CLASS, rows=BATCH, clip=1.0),  # his optimiser clips at 1
        "ER": cl.replay(PER_CLASS, **replayed),
        "A-GEM": cl.agem(PER_CLASS, **replayed),
        "DGR": cl.generative_replay(BATCH, per_task=scenario == "task"),  # 400-400, z = 100, Adam 1e-3
        "iCaRL": cl.icarl(PER_CLASS),
    }
    return made.get(method)


def static(units: int, outputs: int) -> Model:
    """The protocol's net."""
    return models.mlp(784, units, units, outputs)


def define(method: str, scenario: Scenario, net: Callable[[int, int], Model] = static) -> Experiment | None:
    """One cell's experiment, with a net of so many units and outputs."""
    if scenario not in {name.lower() for name in PUBLISHED[method]}:
        return None
    if method == "Generative":
        return generative()
    remedy = strategy(method, scenario)
    if remedy is None:
        return None
    stream = cl.split(mnist(), classes_per_task=2, scenario=scenario)
    units = 100 if method == "Separate" else 400
    rule = learning.backprop(
        net(units, stream.outputs), learning.binary_cross_entropy if method == "iCaRL" else learning.cross_entropy
    )
    return Experiment(stream, remedy(rule), optax.adam(RATE), steps=STEPS, batch=BATCH)


def generative() -> Experiment:
    """1000 iterations a class, each auto-encoder with an optimiser of its own: one digit a stage."""
    stream = cl.split(mnist(), classes_per_task=1)
    learner = cl.generative_classifier(784, stream.outputs, hidden=(85, 85), latent=5, samples=50)
    return Experiment(stream, learner, optax.adam(RATE), steps=STEPS // 2, batch=BATCH, reset_optimizer=True)


def deviations(method: str, scenario: Scenario) -> tuple[str, ...]:
    """What is not to the protocol's letter."""
    return DEVIATIONS.get((method, scenario), ())


def accuracy(result: cl.Result):
    return 100 * cl.average_accuracy(result)


TABLE = Table(
    title="Split MNIST, accuracy in %, mean ± SEM",
    reference="van de Ven, Tuytelaars & Tolias (2022), Nature Machine Intelligence 4: 20 seeds",
    notes=(
        "The authors chose the hyper-parameters on test accuracy, with one further seed; theirs are taken here.",
        "Seeds deal other digits to other contexts: look at the spread before the difference.",
        DEALINGS,
    ),
    columns={
        "Task": Column("task", accuracy),
        "Domain": Column("domain", accuracy),
        "Class": Column("class", accuracy),
    },
    published={m: {c: Figure(*figure) for c, figure in row.items()} for m, row in PUBLISHED.items()},
    define=define,
    deviations=deviations,
    weight=WEIGHT,
)
