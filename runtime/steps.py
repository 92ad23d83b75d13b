"""What long work says of itself while it goes on."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

LATE = 1.0  # seconds after which work says what it is doing


class Steps:
    """Says on the error stream what is being done, once the work has taken a second: a moving line on a terminal, else a line for each step."""

    def __init__(self) -> None:
        self._lock, self._text, self._late, self._bar = threading.Lock(), "", False, None
        self._timer = threading.Timer(LATE, self._begin)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, text: str) -> None:
        with self._lock:
            self._text = text
            self._show()

    def _begin(self) -> None:
        with self._lock:
            self._late = True
            self._show()

    def _show(self) -> None:
        if not (self._late and self._text):
            return
        if not sys.stderr.isatty():
            print(f"{self._text} ...", file=sys.stderr, flush=True)
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

            columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._text)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], description=self._text)

    def end(self) -> None:
        """Nothing more is said."""
        self._timer.cancel()
        with self._lock:
            self._text = ""
            if self._bar is not None:
                self._bar.stop()


@contextmanager
def steps() -> Iterator[Steps]:
    """Steps that end with the block."""
    said = Steps()
    try:
        yield said
    finally:
        said.end()
