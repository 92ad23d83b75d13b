"""Repetition until a condition fails, as a single op: how often is known only when the graph runs."""

from __future__ import annotations

from functools import partial

from ..op import op
from ..signature import expects
from ..types import Type
from .elementwise import where
from .loop import body_values, expects_body


def _while_loop_rule(again, *xs, body, carries, most):
    made = [v.type for v in body.outputs.values()]
    expects(again == Type("bool", ()), f"again is {again}, expected bool[]")
    expects(most > 0 and carries > 0, f"most={most} and carries={carries}, expected 1 or more of each")
    expects(len(made) == carries + 1, f"body gives {len(made)} values, expected {carries + 1}: whether to go on, and what it carries")
    expects(made[0] == again, f"body's first output is {made[0]}, expected bool[]: whether to go on")
    expects_body(xs, body, [v.type for v in body.inputs], made[1:])
    return made[1:]


@op(_while_loop_rule)
def while_loop(again, *xs, body, carries, most):
    """`body` run while `again` holds and at most `most` times, each time on what it gave before.

    Operands after `again` are what is carried along and then what all iterations share, as are the inputs of `body`. It gives whether to go on,
    bool[], and what is carried on, of the same types; results are what is carried at the end. Attributes in `body` may be sizes over
    `_iteration`, which counts from 0.
    """
    carried, shared = xs[:carries], xs[carries:]
    for i in range(most):
        if not again:
            break
        again, *carried = body(*carried, *shared, index=i)
    return tuple(carried) if carries > 1 else carried[0]


@while_loop.decompose
def _(again, *xs, body, carries, most):
    """All iterations, of which those after the end change nothing."""
    carried, shared, run = xs[:carries], xs[carries:], partial(body_values, body)
    for i in range(most):
        further, *new = run(*carried, *shared, index=i)
        carried = tuple(where(again, y, x) for x, y in zip(carried, new, strict=True))
        again = again & further
    return carried
