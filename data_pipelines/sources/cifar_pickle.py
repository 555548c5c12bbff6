"""Reads the pickles of CIFAR safely.

A pickle is a program, and may call anything that it names. Here it can name only the three parts of a NumPy array, and gets
harmless substitutes for them.
"""

from __future__ import annotations

import io
import pickle

import numpy as np

from data_pipelines.errors import DataError


def unpickle_batch(origin: str, data: bytes) -> dict[object, object]:
    """Read the dictionary in a pickle. Raises DataError for any other content. Nothing that the pickle names is called."""
    try:
        content = _PixelUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{origin} {error}; nothing of it was run: download the archive again from its publisher.") from None
    except Exception as error:  # a pickle is a program, so a damaged one may raise anything
        raise DataError(f"{origin} is damaged ({type(error).__name__}: {error}); download the archive again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{origin} holds no dictionary; download the archive again.")
    return content


class _Dtype:
    """Replaces numpy.dtype. It keeps the name of the type only."""

    name: object = None

    def __init__(self, name: object, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        """Ignore byte order, fields and flags: unsigned bytes have none."""


class PixelArray:
    """Replaces a NumPy array that is being unpickled. It accepts unsigned bytes only.

    NumPy itself lets a pickle declare bytes to be objects. That gives a hostile pickle access to any address in memory.
    """

    value: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """Ignore class, shape and type code: __setstate__ gets the real ones."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.name != b"u1":
            raise DataError(f"holds an array of type {getattr(dtype, 'name', dtype)!r:.40}, where only uint8 is expected")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


_SUBSTITUTES: dict[tuple[str, str], type | None] = {
    ("numpy.core.multiarray", "_reconstruct"): PixelArray,
    ("numpy._core.multiarray", "_reconstruct"): PixelArray,  # the name in NumPy 2
    ("numpy", "ndarray"): None,  # only used as the first argument of _reconstruct, which ignores it
    ("numpy", "dtype"): _Dtype,
}


class _PixelUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, bytes and arrays of unsigned bytes, and refuses all other types."""

    def find_class(self, module: str, name: str, /) -> type | None:
        if (module, name) not in _SUBSTITUTES:
            raise DataError(f"names {module}.{name}, which pixels and labels do not need")
        return _SUBSTITUTES[module, name]
