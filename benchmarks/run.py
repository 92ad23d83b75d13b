"""Runs every benchmark and writes RESULTS.md beside this file."""

from __future__ import annotations

from pathlib import Path

import eager
import export
import latency
from common import WORK, machine, rival

RESULTS = Path(__file__).with_name("RESULTS.md")
HEAD = """# Measured

Written by `make bench`. Rivals run in an environment of their own, with the versions in `rivals.txt`.
"""


def main() -> None:
    """One table after another, each written as soon as it is there."""
    WORK.mkdir(parents=True, exist_ok=True)
    parts = [HEAD, "\n".join(f"- {line}" for line in machine()) + "\n"]
    if rival("python") is None:
        parts.append("The rivals are not installed here: only our side was measured.\n")
    for benchmark in (export, latency, eager):
        print(f"measuring: {benchmark.__doc__}", flush=True)
        table = benchmark.measure()
        parts.append(str(table))
        print(table, flush=True)
    RESULTS.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
