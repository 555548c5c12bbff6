"""Translates the arguments that timm gives to models into keys of the configuration."""

from __future__ import annotations

from typing import Any

from data_pipelines.errors import UserError

ALIASES = {"in_chans": "in_channels", "drop_path_rate": "drop_path", "bn_momentum": "batch_norm_momentum"}
"""timm's names for keys that we have."""

NO_DROPOUT = "the networks have no dropout, only drop_path_rate, which drops residual branches"
ONLY_VALUES = {
    "drop_rate": (0.0, NO_DROPOUT),
    "attn_drop_rate": (0.0, NO_DROPOUT),
    "proj_drop_rate": (0.0, NO_DROPOUT),
    "drop_block_rate": (0.0, NO_DROPOUT),
    "global_pool": ("avg", "the head takes the mean over tokens and time steps"),
    "bn_eps": (1e-5, "the public networks have this one"),
}
"""Arguments that fit with one value only, and the reason."""


def keys_of(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments by the names of our keys, without those whose only value was given.

    Raises UserError for another value, and for a key that is given by both names.
    """
    for name, (only, reason) in ONLY_VALUES.items():
        if arguments.get(name, only) != only:
            raise UserError(f"{name} must be {only}, got {arguments[name]!r}: {reason}")
    left = {name: value for name, value in arguments.items() if name not in ONLY_VALUES}
    keys = {ALIASES.get(name, name): value for name, value in left.items()}
    if len(keys) < len(left):
        raise UserError(f"the same key is given by two names, of {', '.join(f'{ours} = {theirs}' for theirs, ours in ALIASES.items())}")
    return keys


def side_of(img_size: int | tuple[int, int], stride: int) -> int:
    """Return the side of the square images that img_size says, in pixels. Raises UserError unless a network of this stride takes them."""
    sides = set(img_size) if isinstance(img_size, tuple | list) else {img_size}
    side = sides.pop()
    if sides or not isinstance(side, int) or side < 1 or side % stride:
        raise UserError(f"img_size must be the side of square images, a multiple of {stride}, got {img_size!r}; a call takes any H and W")
    return side
