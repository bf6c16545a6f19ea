"""Damage to files as disks, copies and people do it: random, by a seed."""

import shutil

import numpy as np


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(folder, random):
    """One bit of a file."""
    path = _choose(folder, random)
    data = bytearray(path.read_bytes())
    data[random.integers(len(data))] ^= 1 << random.integers(8)
    path.write_bytes(data)


def truncate(folder, random):
    path = _choose(folder, random)
    path.write_bytes(path.read_bytes()[: random.integers(path.stat().st_size)])


def delete(folder, random):
    _choose(folder, random).unlink()


def zero(folder, random):
    """32 bytes of a file, or all of a shorter one, become zero."""
    path = _choose(folder, random)
    data = bytearray(path.read_bytes())
    start = random.integers(max(1, len(data) - 32))
    data[start : start + 32] = bytes(len(data[start : start + 32]))
    path.write_bytes(data)


def extra(folder, random):
    """A file that was not written."""
    parent = _choose(folder, random).parent
    (parent / f"extra_{random.integers(1000)}").write_bytes(random.bytes(50))


def swap(folder, random):
    """Two files exchange their names."""
    first, second = _choose(folder, random), _choose(folder, random)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


DAMAGES = {function.__name__: function for function in (flip, truncate, delete, zero, extra, swap)}


def damage(folder, kind, seed):
    """Damage a folder. Returns whether that has changed any bytes."""
    original = contents(folder)
    DAMAGES[kind](folder, np.random.default_rng(seed))
    return contents(folder) != original


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in files(folder)}


def copy(source, target):
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target)
    return target


def _choose(folder, random):
    """A file, small ones as often as large ones."""
    paths = [path for path in files(folder) if path.stat().st_size]
    return paths[random.integers(len(paths))]
