"""Malformed data: IDX files damaged in each way, and arrays that nothing can be learned from."""

import gzip
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import data
from bptoolkit.checks import check
from bptoolkit.data.idx import read_idx
from bptoolkit.types import Dataset, Rows
from tests.malformed.damage import DAMAGE, FOLDER, damage, flipped

IMAGES = struct.pack(">4B3I", 0, 0, 8, 3, 5, 4, 4) + bytes(range(80))
HEADERS = {
    "another magic number": struct.pack(">4B3I", 0, 1, 8, 3, 5, 4, 4),
    "an unknown type": struct.pack(">4B3I", 0, 0, 7, 3, 5, 4, 4),
    "more rows than bytes": struct.pack(">4B3I", 0, 0, 8, 3, 6, 4, 4),
    "fewer rows than bytes": struct.pack(">4B3I", 0, 0, 8, 3, 4, 4, 4),
    "huge sizes": struct.pack(">4B3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1),
    "more axes than sizes": struct.pack(">4B1I", 0, 0, 8, 255, 5),
    "a picture": b"\x89PNG\r\n\x1a\n",
    "a page": b"<!DOCTYPE html><html>",
}
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte")


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_malformed_header_is_refused_in_words(header, packed, refused, tmp_path):
    path = tmp_path / "images"
    content = HEADERS[header] + IMAGES[16:]
    path.write_bytes(gzip.compress(content) if packed else content)
    assert str(path) in refused(read_idx, path)


@pytest.mark.parametrize("how", [how for how in DAMAGE if DAMAGE[how](b"x") not in (None, FOLDER)] + ["flipped"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_damaged_file_is_refused_in_words(how, packed, refused, tmp_path):
    """A bit flipped in a packed file breaks its checksum; in a plain one it may be a header's or nobody's."""
    path = tmp_path / "images"
    path.write_bytes(gzip.compress(IMAGES, mtime=0) if packed else IMAGES)
    damage(path, DAMAGE.get(how, flipped(2) if packed else (lambda content: b"\x01" + content[1:])))
    assert str(path) in refused(read_idx, path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("how", [how for how in DAMAGE if how not in ("missing", "a folder")])
def test_a_damaged_file_of_mnist_is_refused_before_any_other_is_looked_for(name, how, refused, tmp_path, monkeypatch):
    """The first file that is looked for is damaged; a file that is there but wrong is never passed over."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    whole = IMAGES if "images" in name else struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes(5)
    for file in FILES:
        (folder / file).write_bytes(whole)
    damage(folder / name, DAMAGE[how])
    monkeypatch.setenv("BPTOOLKIT_DATA", str(tmp_path))
    assert str(folder) in refused(data.mnist)


X, Y = np.zeros((4, 2), np.float32), np.array([0, 1, 2, 0], np.int32)
PARTS = {
    "no rows": (X[:0], Y[:0]),
    "rows without labels": (X, Y[:3]),
    "NaN": (np.where(np.eye(4, 2) > 0, np.nan, X).astype(np.float32), Y),
    "infinity": (np.where(np.eye(4, 2) > 0, np.inf, X).astype(np.float32), Y),
    "a label too large": (X, Y + 1),
    "a label below 0": (X, Y - 1),
    "labels that are floats": (X, Y.astype(np.float32)),
    "complex pixels": (X.astype(np.complex64), Y),
    "a number": (np.float32(0), Y),
}


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("case", PARTS)
def test_arrays_that_cannot_be_learned_from_are_refused_in_words(case, part, refused):
    good, bad = (Rows(*(jnp.asarray(array) for array in rows)) for rows in ((X, Y), PARTS[case]))
    refused(check, Dataset(**{"train": good, "test": good, part: bad}, classes=3))


def test_good_ones_are_taken(tmp_path):
    """The negative control."""
    (tmp_path / "images").write_bytes(IMAGES)
    np.testing.assert_array_equal(read_idx(tmp_path / "images").ravel(), np.arange(80))
    good = Rows(jnp.asarray(X), jnp.asarray(Y))
    assert check(Dataset(good, good, 3)).classes == 3
