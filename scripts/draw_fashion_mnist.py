#!/usr/bin/env python3
"""Draws the built-in images, assets/fashion-mnist-10k.npz, from the full Fashion-MNIST set.

    python3 scripts/draw_fashion_mnist.py [FOLDER [OUTPUT]]     write the file
    python3 scripts/draw_fashion_mnist.py --check [FOLDER]      compare the committed file with a fresh draw

FOLDER holds the four IDX files, .gz (default: /usr/share/datasets/fashion-mnist, Debian's package dataset-fashion-mnist).
Python's standard library only.

What is drawn: 800 training images of each of the 10 classes from the training files and 200 held-out images of each class
from the test files, 8,000 and 2,000 together. An image's rank is SHA-256 of "fashion-mnist SPLIT INDEX SEED" with SPLIT
"train" or "test", INDEX its position in the file and SEED 0; the lowest ranks of each class are taken and stored in the
order of their ranks. So the draw depends on no random number generator of any language or version.
"""

import gzip
import hashlib
import io
import pathlib
import struct
import sys
import zipfile

SEED = 0
PER_CLASS = {"train": 800, "test": 200}
FILES = {"train": "train", "test": "t10k"}
FOLDER = "/usr/share/datasets/fashion-mnist"
OUTPUT = pathlib.Path(__file__).resolve().parent.parent / "assets" / "fashion-mnist-10k.npz"


def idx(path, dims):
    data = gzip.decompress(path.read_bytes())
    magic, *shape = struct.unpack(">%dI" % (1 + dims), data[: 4 + 4 * dims])
    if magic != 0x800 + dims:
        sys.exit("%s: magic %08x, wanted %08x" % (path, magic, 0x800 + dims))
    return shape, data[4 + 4 * dims :]


def draw(folder, split):
    """(rows, columns, images, labels) of the drawn images."""
    (n, rows, cols), images = idx(folder / (FILES[split] + "-images-idx3-ubyte.gz"), 3)
    (labelled,), labels = idx(folder / (FILES[split] + "-labels-idx1-ubyte.gz"), 1)
    size = rows * cols
    if n != labelled or len(labels) != n or len(images) != n * size:
        sys.exit("%s: %s images and labels do not fit together" % (folder, split))
    rank = [hashlib.sha256(b"fashion-mnist %s %d %d" % (split.encode(), i, SEED)).digest() for i in range(n)]
    taken = dict.fromkeys(range(10), 0)
    chosen = []
    for i in sorted(range(n), key=rank.__getitem__):
        if taken[labels[i]] < PER_CLASS[split]:
            taken[labels[i]] += 1
            chosen.append(i)
    if set(taken.values()) != {PER_CLASS[split]}:
        sys.exit("%s: too few %s images of a class: %s" % (folder, split, taken))
    picked = b"".join(images[i * size : (i + 1) * size] for i in chosen)
    return rows, cols, picked, bytes(labels[i] for i in chosen)


def npy(shape, data):
    """A .npy file of unsigned bytes (format version 1.0), data at a multiple of 64 bytes."""
    head = "{'descr': '|u1', 'fortran_order': False, 'shape': (%s), }" % "".join("%d, " % s for s in shape)
    head += " " * (-(10 + len(head) + 1) % 64) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(head)) + head.encode() + data


def members(folder):
    out = {}
    for split in ("train", "test"):
        rows, cols, images, labels = draw(folder, split)
        out["x_%s.npy" % split] = npy((len(labels), rows, cols), images)
        out["y_%s.npy" % split] = npy((len(labels),), labels)
    return out


def main(args):
    check = args[:1] == ["--check"]
    args = args[1:] if check else args
    fresh = members(pathlib.Path(args[0] if args else FOLDER))
    output = pathlib.Path(args[1]) if len(args) > 1 else OUTPUT
    if check:
        with zipfile.ZipFile(output) as kept:
            same = {name: kept.read(name) for name in kept.namelist()} == fresh
        sys.exit(0 if same else "%s: differs from a fresh draw" % output)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as out:
        for name, data in fresh.items():
            # A fixed date: the same draw gives the same file.
            out.writestr(zipfile.ZipInfo(name, (2017, 8, 25, 0, 0, 0)), data, zipfile.ZIP_DEFLATED, 9)
    output.write_bytes(buffer.getvalue())
    print("%s: %d bytes" % (output, len(buffer.getvalue())))


if __name__ == "__main__":
    main(sys.argv[1:])
