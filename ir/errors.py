"""Every error that Interlingua raises on purpose, and the suggestion of a nearest name.

The first line of a message names the thing, what it has and what was expected; what follows says where, and what to do.
`exit_code` is what the command line ends with: 2 for wrong use, 1 for work that failed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InterlinguaError(Exception):
    """The base of all errors that are part of the product."""

    exit_code = 1


class ShapeError(InterlinguaError, TypeError):
    """Operands whose types do not fit an op."""


class MissingOperandError(ShapeError):
    """An operand that an op cannot do without."""


class CheckpointError(InterlinguaError, ValueError):
    """A checkpoint that is corrupt, hostile, or lacks what the model needs."""


class ParityError(InterlinguaError, AssertionError):
    """Numbers that differ from the float64 reference by more than rounding."""


class TargetError(InterlinguaError, NotImplementedError):
    """An op, opset or device that a target cannot express."""


class UsageError(InterlinguaError, ValueError):
    """A request that cannot be meant: an unknown name, a missing file, an existing output."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration field whose value is unknown or not supported."""


class InputError(UsageError):
    """A run-time input of the wrong name, rank, dtype or size."""


class MissingExtraError(UsageError, ImportError):
    """An optional framework that is not installed."""

    def __init__(self, extra: str, purpose: str):
        super().__init__(f"{purpose} needs the extra {extra!r}, which is not installed\n  run: pip install 'interlingua[{extra}]'")


def nearest(name: str, choices: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the choice closest to `name`, or the whole list where none is close."""
    choices = sorted(choices)
    lowered = {c.lower(): c for c in choices}
    close = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return f"; did you mean {lowered[close[0]]!r}?" if close else f"; known: {', '.join(choices)}"
