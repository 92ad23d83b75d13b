"""The measured parity table of the README: python tests/parity_table.py [--write] [--quick]

For each architecture and target the greatest error over all heads at two sizes, in units of what is allowed (`oracle.Case.tolerance`),
and the greatest absolute error. 1.00 is the limit; the test suite fails above it. `--quick` takes one of the two sizes.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

from oracle import Case
from reference_cases import CASES
from targets import TARGETS, available, forward, forward_by_op, load

README = Path(__file__).parent.parent / "README.md"


ROWS = [row for row in CASES if row.id == "A" or "--quick" not in sys.argv]


Error = tuple[float, float]  # in units of the allowed one, absolute


def case_errors(sample: Case, targets: Iterable[str] = TARGETS, *, quick: bool = False) -> dict[str, Error]:
    """The greatest error of a case on each target, over all outputs; `quick`: over the main ones, JAX op by op."""
    model = load(sample)
    names = sample.main if quick else available(model, sample)
    found: dict[str, Error] = {}
    for target in targets:
        with tempfile.TemporaryDirectory() as folder:
            made = (
                forward_by_op(model, target, sample, names)
                if quick and target == "jax"
                else forward(model, target, sample, names, Path(folder), xla=False)
            )
        errors = [(sample.error(name, made[name]) / sample.tolerance(name), sample.error(name, made[name])) for name in names]
        found[target] = greatest(errors)
    return found


def greatest(errors: Iterable[Error]) -> Error:
    """The greatest of both kinds."""
    shares, most = zip((0.0, 0.0), *errors, strict=True)
    return max(shares), max(most)


def measure() -> dict[tuple[str, str], Error]:
    """(architecture, target) -> greatest errors."""
    worst: dict[tuple[str, str], Error] = defaultdict(lambda: (0.0, 0.0))
    for i, row in enumerate(ROWS):
        for target, error in case_errors(row.case()).items():
            worst[row.spec, target] = greatest([worst[row.spec, target], error])
        print(f"\r{i + 1}/{len(ROWS)} {row}", end="", file=sys.stderr, flush=True)
    return worst


def table(worst: dict[tuple[str, str], tuple[float, float]]) -> str:
    """The figures as Markdown."""
    specs = list(dict.fromkeys(row.spec for row in CASES))
    heads = {spec: len({row.head for row in CASES if row.spec == spec}) for spec in specs}
    lines = ["| architecture | heads | " + " | ".join(TARGETS) + " |", "|---|---|" + "---|" * len(TARGETS)]
    for spec in specs:
        cells = [f"{share:.2f} ({most:.0e})" for share, most in (worst[spec, t] for t in TARGETS)]
        lines.append(f"| {spec} | {heads[spec]} | " + " | ".join(cells) + " |")
    note = f"Greatest error against transformers 4.57.6 over {len(ROWS)} cases, every head with padding, all outputs, as a share of what is allowed\n"
    note += "(1e-5 of the output's magnitude, or five times the reference's own float32 error), and absolute. Written by `make parity`."
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    text = table(measure())
    print("\n" + text)
    if "--write" in sys.argv:
        page = README.read_text()
        README.write_text(re.sub(r"(<!-- parity:begin -->\n).*?(<!-- parity:end -->)", lambda m: f"{m[1]}{text}\n{m[2]}", page, flags=re.DOTALL))
