"""Checks and readers of arguments that commands share."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import typer


def one_of(choices: Sequence[str]) -> Callable[[Any], Any]:
    """A check of an option's value or values."""

    def check(given: Any) -> Any:
        from .ir.errors import nearest

        for value in given if isinstance(given, (list, tuple)) else [given]:
            if value is not None and value not in choices:
                raise typer.BadParameter(f"{value!r} is unknown{nearest(value, choices)}")
        return given

    return check


def texts(given: Iterable[str] | None, option: str) -> list[str] | None:
    """Texts with @FILE replaced by the lines of the file; @@ at the start stands for @ itself."""
    found: list[str] = []
    for text in given or ():
        found += _lines(text[1:], option) if re.match("@(?!@)", text) else [re.sub("^@@", "@", text)]
    return found or None


def _lines(file: str, option: str) -> list[str]:
    try:
        lines = Path(file).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise typer.BadParameter(f"the file {file} cannot be read: {reason}; a text that starts with @ is written @@", param_hint=option) from None
    if not (found := [line for line in lines if line.strip()]):
        raise typer.BadParameter(f"the file {file} is empty, expected a text on each line", param_hint=option)
    return found
