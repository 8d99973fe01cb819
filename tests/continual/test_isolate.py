"""Gates, packed weights and learned attention: what a task sees, what it may change, and what it may not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import learning
from bptoolkit.continual.gates import entering, leaving, scale_units
from bptoolkit.continual.hat import compensated, sharpness
from bptoolkit.continual.isolate import _draw_gates, _prune
from bptoolkit.continual.regularise import output_sensitivity
from bptoolkit.fixed_point import almeida_pineda, implicit, picard
from bptoolkit.models import convnet, equilibrium, hopfield_cell, mlp, rate_cell
from bptoolkit.types import Info, Model

STATIC = mlp(4, 8, 6, activation=jnp.tanh)
RECURRENT = {"rate": rate_cell(4, 8, 6), "hopfield": hopfield_cell(4, 8, 6)}
RELAX = implicit(picard(), almeida_pineda())
MOMENTUM = optax.sgd(0.1, momentum=0.9)  # moves also what has no gradient, as Adam does


def by_gated_units(params, x, gate):
    """h ← g ⊙ h written out, for the static net."""
    h = gate * jnp.tanh(x @ params[0]["w"] + params[0]["b"])
    return h @ params[1]["w"] + params[1]["b"]


def mean_loss(apply, params, batch):
    """Cross-entropy over the active outputs, a mean over rows."""
    logits = jax.vmap(apply, (None, 0))(params, batch.x)
    log_p = jax.nn.log_softmax(jnp.where(batch.active, logits, -1e30), 1)
    return -jnp.mean(jnp.sum(batch.target * log_p, 1))


def differ(a, b):
    return max(np.abs(x - y).max() for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))


@pytest.fixture(scope="module")
def gated(clouds, drive):
    driven = drive(cl.xdg(0.5)(learning.backprop(STATIC)), clouds("task"), MOMENTUM)
    return driven, driven.run()


def test_gates_are_drawn_once_and_silence_the_share(gated):
    driven, stages = gated
    gates = np.asarray(driven.begin().memory.gates[0])
    assert gates.shape == (3, 8)
    assert ((gates == 0).sum(1) == 4).all()
    assert len({tuple(row) for row in gates}) > 1
    for stage in stages:
        np.testing.assert_array_equal(stage.progress.memory.gates[0], gates)


def test_a_share_that_rounds_short_of_a_whole_number_is_that_number(key):
    """0.29 · 100 is 28.999999999999996."""
    np.testing.assert_array_equal(_draw_gates(key, 2, 100, 0.29).sum(1), 71)


def test_answers_and_gradients_are_those_of_gated_units(gated):
    """Against a net that multiplies its units by the gate; a batch of two tasks, each row under its own gate."""
    driven, stages = gated
    params, memory = stages[0].progress.params, stages[0].progress.memory
    gates = memory.gates[0]
    mixed = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), driven.rows(1), driven.rows(2))
    found, info, _ = jax.jit(driven.learner.gradient)(memory, params, mixed, jax.random.key(0))

    def loss(params):
        parts = [mean_loss(lambda p, x, t=t: by_gated_units(p, x, gates[t]), params, driven.rows(t)) for t in (1, 2)]
        return sum(parts) / 2

    value, expected = jax.jit(jax.value_and_grad(loss))(params)
    chex.assert_trees_all_close(found, expected, atol=1e-12)
    np.testing.assert_allclose(info.loss, value, atol=1e-12)
    for task, logits in enumerate(stages[0].logits):
        by_hand = jax.vmap(by_gated_units, (None, 0, None))(params, driven.rows(task).x, gates[task])
        np.testing.assert_allclose(logits, by_hand, atol=1e-12)


def test_silent_units_have_no_effect_at_all(gated):
    """Whatever stands around them, the task's answers stay bit-identical; control: those of another task do not."""
    driven, stages = gated
    params, memory = stages[2].progress.params, stages[2].progress.memory
    silent = 1 - memory.gates[0][0]
    noise = 5 * silent
    lower = {"w": params[0]["w"] + noise, "b": params[0]["b"] + noise}
    other = (lower, params[1] | {"w": params[1]["w"] + noise[:, None]})
    answer = jax.jit(lambda p, task: driven.learner.predict(memory, p, driven.rows(task))[0])
    np.testing.assert_array_equal(answer(params, 0), answer(other, 0))
    assert np.abs(answer(params, 1) - answer(other, 1)).max() > 0.1


def sensitivity(model, params, batch, key):
    return output_sensitivity(model, params, batch)


@pytest.mark.parametrize(
    ("strategy", "importance"), [(cl.ewc, cl.fisher), (cl.online_ewc, cl.fisher), (cl.mas, sensitivity)]
)
def test_a_penalty_outside_sees_the_gated_net(gated, strategy, importance):
    """Importances around XdG are those of the net under the task's own gate; control: not of the whole."""
    driven, stages = gated
    learner = strategy(1.0)(driven.learner)
    params, inner = stages[0].progress.params, stages[0].progress.memory
    memory = learner.init(params, driven.spec, jax.random.key(0))._replace(inner=inner)
    found = jax.jit(lambda m, p: learner.end_task(m, p, driven.task(1), jax.random.key(3))[1].importance)(
        memory, params
    )
    gate = inner.gates[0][1]
    of = jax.jit(importance, static_argnums=0)
    silenced = Model(STATIC.init, lambda p, x: (by_gated_units(p, x, gate), Info()))
    expected, whole = (of(m, params, driven.rows(1), jax.random.key(0)) for m in (silenced, STATIC))
    chex.assert_trees_all_close(found, jax.tree.map(lambda f: f / 8, expected), atol=1e-12)
    assert differ(expected, whole) > 1e-3


@pytest.mark.parametrize("cell", RECURRENT.values(), ids=RECURRENT)
def test_gates_on_weights_are_gates_on_the_settled_state(cell):
    """z ← g ⊙ f(z) iterated by hand, against the settled net whose weights are scaled."""
    model = equilibrium(cell, RELAX)
    params, x = model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4,))
    gate = jnp.array([1.0, 0, 1, 0, 0, 1, 1, 0])
    z = jnp.zeros(8)
    for _ in range(60):
        z = gate * cell.step(params, x, z)
    found = model.apply(scale_units(model, params, (gate,), (gate,)), x)[0]
    np.testing.assert_allclose(found, cell.readout(params, z), atol=1e-7)
    assert np.abs(found - model.apply(params, x)[0]).max() > 1e-3


def test_channels_are_gated_in_all_their_places():
    """A convolution's channel silenced: as if its filters' outputs were zero wherever they are read."""
    model = convnet((4, 4), 3, channels=(2,), kernel=2)
    params, x = model.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 4))
    gate = jnp.array([1.0, 0.0])
    lower, upper = model.layers
    h = lower.activation(lower.linear(params[0], x)) * gate
    expected = upper.linear(params[1], h)
    np.testing.assert_allclose(model.apply(scale_units(model, params, (gate,), (gate,)), x)[0], expected, atol=1e-12)


def test_a_model_that_shows_no_units_cannot_be_gated(drive, clouds):
    hidden = Model(STATIC.init, lambda params, x: (STATIC.apply(params, x)[0], Info()))
    with pytest.raises(ValueError, match="xdg needs a model that shows its hidden units"):
        drive(cl.xdg()(learning.backprop(hidden)), clouds("task")).begin()


@pytest.fixture(scope="module")
def packed(clouds, drive):
    driven = drive(cl.packnet(retrain=0.5)(learning.backprop(STATIC)), clouds("task"), MOMENTUM, steps=8)
    return driven, driven.run()


def test_what_is_packed_is_never_changed_again(packed):
    """With momentum, bit for bit: each task's weights and answers after its own stage and after the last one."""
    driven, stages = packed
    last = stages[-1].progress
    for task, stage in enumerate(stages):
        own = lambda p, m, task=task: driven.learner.view(m, p, jnp.int32(task))
        mine = jax.tree.map(lambda o, task=task: (o > 0) & (o <= task + 1), stage.progress.memory.owner)
        before, after = (own(p.params, p.memory) for p in (stage.progress, last))
        for b, a, m in zip(*map(jax.tree.leaves, (before, after, mine)), strict=True):
            np.testing.assert_array_equal(np.asarray(b)[m], np.asarray(a)[m])
        alive = np.asarray(driven.rows(task).active[0])
        np.testing.assert_array_equal(stage.logits[task][:, alive], stages[-1].logits[task][:, alive])
    assert np.mean([driven.accuracy(stages[-1])]) > 0.5


def test_tasks_get_equal_shares_and_keep_the_largest(packed):
    """A third each, of 32 weights; what the first task freed was smaller than what it kept."""
    _, stages = packed
    owner = np.asarray(stages[-1].progress.memory.owner[0]["w"])
    counts = np.bincount(owner.ravel(), minlength=4)
    assert counts[0] == 0
    assert (np.abs(counts[1:] - 32 / 3) < 1.5).all()
    first = stages[0].progress
    np.testing.assert_array_equal(np.asarray(first.params[0]["w"])[owner != 1], 0)
    assert (np.asarray(first.params[0]["w"])[owner == 1] != 0).all()


def test_what_leads_to_an_output_belongs_to_the_task_that_it_is_active_in(packed):
    driven, stages = packed
    owner = jax.tree.map(np.asarray, stages[-1].progress.memory.owner[1])
    for task in range(3):
        alive = np.asarray(driven.rows(task).active[0])
        assert (owner["w"][:, alive] == task + 1).all()
        assert (owner["b"][alive] == task + 1).all()


def test_until_it_prunes_a_task_answers_with_the_weights_that_it_trains(packed):
    """Before any training every task sees the whole net; in a task, other tasks do not see its free weights."""
    driven, stages = packed
    start, after = driven.begin(), stages[0].progress
    view = lambda params, memory, task: driven.learner.view(memory, params, jnp.int32(task))
    for task in range(3):
        chex.assert_trees_all_equal(view(start.params, start.memory, task), start.params)
    memory = after.memory._replace(current=jnp.int32(1), step=jnp.int32(0))
    free = np.asarray(memory.owner[0]["w"]) == 0
    params = jax.tree.map(lambda leaf: leaf + 1, after.params)
    shown = lambda memory, task: np.asarray(view(params, memory, task)[0]["w"])[free]
    assert (shown(memory, 1) == np.asarray(params[0]["w"])[free]).all()
    assert (shown(memory, 0) == 0).all()
    assert (shown(memory._replace(step=memory.prune_at), 1) == 0).all()


def test_weights_that_tie_are_not_claimed_beyond_the_share(clouds, drive):
    """All but one of 32 are 0, as behind dead pixels: half of them are claimed, not all."""
    driven = drive(cl.packnet(0.5)(learning.backprop(STATIC)), clouds("task"), steps=2)
    start = driven.begin()
    params = jax.tree.map(jnp.zeros_like, start.params)
    params[0]["w"] = params[0]["w"].at[2, 3].set(1.0)
    memory = start.memory._replace(current=jnp.int32(0))
    _, pruned = _prune(params, memory, jnp.ones(6, bool), 0.5)
    owner = np.asarray(pruned.owner[0]["w"])
    assert (owner == 1).sum() == 16
    assert owner[2, 3] == 1


RENEWED = {
    "between tasks": cl.shrink_and_perturb(0.5, 0.1),
    "all the time": cl.redo(2.0, every=1),  # all but the most active units, at every step
}
ORDERS = {
    "inside": lambda outer, renewed, rule: outer(renewed(rule)),
    "outside": lambda outer, renewed, rule: renewed(outer(rule)),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("renewed", RENEWED)
def test_what_is_renewed_leaves_what_is_packed(renewed, order, clouds, drive):
    learner = ORDERS[order](cl.packnet(), RENEWED[renewed], learning.backprop(STATIC))
    driven = drive(learner, clouds("task"), MOMENTUM, steps=6)
    stages = driven.run()
    alive = np.asarray(driven.rows(0).active[0])
    np.testing.assert_array_equal(stages[0].logits[0][:, alive], stages[-1].logits[0][:, alive])
    first, last = (stage.progress.params[0]["w"] for stage in (stages[0], stages[-1]))
    assert not np.array_equal(first, last)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("renewed", RENEWED)
def test_what_is_renewed_leaves_units_under_attention(renewed, order, clouds, drive):
    """Weights between units that are wholly needed stay; those of a free unit do not."""
    learner = ORDERS[order](cl.hat(), RENEWED[renewed], learning.backprop(STATIC))
    driven = drive(learner, clouds("task"), MOMENTUM, steps=6)
    progress = driven.stage(driven.begin(), 0).progress
    used = jnp.arange(8) < 4
    needed = lambda memory: memory._replace(used=(used.astype(jnp.result_type(float)),))
    memory = progress.memory
    memory = needed(memory) if order == "inside" else memory._replace(inner=needed(memory.inner))
    after = driven.stage(progress._replace(memory=memory), 1).progress.params
    same = np.all(np.asarray(after[0]["w"] == progress.params[0]["w"]), axis=0)
    assert same[:4].all()
    assert not same[4:].any()


@pytest.mark.parametrize("outer", [cl.xdg(), cl.hat(), cl.packnet()])
@pytest.mark.parametrize("inner", [cl.replay(2), cl.ewc(1.0), cl.lwf(), lambda rule: cl.redo()(cl.si(1.0)(rule))])
def test_what_looks_on_is_refused_inside_of_a_view(outer, inner):
    with pytest.raises(ValueError, match=r"must be inside of penalties and rehearsal.*\nWrite replay\(20\)"):
        outer(inner(learning.backprop(STATIC)))


def test_rehearsed_rows_train_the_weights_that_their_task_sees(packed):
    """Rows of the first task, in the second: no gradient to weights that are free, and none of the first task sees."""
    driven, stages = packed
    memory = stages[0].progress.memory._replace(current=jnp.int32(1), step=jnp.int32(0))
    gradient = jax.jit(driven.learner.gradient)
    for task, some in ((0, False), (1, True)):
        found = gradient(memory, stages[0].progress.params, driven.rows(task), jax.random.key(0))[0]
        free = np.asarray(memory.owner[0]["w"] == 0)
        assert np.any(np.asarray(found[0]["w"])[free]) == some


def test_naive_training_changes_what_packnet_keeps(packed, clouds, drive):
    """Control: the same net without it answers the first task otherwise in the end."""
    stages = drive(learning.backprop(STATIC), clouds("task"), MOMENTUM, steps=8).run()
    assert np.abs(stages[0].logits[0] - stages[-1].logits[0]).max() > 0.05


@pytest.fixture(scope="module")
def attended(clouds, drive):
    driven = drive(cl.hat(0.75, sharpest=50.0)(learning.backprop(STATIC)), clouds("task"), MOMENTUM, steps=6)
    return driven, driven.run()


def test_attention_follows_its_compensated_gradient(attended):
    """∂/∂e of the loss with h ← σ(s e) ⊙ h and of the sparsity, written out; then the paper's formula in NumPy."""
    driven, stages = attended
    memory = stages[0].progress.memory._replace(current=jnp.int32(1), step=jnp.int32(2))
    params, batch, s = stages[0].progress.params, driven.rows(1), float(sharpness(memory))
    used = np.asarray(memory.used[0])

    def loss(e):
        a = jax.nn.sigmoid(s * e)
        task = mean_loss(lambda p, x: by_gated_units(p, x, a), params, batch)
        return task + 0.75 * jnp.sum(a * (1 - used)) / np.sum(1 - used)

    e = memory.embeddings[0][1]
    q, e = np.asarray(jax.jit(jax.grad(loss))(e)), np.asarray(e)
    q = q * 50.0 / s * (np.cosh(np.clip(s * e, -50, 50)) + 1) / (np.cosh(e) + 1)
    _, _, after = jax.jit(driven.learner.gradient)(memory, params, batch, jax.random.key(0))
    np.testing.assert_allclose(after.embeddings[0][1], np.clip(e - 0.05 * q, -6, 6), rtol=1e-9)
    np.testing.assert_array_equal(after.embeddings[0][0], memory.embeddings[0][0])


def test_rehearsed_rows_are_seen_at_the_attention_they_are_tested_with(attended):
    """Those of an earlier task, early in the next; the negative control: those of the next, at the step's own."""
    driven, stages = attended
    memory = stages[0].progress.memory._replace(current=jnp.int32(1), step=jnp.int32(1))
    params, learner = stages[0].progress.params, driven.learner
    for task, as_tested in ((0, True), (1, False)):
        batch = driven.rows(task)
        _, info, _ = jax.jit(learner.gradient)(memory, params, batch, jax.random.key(0))
        logits, _ = learner.predict(memory, params, batch)
        log_p = jax.nn.log_softmax(jnp.where(batch.active, logits, -1e30), 1)
        tested = -jnp.mean(jnp.sum(batch.target * log_p, 1))
        assert (abs(float(info.loss - tested)) < 1e-12) == as_tested


def test_sharpness_rises_from_end_to_end(attended):
    driven, _ = attended
    memory = driven.begin().memory
    at = lambda step: float(sharpness(memory._replace(step=jnp.int32(step))))
    assert at(0) == pytest.approx(1 / 50)
    assert at(5) == pytest.approx(50)
    assert compensated(jnp.ones(()), jnp.zeros(()), jnp.float64(50.0), jnp.float64(50.0)) == 1  # nothing to mend


def test_sharpness_rises_anew_in_each_cycle_and_in_each_task(clouds, drive):
    driven = drive(cl.hat(sharpest=50.0, cycle=3)(learning.backprop(STATIC)), clouds("task"))
    params, _, memory = driven.begin()
    at = lambda step: float(sharpness(memory._replace(step=jnp.int32(step))))
    assert [at(step) for step in range(6)] == pytest.approx([1 / 50, (1 / 50 + 50) / 2, 50] * 2)
    _, begun = driven.learner.start_task(memory._replace(step=jnp.int32(5)), params, jnp.int32(1), jax.random.key(0))
    assert begun.step == 0


def test_what_any_earlier_task_needs_stays_needed(attended):
    """After two tasks: the larger of their attentions, and the outputs of both."""
    driven, stages = attended
    memory = stages[1].progress.memory
    attentions = 1 / (1 + np.exp(-50.0 * np.asarray(memory.embeddings[0][:2])))
    np.testing.assert_allclose(memory.used[0], attentions.max(0), atol=1e-12)
    assert (attentions[0] > attentions[1] + 0.1).any()
    np.testing.assert_array_equal(memory.outputs, driven.rows(0).active[0] | driven.rows(1).active[0])


def test_updates_are_scaled_by_what_is_free(attended):
    """1 − min(a_i, a_j) on a hidden layer, 1 − a_j into it, and nothing to outputs of earlier tasks; by hand."""
    driven, stages = attended
    memory = stages[0].progress.memory
    before = stages[0].progress.params
    after = jax.tree.map(lambda p: p + 1, before)
    moved, _, _ = driven.learner.after_step(memory, before, after, (), driven.rows(1), jax.random.key(0))
    a, old = np.asarray(memory.used[0]), np.asarray(memory.outputs)
    way = jax.tree.map(lambda m, b: np.asarray(m - b), moved, before)
    np.testing.assert_allclose(way[0]["w"], np.broadcast_to(1 - a, (4, 8)), atol=1e-12)
    np.testing.assert_allclose(way[0]["b"], 1 - a, atol=1e-12)
    np.testing.assert_allclose(way[1]["w"], np.broadcast_to(1.0 * ~old, (8, 6)), atol=1e-12)
    assert old.sum() == 2
    assert a.max() > 0.9


def test_between_hidden_layers_the_less_needed_end_decides():
    model = mlp(2, 3, 2, 2)
    params = model.init(jax.random.key(0))
    used = (jnp.array([1.0, 0.5, 0.0]), jnp.array([0.25, 1.0]))
    found = jax.tree.map(jnp.minimum, leaving(model, params, used), entering(model, params, used))
    np.testing.assert_array_equal(found[1]["w"], np.minimum(used[0][:, None], used[1]))
    np.testing.assert_array_equal(found[0]["w"], np.broadcast_to(used[0], (2, 3)))
    np.testing.assert_array_equal(found[1]["b"], used[1])


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: cl.xdg(1.0), r"share must be in \[0, 1\), got 1.0"),
        (lambda: cl.packnet(0.0), r"keep must be in \(0, 1\], got 0.0"),
        (lambda: cl.packnet(retrain=1.0), r"retrain must be in \[0, 1\), got 1.0"),
        (lambda: cl.hat(-0.1), "strength must be at least 0"),
        (lambda: cl.hat(sharpest=0.0), "sharpest must be positive"),
        (lambda: cl.hat(cycle=0), "cycle must be at least 1"),
    ],
)
def test_what_cannot_isolate_is_refused_with_a_sentence(build, sentence):
    with pytest.raises(ValueError, match=sentence):
        build()
