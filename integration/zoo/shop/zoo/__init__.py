"""One task for every way in which a task can end, and what becomes of its row.

Each module has a part of the `CASES`. A case publishes under task ids that follow from the name
of a run, so that the same run on two workers gives rows that can be laid side by side; it tells
how each of its ids is to end.

`STOCK` are those that a stock worker with `rpc://` is measured by: no chords, and nothing that
only a result backend of our own can know. `LATE` are those in which a state comes after a final
one.
"""

from . import arguments, canvas, chords, ends, failures, requests, states, values
from .cases import task_id_of
from .golden import FEW, GOLDEN, SIGNED

STOCK = {
    "expired": ends.STOCK["expired"],
    **ends.STOCK,
    **values.STOCK,
    **failures.STOCK,
    **arguments.STOCK,
    **states.STOCK,
    **requests.STOCK,
    **canvas.STOCK,
}
LATE = {**ends.LATE, **states.LATE, **requests.LATE}
_ALL = {
    **ends.CASES,
    **chords.CASES,
    **values.CASES,
    **failures.CASES,
    **arguments.CASES,
    **states.CASES,
    **requests.CASES,
    **canvas.CASES,
    **LATE,
}
#: What the worker has to take before it expires is published first.
_FIRST = ["expired", "chord.header_expires", "chain.expires", "meta.header_revoked"]
CASES = {name: _ALL[name] for name in _FIRST} | _ALL

#: These depend neither on the serializer nor on `result_extended`, and take long: they sleep, or
#: kill a process of the pool, or wait for others.
_ALIKE = ("dies.", "terminated", "time_limit.", "errback.", "handled.", "unwanted", "links")
_CANVAS = ("chain", "chord", "replaced", "group")
_BRIEF_CANVAS = (
    "chain.fails",
    "chain.of_groups",
    "chord.in_chain",
    "chord.group_body_never",
    "chord.header_fails",
    "chord.header_values",
    "chord.header_meta",
    "chord.saved",
    "group.saved",
    "replaced.group",
)
BRIEF = {
    name: case
    for name, case in CASES.items()
    if not name.startswith(_ALIKE)
    and (not name.startswith(_CANVAS) or name in _CANVAS or name.startswith(_BRIEF_CANVAS))
}

SETS = {
    "stock": STOCK,
    "brief": BRIEF,
    **{
        name: {case: CASES[case] for case in cases if case in CASES}
        for name, cases in (("golden", GOLDEN), ("few", FEW), ("signed", SIGNED))
    },
}


def publish_all(run, cases):
    """Publishes the cases; tells which task ids each has and how they are to end."""
    return {name: publish(task_id_of(run, name)) for name, publish in cases.items()}
