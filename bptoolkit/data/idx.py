"""MNIST and Fashion-MNIST, and the IDX files they are kept in.

IDX is: 0, 0, a type, the number of axes d; then d sizes as big-endian uint32; then the numbers, big-endian, last index
fastest.  Each kind of damage has its own sentence: packing, magic number, length, shape, and last the SHA-256 of the
unpacked file, which is always checked.

References: LeCun, Cortes & Burges, The MNIST database; Xiao, Rasul & Vollgraf (2017), arXiv:1708.07747.
"""

import gzip
import hashlib
import math
import operator
import os
import zlib
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from bptoolkit.data import fetch
from bptoolkit.types import Dataset, Rows

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class File(NamedTuple):
    """What one file must hold, in uint8."""

    name: str
    shape: tuple[int, ...]
    sha256: str  # of the unpacked file


class Source(NamedTuple):
    """A data set in four IDX files: training images and labels, test images and labels."""

    name: str
    home: fetch.Home
    files: tuple[File, File, File, File]
    classes: int = 10


def _files(train_x: str, train_y: str, test_x: str, test_y: str) -> tuple[File, File, File, File]:
    """Both data sets have the same file names and shapes; they differ in the digests."""
    return (
        File("train-images-idx3-ubyte", (60000, 28, 28), train_x),
        File("train-labels-idx1-ubyte", (60000,), train_y),
        File("t10k-images-idx3-ubyte", (10000, 28, 28), test_x),
        File("t10k-labels-idx1-ubyte", (10000,), test_y),
    )


MNIST = Source(
    "mnist",
    fetch.Home(
        folder="mnist",
        mirrors=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
    ),
    _files(
        train_x="ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        train_y="65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        test_x="0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        test_y="ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)

FASHION_MNIST = Source(
    "fashion_mnist",
    fetch.Home(
        folder="fashion-mnist",
        mirrors=(
            "https://storage.googleapis.com/tensorflow/tf-keras-datasets/",
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ),
        system=(Path("/usr/share/datasets/fashion-mnist"),),  # Debian's dataset-fashion-mnist
    ),
    _files(
        train_x="c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        train_y="bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        test_x="5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        test_y="0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
)

SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST)}


def mnist(limit: int | None = None) -> Dataset:
    """70000 handwritten digits: x uint8 of shape (n, 28, 28), 0 … 255 (scale 255); y int32, 0 … 9.

    The files, packed or not, are looked for in `$BPTOOLKIT_DATA/mnist`, then in `mnist` in the user cache; failing
    that they are downloaded into the cache.  (Not in `$BPTOOLKIT_DATA` itself: Fashion-MNIST has the same file names.)

    Args:
      limit: keep the first `limit` training rows and the first `limit` test rows; all by default.

    Raises:
      ValueError: a file is not what it should be, or limit is not a positive integer.
      FileNotFoundError: the files are nowhere, and no mirror gave them.
    """
    return load(MNIST, limit)


def fashion_mnist(limit: int | None = None) -> Dataset:
    """70000 pictures of clothes; as `mnist` in every other way.

    Looked for in `$BPTOOLKIT_DATA/fashion-mnist`, in `fashion-mnist` in the user cache, and where Debian's package
    installs it.

    Args:
      limit: as for `mnist`.

    Raises:
      ValueError, FileNotFoundError: as for `mnist`.
    """
    return load(FASHION_MNIST, limit)


def available(name: str) -> bool:
    """Are all four files of a data set on this machine?  Looks at names only; downloads nothing.

    Args:
      name: "mnist" or "fashion_mnist".

    Raises:
      ValueError: another name.
    """
    if not isinstance(name, str) or name not in SOURCES:
        raise ValueError(f"name must be one of {', '.join(SOURCES)}, got {name!r}.")
    source = SOURCES[name]
    return all(fetch.find(source.home, file.name) is not None for file in source.files)


def load(source: Source, limit: int | None = None) -> Dataset:
    """The data set, every file of it checked, whatever the limit."""
    stop = None if limit is None else _positive("limit", limit)
    train_x, train_y, test_x, test_y = (
        fetch.obtain(source.home, file.name, partial(decode, file)) for file in source.files
    )

    def rows(x: np.ndarray, y: np.ndarray) -> Rows:
        return Rows(jnp.array(x[:stop]), jnp.array(y[:stop], jnp.int32))

    return Dataset(rows(train_x, train_y), rows(test_x, test_y), source.classes, 255.0, source.name)


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file of any type, packed with gzip or not, in the machine's byte order.

    Args:
      path: of the file.

    Raises:
      ValueError: the file is damaged or no IDX file.
      OSError: it cannot be read.
    """
    origin = os.fspath(path)
    return parse(unpack(Path(origin).read_bytes(), origin), origin)


def decode(file: File, content: bytes, origin: str) -> np.ndarray:
    """The array in a file that is known in advance: its shape and its digest must be those of `file`."""
    content = unpack(content, origin)
    array = parse(content, origin)
    if array.dtype != np.uint8 or array.shape != file.shape:
        raise _damaged(origin, f"uint8 of shape {file.shape}", f"{array.dtype} of shape {array.shape}")
    digest = hashlib.sha256(content).hexdigest()
    if digest != file.sha256:
        raise _damaged(origin, f"unpacked content with SHA-256 {file.sha256}", digest)
    return array


def unpack(content: bytes, origin: str) -> bytes:
    """The content without its gzip packing, if it has any.

    The content decides, not the name: a server may unpack what it sends as .gz.
    """
    if not content.startswith(b"\x1f\x8b"):
        return content
    try:
        return gzip.decompress(content)
    except (EOFError, OSError, zlib.error) as error:
        raise _damaged(origin, "a whole gzip file", f"{len(content)} bytes that do not unpack ({error})") from error


def parse(content: bytes, origin: str) -> np.ndarray:
    """The array in the bytes of an unpacked IDX file; a copy that may be written to."""
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES:
        magic = "a magic number 00 00 TT DD with TT one of " + " ".join(f"{code:02x}" for code in DTYPES)
        raise _damaged(origin, f"an IDX file, which starts with {magic}", content[:4].hex(" ") or "an empty file")
    dtype, axes = np.dtype(DTYPES[content[2]]), content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise _damaged(origin, f"{start} bytes of IDX header for {axes} axes", f"{len(content)} bytes: truncated")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", axes, offset=4))
    length = start + math.prod(shape) * dtype.itemsize
    if len(content) != length:
        fault = "truncated" if len(content) < length else "bytes left over"
        raise _damaged(origin, f"{length} bytes, as its header {shape} says", f"{len(content)} bytes: {fault}")
    try:
        array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    except ValueError as error:  # a size of 0 beside sizes, or a number of axes, beyond numpy's
        raise _damaged(origin, "sizes that an array can have", f"{shape} ({error})") from error
    return array.astype(dtype.newbyteorder("="))


def _damaged(origin: str, expected: str, got: str) -> ValueError:
    return ValueError(
        f"{origin}: expected {expected}, got {got}.\n"
        "Replace the file with an intact copy; or remove it, and a data set known here is downloaded afresh."
    )


def _positive(name: str, number: int) -> int:
    try:
        value = 0 if isinstance(number, bool) else operator.index(number)
    except TypeError:
        value = 0
    if value < 1:
        raise ValueError(f"{name} must be a positive integer or None, got {number!r}.")
    return value
