"""One task for every way in which a task can end, to compare the rows that it leaves.

Each module has a part of the `CASES`. A case publishes tasks whose ids are derived from the name of
a run, so that the rows of the same run on two workers can be compared. It returns the status that
each of them must have in the end.

`STOCK` are the cases for a worker with `rpc://`: no chords, and nothing that only our own result
backend can store. In the `LATE` cases another state follows a final one.
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
#: Published first, because the worker must receive these before they expire.
_FIRST = ["expired", "chord.header_expires", "chain.expires", "meta.header_revoked"]
CASES = {name: _ALL[name] for name in _FIRST} | _ALL

#: These depend neither on the serializer nor on `result_extended`, and are slow: they sleep, kill a
#: process of the pool, or wait for others.
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
    """Publishes the cases; returns the task ids of each with the status that they must end with."""
    return {name: publish(task_id_of(run, name)) for name, publish in cases.items()}
