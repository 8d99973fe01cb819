"""IDX files are read exactly or not at all; MNIST and Fashion-MNIST are what the field knows them to be."""

import gzip
import hashlib
import struct
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bptoolkit import data
from bptoolkit.checks import check
from bptoolkit.data import fetch, idx

FORMATS = {0x08: "B", 0x09: "b", 0x0B: "h", 0x0C: "i", 0x0D: "f", 0x0E: "d"}  # IDX types in the letters of `struct`


def idx_bytes(shape: tuple[int, ...], numbers, code: int = 0x08) -> bytes:
    """An IDX file written with `struct`, number by number: the oracle of the reader, which uses numpy."""
    header = struct.pack(">BBBB", 0, 0, code, len(shape)) + struct.pack(f">{len(shape)}I", *shape)
    return header + b"".join(struct.pack(f">{FORMATS[code]}", number) for number in numbers)


def known(name: str, content: bytes, *shape: int) -> idx.File:
    return idx.File(name, shape, hashlib.sha256(content).hexdigest())


PIXELS = [(7 * i) % 256 for i in range(6 * 4)]
CONTENT = {
    "train-x": idx_bytes((6, 2, 2), PIXELS),
    "train-y": idx_bytes((6,), [0, 1, 2, 0, 1, 2]),
    "test-x": idx_bytes((3, 2, 2), range(12)),
    "test-y": idx_bytes((3,), [2, 1, 0]),
}
FILES = (
    known("train-x", CONTENT["train-x"], 6, 2, 2),
    known("train-y", CONTENT["train-y"], 6),
    known("test-x", CONTENT["test-x"], 3, 2, 2),
    known("test-y", CONTENT["test-y"], 3),
)
IMAGES = FILES[0]


def small(*mirrors: str) -> idx.Source:
    """A data set of nine images, with the digests of its files."""
    return idx.Source("small", fetch.Home("small", mirrors), FILES, classes=3)


def stored(folder: Path, pack=gzip.compress, **instead: bytes) -> Path:
    """Writes the small data set, with other bytes for the files named in `instead`."""
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / f"{name}.gz").write_bytes(instead.get(name.replace("-", "_"), pack(content)))
    return folder


# Reading any IDX file


def test_a_file_written_by_hand():
    """−2 is ff fe in two bytes, big-endian; the last index is fastest."""
    content = bytes.fromhex("00000b02 00000002 00000003 0001 fffe 0003 0100 0005 8000")
    array = idx.parse(content, "by hand")
    np.testing.assert_array_equal(array, [[1, -2, 3], [256, 5, -32768]])
    assert array.dtype == np.dtype("=i2")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("code", FORMATS)
def test_every_type_comes_back_as_written(tmp_path, code, packed):
    numbers = [1, 2, 3, 100, 101, 127] if code == 0x08 else [-1, 0, 1, 100, -128, 127]
    content = idx_bytes((3, 1, 2), numbers, code)
    (tmp_path / "file").write_bytes(gzip.compress(content) if packed else content)
    array = data.read_idx(tmp_path / "file")
    assert array.shape == (3, 1, 2)
    assert array.ravel().tolist() == numbers
    assert array.dtype.isnative
    assert array.flags.writeable


def test_empty_and_scalar_arrays_are_arrays():
    assert idx.parse(idx_bytes((0, 5), []), "empty").shape == (0, 5)
    assert idx.parse(idx_bytes((), [9]), "scalar") == 9


def test_a_path_may_be_a_string_and_a_missing_one_is_named(tmp_path):
    (tmp_path / "file").write_bytes(CONTENT["test-y"])
    assert data.read_idx(str(tmp_path / "file")).tolist() == [2, 1, 0]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.read_idx(tmp_path / "nowhere")


# Damage

WHOLE, PACKED = CONTENT["train-x"], gzip.compress(CONTENT["train-x"])
DAMAGE = {
    "empty": (b"", "starts with a magic number.*got an empty file"),
    "a web page": (b"<!DOCTYPE html>", "starts with a magic number.*got 3c 21 44 4f"),
    "unknown type": (b"\0\0\x0a" + WHOLE[3:], "TT one of 08 09 0b 0c 0d 0e, got 00 00 0a 03"),
    "half a header": (WHOLE[:9], "16 bytes of IDX header for 3 axes, got 9 bytes: truncated"),
    "truncated": (WHOLE[:-5], "40 bytes, as its header .* got 35 bytes: truncated"),
    "bytes left over": (WHOLE + b"\0", "40 bytes, as its header .* got 41 bytes: bytes left over"),
    "truncated gzip": (PACKED[:-9], r"a whole gzip file, got \d+ bytes that do not unpack"),
    "gzip, first bytes only": (b"\x1f\x8b", "a whole gzip file, got 2 bytes that do not unpack"),
    "gzip, wrong checksum": (PACKED[:-8] + b"\0\0\0\0" + PACKED[-4:], "a whole gzip file.*CRC"),
    "gzip of a truncated file": (gzip.compress(WHOLE[:-5]), "got 35 bytes: truncated"),
    "labels for images": (CONTENT["train-y"], r"uint8 of shape \(6, 2, 2\), got uint8 of shape \(6,\)"),
    "another type": (idx_bytes((6, 2, 2), range(24), 0x09), "uint8 of shape .* got int8 of shape"),
    "one pixel changed": (WHOLE[:-1] + b"\0", f"SHA-256 {IMAGES.sha256}, got [0-9a-f]{{64}}"),
    "more axes than numpy has": (idx_bytes((0,) * 70, []), r"sizes that an array can have, got \(0, 0,"),
    "sizes beyond memory": (idx_bytes((0, 2**32 - 1, 2**32 - 1, 2**32 - 1), []), "sizes that an array can have"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_each_damage_has_its_sentence(cache, damage):
    content, sentence = DAMAGE[damage]
    folder = stored(cache / "small", train_x=content)
    with pytest.raises(ValueError, match=sentence) as caught:
        idx.load(small())
    message = str(caught.value)
    assert message.startswith(f"{folder / 'train-x.gz'}: expected ")
    assert message.endswith("is downloaded afresh.")


def read_or_refuse(content: bytes) -> bool:
    """True if the very array came back, False if a sentence did; anything else fails the test."""
    try:
        array = idx.decode(IMAGES, content, "somewhere")
    except ValueError as error:
        if not str(error).startswith("somewhere: expected "):
            raise
        return False
    assert array.ravel().tolist() == PIXELS
    return True


def test_every_change_of_an_unpacked_file_is_refused():
    assert read_or_refuse(WHOLE)
    for i in range(len(WHOLE)):
        assert not read_or_refuse(WHOLE[:i]), f"cut at byte {i}"
        for bit in range(8):
            flipped = WHOLE[:i] + bytes([WHOLE[i] ^ (1 << bit)]) + WHOLE[i + 1 :]
            assert not read_or_refuse(flipped), f"bit {bit} of byte {i} flipped"


def test_every_change_of_a_packed_file_is_harmless_or_refused():
    """Harmless is what says nothing of the content, such as the time, level and system in bytes 4 … 9."""
    for i in range(len(PACKED)):
        assert not read_or_refuse(PACKED[:i]), f"cut at byte {i}"
        for bit in range(8):
            intact = read_or_refuse(PACKED[:i] + bytes([PACKED[i] ^ (1 << bit)]) + PACKED[i + 1 :])
            if 4 <= i < 10:
                assert intact, f"bit {bit} of byte {i}, in the header, flipped"
            if i < 3 or i >= len(PACKED) - 8:
                assert not intact, f"bit {bit} of byte {i}, in the magic number or the checksum, flipped"


# Loading


@pytest.mark.parametrize("pack", [gzip.compress, bytes], ids=["packed", "plain"])
def test_a_data_set_is_what_its_files_hold(cache, pack):
    stored(cache / "small", pack)
    dataset = check(idx.load(small()))
    np.testing.assert_array_equal(dataset.train.x, np.reshape(PIXELS, (6, 2, 2)))
    np.testing.assert_array_equal(dataset.train.y, [0, 1, 2, 0, 1, 2])
    np.testing.assert_array_equal(dataset.test.x, np.reshape(range(12), (3, 2, 2)))
    np.testing.assert_array_equal(dataset.test.y, [2, 1, 0])
    assert (dataset.classes, dataset.scale, dataset.name) == (3, 255.0, "small")
    for rows in (dataset.train, dataset.test):
        assert isinstance(rows.x, jax.Array)
        assert (rows.x.dtype, rows.y.dtype) == (jnp.uint8, jnp.int32)


def test_files_may_lie_in_different_places_and_the_rest_is_downloaded(cache, tmp_path, monkeypatch, server, answer):
    monkeypatch.setenv("BPTOOLKIT_DATA", str(tmp_path / "mine"))
    folder = stored(tmp_path / "mine" / "small")
    (cache / "small").mkdir(parents=True)
    (folder / "train-y.gz").rename(cache / "small" / "train-y.gz")
    (folder / "test-x.gz").unlink()
    server.answers["/test-x.gz"] = [answer(gzip.compress(CONTENT["test-x"]))]
    np.testing.assert_array_equal(idx.load(small(server.url)).test.x.ravel(), range(12))
    assert server.asked == ["/test-x.gz"]


def test_a_whole_set_is_downloaded_past_a_mirror_with_another_version(cache, server, answer):
    """The first mirror's files are valid IDX of the right shape: only the digest tells them apart."""
    for name, content in CONTENT.items():
        server.answers[f"/old/{name}.gz"] = [answer(gzip.compress(content[:-1] + b"\x09"))]
        server.answers[f"/new/{name}.gz"] = [answer(gzip.compress(content))]
    dataset = idx.load(small(f"{server.url}old/", f"{server.url}new/"))
    assert dataset.train.y.tolist() == [0, 1, 2, 0, 1, 2]
    assert server.asked == [f"/{mirror}/{name}.gz" for name in CONTENT for mirror in ("old", "new")]
    assert sorted(path.name for path in (cache / "small").iterdir()) == sorted(f"{name}.gz" for name in CONTENT)


@pytest.mark.parametrize(("limit", "train", "test"), [(None, 6, 3), (1, 1, 1), (4, 4, 3), (np.int64(99), 6, 3)])
def test_a_limit_keeps_the_first_rows_of_both_parts(cache, limit, train, test):
    stored(cache / "small")
    dataset = idx.load(small(), limit)
    np.testing.assert_array_equal(dataset.train.x, np.reshape(PIXELS, (6, 2, 2))[:train])
    assert dataset.train.y.tolist() == [0, 1, 2, 0, 1, 2][:train]
    assert dataset.test.y.tolist() == [2, 1, 0][:test]


@pytest.mark.parametrize("limit", [0, -1, 2.5, True, "3"])
@pytest.mark.parametrize("loader", [data.mnist, data.fashion_mnist])
def test_a_limit_that_is_no_positive_integer_is_refused_before_anything_is_read(cache, loader, limit):
    with pytest.raises(ValueError, match="limit must be a positive integer or None, got"):
        loader(limit)
    assert not cache.exists()


def test_damage_beyond_the_limit_is_refused(cache):
    stored(cache / "small", train_x=DAMAGE["one pixel changed"][0])
    with pytest.raises(ValueError, match="SHA-256"):
        idx.load(small(), limit=1)


def test_available_means_all_four_files_and_asks_nobody(cache, server, monkeypatch):
    monkeypatch.setitem(idx.SOURCES, "small", small(server.url))
    assert not data.available("small")
    folder = stored(cache / "small")
    assert data.available("small")
    (folder / "test-y.gz").unlink()
    assert not data.available("small")
    assert server.asked == []


def test_an_unknown_name_is_told_the_known_ones():
    with pytest.raises(ValueError, match="one of mnist, fashion_mnist, got 'cifar'"):
        data.available("cifar")
    with pytest.raises(ValueError, match=r"got \['mnist'\]"):
        data.available(["mnist"])


# The real images


@pytest.mark.mnist
def test_mnist_is_mnist():
    """Class sizes and the mean and deviation of the training pixels (0.1307, 0.3081) are those the field publishes."""
    dataset = check(data.mnist())
    assert (dataset.train.x.shape, dataset.test.x.shape) == ((60000, 28, 28), (10000, 28, 28))
    sizes = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(dataset.train.y).tolist() == sizes
    pixels = np.asarray(dataset.train.x, np.float32) / dataset.scale
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (0.1307, 0.3081)


@pytest.mark.mnist
def test_fashion_mnist_is_fashion_mnist():
    """6000 and 1000 of each class; mean and deviation of the training pixels as published (0.2860, 0.3530)."""
    dataset = check(data.fashion_mnist())
    assert np.bincount(dataset.train.y).tolist() == [6000] * 10
    assert np.bincount(dataset.test.y).tolist() == [1000] * 10
    pixels = np.asarray(dataset.train.x, np.float32) / dataset.scale
    assert (round(float(pixels.mean()), 4), round(float(pixels.std()), 4)) == (0.286, 0.353)
