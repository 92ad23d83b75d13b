"""Runs every benchmark and writes RESULTS.md beside this file."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import WORK, machine, rival

RESULTS = Path(__file__).with_name("RESULTS.md")
SCRIPTS = ("export", "latency", "eager", "mixed_lengths", "prefill", "decode", "quantized", "sessions", "training_step", "compile_time")
SCRIPTS += ("long_sequences",)
HEAD = """# Measured

Written by `make bench`. Rivals run in an environment of their own, with the versions in `rivals.txt`.
"""


def main(names: list[str]) -> None:
    """One script after another, each in a process of its own; RESULTS.md has the latest table of each, and is written after each."""
    tables = WORK / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    where, failed = [f"- {line}" for line in machine()], []
    for name in names:
        print(f"measuring: {name}", flush=True)
        done = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
        text = f"## {name}\n\nfailed\n" if done.returncode else done.stdout[done.stdout.find("## ") :]
        (tables / f"{name}.md").write_text(text, encoding="utf-8")
        print(text, flush=True)
        _write(tables, where)
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def _write(tables: Path, where: list[str]) -> None:
    parts = [HEAD, "\n".join(where) + "\n"]
    if rival("python") is None:
        parts.append("The rivals are not installed here: only our side was measured.\n")
    parts += [(tables / f"{name}.md").read_text(encoding="utf-8") for name in SCRIPTS if (tables / f"{name}.md").exists()]
    RESULTS.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SCRIPTS), help=f"of {', '.join(SCRIPTS)}")
    main(parser.parse_args().names)
