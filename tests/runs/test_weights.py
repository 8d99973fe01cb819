"""Weights in a file: any tree comes back as it was, in another process, and damage is noticed."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit.models import from_nnx
from bptoolkit.runs import RunError, load_params
from bptoolkit.runs.weights import load_weights, save_weights


class Gate(NamedTuple):
    weight: np.ndarray
    bias: np.ndarray | None


TREES = {
    "one leaf": np.arange(3.0),
    "list of dicts": [{"w": np.ones((2, 3)), "b": np.zeros(3, np.float32)}, {}],
    "tuples": (np.arange(2), (), (np.array(True),)),
    "named tuple": {"gate": Gate(np.ones(2), None)},
    "whole numbers as keys": {2: np.ones(1), 10: np.zeros(1)},
    "narrow and empty": [np.asarray(jnp.ones(2, jnp.bfloat16)), np.zeros((0, 3))],
}


@pytest.mark.parametrize("name", TREES)
def test_a_tree_comes_back(tmp_path, name):
    tree = TREES[name]
    save_weights(tmp_path / "a.npz", tree)
    back = load_weights(tmp_path / "a.npz")
    for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(back), strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
    assert repr(jax.tree.structure(back)) == repr(jax.tree.structure(tree))


def test_prng_keys_come_back(tmp_path):
    save_weights(tmp_path / "a.npz", {"key": jax.random.key(7)})
    back = load_weights(tmp_path / "a.npz")["key"]
    assert back.dtype == jax.random.key(7).dtype
    np.testing.assert_array_equal(jax.random.key_data(back), jax.random.key_data(jax.random.key(7)))


def test_nodes_of_another_type_come_back_as_dicts_with_the_same_leaves(tmp_path):
    from flax import nnx

    params = from_nnx(lambda rngs: nnx.Linear(2, 3, rngs=rngs)).init(jax.random.key(0))
    save_weights(tmp_path / "a.npz", params)
    leaves = jax.tree.leaves(load_weights(tmp_path / "a.npz"))
    for one, other in zip(jax.tree.leaves(params), leaves, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_file_is_an_npz_that_numpy_reads(tmp_path):
    save_weights(tmp_path / "a.npz", [np.ones(2)])
    with np.load(tmp_path / "a.npz") as file:
        np.testing.assert_array_equal(file["leaf0"], np.ones(2))


@pytest.mark.parametrize("harm", ["cut", "flip"])
def test_a_damaged_file_is_refused_with_a_sentence(tmp_path, harm):
    path = tmp_path / "params" / "a" / "b" / "c.npz"
    save_weights(path, {"w": np.arange(40.0)})
    whole = path.read_bytes()
    places = [0, *range(1, len(whole), 97)] if harm == "cut" else [whole.find(np.arange(40.0).tobytes()) + 9]
    for place in places:
        path.write_bytes(whole[:place] if harm == "cut" else whole[:place] + b"\xff" + whole[place + 1 :])
        with pytest.raises(RunError, match="must hold parameters, and cannot be read"):
            load_params(tmp_path)


@pytest.mark.parametrize("content", [b"", b"weights", b"PK\x03\x04"])
def test_another_file_is_refused(tmp_path, content):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(RunError, match="must hold parameters"):
        load_weights(tmp_path / "a.npz")


def test_a_run_without_weights_is_one_sentence(tmp_path):
    with pytest.raises(RunError, match=r"holds no parameters \(yet\)"):
        load_params(tmp_path)
