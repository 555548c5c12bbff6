"""TODO."""

from __future__ import annotations

import io
import pickle

import numpy as np

from data_pipelines.errors import DataError


def _unpickle(place: str, data: bytes) -> dict[object, object]:
    """The dictionary in a pickle. Raises DataError for anything else; nothing that the pickle names is called."""
    try:
        content = _PixelUnpickler(io.BytesIO(data), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{place} {error}; nothing of it was run: download the archive again from its publisher.") from None
    except Exception as error:  # a damaged pickle is a damaged program, and may fail in any way
        raise DataError(f"{place} is damaged ({type(error).__name__}: {error}); download the archive again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{place} holds no dictionary; download the archive again.")
    return content


class _Dtype:
    """Stands for numpy.dtype: keeps the name of the type."""

    name: object = None

    def __init__(self, name: object, *_: object) -> None:
        self.name = name

    def __setstate__(self, _: object) -> None:
        """Byte order, fields and flags, of which unsigned bytes have none."""


class _Array:
    """Stands for numpy's array under reconstruction, but takes only unsigned bytes.

    numpy's own would let a pickle declare objects to be bytes, and bytes to be objects: a way to any address in memory.
    """

    value: np.ndarray | None = None

    def __init__(self, *_: object) -> None:
        """Class, first shape and type code, which the state replaces."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], object, bool, bytes]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Dtype) or dtype.name != b"u1":
            raise DataError(f"holds an array of type {getattr(dtype, 'name', dtype)!r:.40}, where only uint8 is expected")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


_STAND_INS: dict[tuple[str, str], type | None] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,  # as numpy 2 names it
    ("numpy", "ndarray"): None,  # only ever the first argument of the above
    ("numpy", "dtype"): _Dtype,
}


class _PixelUnpickler(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, bytes and arrays of unsigned bytes."""

    def find_class(self, module: str, name: str, /) -> type | None:
        if (module, name) not in _STAND_INS:
            raise DataError(f"names {module}.{name}, which pixels and labels do not need")
        return _STAND_INS[module, name]
