"""Data sets as `types.Dataset`: real images that are checked byte by byte, and synthetic classes made from a key.

    name                    train + test     example            where from
    digits                  1442 + 355       8 × 8, 0 … 16      scikit-learn, no network
    mnist, fashion_mnist    60000 + 10000    28 × 28, 0 … 255   $BPTOOLKIT_DATA, user cache, system, a mirror
    joined                  those of its parts  28 × 28, 0 … 255   image data sets of your own choice
    gaussian_classes        any              any shape, float   a key

`read_idx` reads any other IDX file.
"""

from bptoolkit.data.digits import digits
from bptoolkit.data.idx import available, fashion_mnist, mnist, read_idx
from bptoolkit.data.joined import joined
from bptoolkit.data.synthetic import as_pixels, gaussian_classes

__all__ = ["as_pixels", "available", "digits", "fashion_mnist", "gaussian_classes", "joined", "mnist", "read_idx"]
