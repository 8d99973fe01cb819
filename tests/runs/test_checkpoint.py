"""A state on the disk: every bit comes back, two are kept, and what is damaged is noticed."""

import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bptoolkit import continual as cl
from bptoolkit import data, learning
from bptoolkit.continual import RunState
from bptoolkit.continual.layout import Layout
from bptoolkit.learning.fit import Curves, Progress
from bptoolkit.models import mlp
from bptoolkit.runs import RunError
from bptoolkit.runs.checkpoint import load_state, save_state
from bptoolkit.runs.collect import cell

ABOUT = {"configuration": {"experiment": "tests.state", "rates": (0.1, 0.2)}, "software": {"jax": "0.10"}}


def make(tasks=1, stretches=2, mark=0.5):
    """A state of three seeds with leaves of every kind."""
    progress = Progress(
        params={"w": np.full((3, 2), mark), "b": jnp.ones((3, 2), jnp.bfloat16)},
        opt_state=(np.arange(3, dtype=np.int32), np.zeros((3, 0))),
        memory={"key": jax.random.split(jax.random.key(3), 3), "full": np.array([True, False, True])},
    )
    curve = lambda i: Curves(*(np.full((3, 4), i + j / 8, np.float32) for j in range(4)), np.full((3, 4), np.nan))
    curves = [curve(i) for i in range(tasks + stretches)]
    tables = tuple(np.full((3, 2, 2), k / 8) for k in range(tasks + 1))
    finite = tuple(np.array([True, False, True]) for _ in range(tasks))
    layout = Layout(3, stacked=False)
    within = tuple(np.full((3, 2), k / 4) for k in range(tasks))
    probed = tuple(np.full((3, 3), k / 2) for k in range(tasks + 1))
    diagnosed = tuple(np.full((3, 6, 2), k / 3) for k in range(tasks + 1))
    told = (within, probed, diagnosed)
    return RunState(progress, tables, tuple(curves[:tasks]), finite, tuple(curves[tasks:]), 1.25, layout, *told)


def numbers(state):
    data = lambda leaf: jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return [np.asarray(data(leaf)) for leaf in jax.tree.leaves(state._replace(layout=(), seconds=np.zeros(1)))]


@pytest.mark.parametrize(("tasks", "stretches"), [(0, 1), (1, 0), (2, 3)])
def test_every_bit_comes_back(tmp_path, tasks, stretches):
    state = make(tasks, stretches)
    save_state(tmp_path / "a", state, ABOUT)
    back, said = load_state(tmp_path / "a", ABOUT)
    assert said == []
    assert (back.seconds, back.layout) == (1.25, Layout(3, stacked=False))
    assert [len(part) for part in back[1:5]] == [tasks + 1, tasks, tasks, stretches]
    for one, other in zip(numbers(state), numbers(back), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())


def test_a_diagnosis_goes_over_the_disk_bit_for_bit_and_into_the_results(tmp_path):
    """Of a run that is taken up after its first task from what was saved."""
    stream = cl.split(data.gaussian_classes(jax.random.key(1), 4, 6, 3), 2)
    made = cl.Experiment(stream, learning.backprop(mlp(3, 4, 4)), optax.sgd(0.1), 2, 4, diagnose=5)
    save = lambda moment, state: moment.task > 1 or save_state(tmp_path, state, ABOUT)
    whole = cl.run(made, jax.random.key(0), 2, on_task=save)
    state, _ = load_state(tmp_path, ABOUT)
    chex.assert_trees_all_equal(cl.run(made, jax.random.key(0), 2, state=state).diagnosis, whole.diagnosis)
    for name, values in whole.diagnosis._asdict().items():
        np.testing.assert_array_equal(cell(whole)[name].transpose("seed", "after", "on").values, values)


def test_the_newest_is_read_and_one_before_it_kept(tmp_path):
    for mark in (1.0, 2.0, 3.0):
        save_state(tmp_path, make(mark=mark), ABOUT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]
    back, _ = load_state(tmp_path, ABOUT)
    assert 3.0 in jax.tree.leaves(back.progress)[1]


def test_where_there_is_none_a_run_starts_anew(tmp_path):
    assert load_state(tmp_path / "none", ABOUT) == (None, [])


def test_what_a_killed_writer_left_is_no_checkpoint(tmp_path):
    save_state(tmp_path, make(), ABOUT)
    shutil.copytree(tmp_path / "000001", tmp_path / ".part")
    (tmp_path / ".part" / "about.json").unlink()
    assert load_state(tmp_path, ABOUT)[1] == []
    save_state(tmp_path, make(), ABOUT)
    assert not (tmp_path / ".part").exists()


@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_harm_to_any_file_is_noticed(tmp_path, harm):
    """Each file in turn of a checkpoint, its own description included."""
    save_state(tmp_path / "good", make(), ABOUT)
    files = [p.relative_to(tmp_path / "good") for p in (tmp_path / "good").rglob("*") if p.is_file()]
    assert len(files) > 20
    for name in files:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        hurt(tmp_path / "bad" / name, harm)
        state, (sentence,) = load_state(tmp_path / "bad", ABOUT)
        assert state is None, name
        assert "is damaged" in sentence
        assert "starts anew" in sentence
        assert list((tmp_path / "bad").iterdir()) == []


def hurt(path, harm):
    data = bytearray(path.read_bytes())
    if harm == "gone" or not data:
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[: len(data) // 2])
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (ABOUT | {"software": {"jax": "0.11"}}, 'software.jax is "0.10" there, "0.11" asked for'),
        (ABOUT | {"configuration": {"experiment": "tests.state", "rates": [0.1]}}, "configuration.rates is"),
        ({"software": ABOUT["software"]}, "configuration is"),
    ],
)
def test_another_run_or_other_software_is_refused_and_nothing_removed(tmp_path, changed, sentence):
    save_state(tmp_path, make(), ABOUT)
    with pytest.raises(RunError, match="start anew") as told:
        load_state(tmp_path, changed)
    assert sentence in str(told.value)
    assert load_state(tmp_path, ABOUT)[0] is not None


def test_a_refused_write_leaves_the_one_before(tmp_path, monkeypatch):
    save_state(tmp_path, make(mark=1.0), ABOUT)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(RunError, match=r"No space left on device.*Free the disk and start the same command"):
            save_state(tmp_path, make(mark=2.0), ABOUT)
    assert [path.name for path in tmp_path.iterdir()] == ["000001"]
    assert load_state(tmp_path, ABOUT)[1] == []
