"""Runs every benchmark and writes RESULTS.md beside this file."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from common import WORK, machine, rival

RESULTS = Path(__file__).with_name("RESULTS.md")
SCRIPTS = ("export", "latency", "eager", "mixed_lengths", "prefill", "decode", "quantized", "sessions", "training_step", "compile_time")
HEAD = """# Measured

Written by `make bench`. Rivals run in an environment of their own, with the versions in `rivals.txt`.
"""


def main(names: list[str]) -> None:
    """One script after another, each in a process of its own; a table is written as soon as it is there."""
    WORK.mkdir(parents=True, exist_ok=True)
    parts = [HEAD, "\n".join(f"- {line}" for line in machine()) + "\n"]
    if rival("python") is None:
        parts.append("The rivals are not installed here: only our side was measured.\n")
    failed = []
    for name in names:
        print(f"measuring: {name}", flush=True)
        done = subprocess.run([sys.executable, str(Path(__file__).with_name(f"{name}.py"))], stdout=subprocess.PIPE, text=True)
        if done.returncode:
            failed.append(name)
        parts.append(done.stdout[done.stdout.find("## ") :] if not done.returncode else f"## {name}\n\nfailed\n")
        print(parts[-1], flush=True)
        RESULTS.write_text("\n".join(parts), encoding="utf-8")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(SCRIPTS), help=f"of {', '.join(SCRIPTS)}")
    main(parser.parse_args().names)
