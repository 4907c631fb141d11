"""Chords, also those that Celery makes of groups in chains. A worker with `rpc://` refuses chords.
"""

from celery import chain, chord, group, shared_task

from .canvas import (
    errback_of_new,
    errback_of_old,
    fail_with,
    members_of,
    named,
    replace_with_group,
    spawn,
)
from .cases import (
    ENDS,
    MAYBE,
    NO_ROW,
    SEEN,
    SOON,
    add,
    child_id_of,
    children_of,
    echo,
    spawning,
    total,
)
from .ends import sleep_too_long
from .failures import fail
from .requests import set_meta
from .states import retry_then
from .values import give


def header_and_body(header, body, *statuses, **body_options):
    """A chord whose body has the id of the case; the last status is that of the body."""

    def publish(task_id):
        members, ids = members_of(task_id, *header())
        chord(members)(body().set(task_id=task_id, **body_options))
        return {**dict(zip(ids, statuses)), task_id: statuses[-1]}

    return publish


def two():
    return add.s(1, 1), add.s(2, 2)


def one_fails():
    return add.s(1, 1), fail_with.s("in the header")


@shared_task(bind=True)
def start_chord(self):
    members, _ = members_of(self.request.id, *two())
    chord(members)(total.s().set(task_id=child_id_of(self.request.id, "body")))


@shared_task(bind=True)
def replace_with_chord(self):
    members, _ = members_of(self.request.id, *two())
    raise self.replace(chord(members, total.s()))


@shared_task(bind=True)
def add_member(self):
    """Adds a member to its chord if the backend supports it."""
    other = echo.s("added").set(task_id=child_id_of(self.request.id, "added"))
    try:
        self.add_to_chord(other)
    except NotImplementedError:
        return "refused"
    return "added"


@shared_task(bind=True)
def fail_at_first(self):
    if not self.request.retries:
        raise self.retry(countdown=SOON)
    raise ValueError("at last")


def publish_added_to(task_id):
    header = lambda: (add.s(1, 1), add_member.s())
    ends = header_and_body(header, echo.s, "SUCCESS", "SUCCESS", "SUCCESS")(task_id)
    adder = list(ends)[1]
    return {**ends, child_id_of(adder, "added"): MAYBE}


def publish_errback(errback, status):
    """An error callback of the body, for an error in the header."""

    def publish(task_id):
        members, ids = members_of(task_id, *one_fails())
        linked = child_id_of(task_id, "errback")
        body = total.s().set(task_id=task_id)
        chord(members)(body.on_error(errback.clone().set(task_id=linked)))
        return {ids[0]: "SUCCESS", ids[1]: "FAILURE", task_id: "FAILURE", linked: status}

    return publish


def publish_with_chain_for_body(header, *statuses):
    def publish(task_id):
        members, ids = members_of(task_id, *header())
        first = child_id_of(task_id, "first")
        body = chain(total.s().set(task_id=first), add.s(10).set(task_id=task_id))
        chord(members)(body)
        return {**dict(zip(ids, statuses)), first: statuses[-2], task_id: statuses[-1]}

    return publish


def publish_with_group_for_body(header, *statuses):
    def publish(task_id):
        members, ids = members_of(task_id, *header())
        body = group(named(task_id, left=echo.s("left"), right=echo.s("right")))
        chord(members)(body)
        ends = dict.fromkeys(children_of(task_id, "left", "right"), statuses[-1])
        return {**dict(zip(ids, statuses)), **ends}

    return publish


def publish_with_chord_for_body(task_id):
    members, ids = members_of(task_id, *two())
    inner = named(task_id, left=echo.s("left"), right=echo.s("right"))
    chord(members)(chord(inner, echo.s("body").set(task_id=task_id)))
    inner_ids = children_of(task_id, "left", "right")
    return dict.fromkeys((*ids, *inner_ids, task_id), "SUCCESS")


def publish_nested(task_id):
    """A chord in the header of another."""
    inner = named(task_id, left=add.s(1, 1), right=add.s(2, 2))
    inner_body = total.s().set(task_id=child_id_of(task_id, "inner"))
    other = add.s(5, 5).set(task_id=child_id_of(task_id, "other"))
    chord([chord(inner, inner_body), other])(total.s().set(task_id=task_id))
    ids = children_of(task_id, "left", "right", "inner", "other")
    return dict.fromkeys((*ids, task_id), "SUCCESS")


def publish_nested_that_fails(task_id):
    inner = named(task_id, left=add.s(1, 1), right=fail_with.s("deep in the header"))
    inner_body = total.s().set(task_id=child_id_of(task_id, "inner"))
    other = add.s(5, 5).set(task_id=child_id_of(task_id, "other"))
    chord([chord(inner, inner_body), other])(total.s().set(task_id=task_id))
    left, right, inner, other = children_of(task_id, "left", "right", "inner", "other")
    return {left: "SUCCESS", right: "FAILURE", inner: MAYBE, other: "SUCCESS", task_id: MAYBE}


def publish_of_chains(task_id):
    a, b, c, d = named(task_id, a=add.s(1, 1), b=add.s(1), c=add.s(2, 2), d=add.s(2))
    chord([chain(a, b), chain(c, d)])(total.s().set(task_id=task_id))
    return dict.fromkeys((*children_of(task_id, "a", "b", "c", "d"), task_id), "SUCCESS")


def publish_of_chains_that_fail(task_id):
    """The first task of a chain fails, so the second never runs."""
    a, b, c, d = named(task_id, a=add.s(1, 1), b=add.s(1), c=fail_with.si("first step"), d=add.s(2))
    chord([chain(a, b), chain(c, d)])(total.s().set(task_id=task_id))
    a, b, c, d = children_of(task_id, "a", "b", "c", "d")
    return {a: "SUCCESS", b: "SUCCESS", c: "FAILURE", d: "FAILURE", task_id: "FAILURE"}


def publish_group_in_chain(task_id):
    """A chain turns this group into a chord."""
    first, last = children_of(task_id, "first", "last")
    members, ids = members_of(task_id, add.s(1), add.s(2))
    chain(
        add.s(0, 1).set(task_id=first),
        group(members),
        total.s().set(task_id=task_id),
        add.s(100).set(task_id=last),
    ).apply_async()
    return dict.fromkeys((first, *ids, task_id, last), "SUCCESS")


def publish_group_in_chain_that_fails(task_id):
    first, last = children_of(task_id, "first", "last")
    members, ids = members_of(task_id, add.s(1), fail_with.si("within the group"))
    chain(
        add.s(0, 1).set(task_id=first),
        group(members),
        total.s().set(task_id=task_id),
        add.s(100).set(task_id=last),
    ).apply_async()
    ends = dict(zip(ids, (SEEN, "FAILURE")))
    return {first: "SUCCESS", **ends, task_id: MAYBE, last: MAYBE}


def publish_group_in_chain_never_reached(task_id):
    (first,) = children_of(task_id, "first")
    members, ids = members_of(task_id, add.s(1), add.s(2))
    chain(
        fail_with.si("before the group").set(task_id=first),
        group(members),
        total.s().set(task_id=task_id),
    ).apply_async()
    return {first: "FAILURE", **dict.fromkeys(ids, MAYBE), task_id: MAYBE}


def publish_groups_in_chain(task_id):
    """Two chords in a row."""
    one, ids = members_of(child_id_of(task_id, "one"), add.s(1, 1), add.s(2, 2))
    two, more_ids = members_of(child_id_of(task_id, "two"), echo.s("a"), echo.s("b"))
    chain(group(one), group(two), echo.s("end").set(task_id=task_id)).apply_async()
    return dict.fromkeys((*ids, *more_ids, task_id), "SUCCESS")


def publish_linked(task_id):
    members, ids = members_of(task_id, *two())
    linked = child_id_of(task_id, "linked")
    body = total.s().set(task_id=task_id)
    body.link(echo.s("x").set(task_id=linked))
    chord(members)(body)
    return dict.fromkeys((*ids, task_id, linked), "SUCCESS")


def publish_with_members_children(task_id):
    """One member has a link, and one has a child."""
    members, ids = members_of(task_id, add.s(1, 1), spawn.s(["left"]))
    linked = child_id_of(task_id, "linked")
    members[0].link(echo.s("linked").set(task_id=linked))
    chord(members)(echo.s().set(task_id=task_id))
    child = child_id_of(ids[1], "left")
    return dict.fromkeys((*ids, child, linked, task_id), "SUCCESS")


def publish_empty(task_id):
    chord([])(echo.s().set(task_id=task_id))
    return {task_id: MAYBE}


def publish_saved(task_id):
    """The caller saves the group of the header."""
    members, ids = members_of(task_id, *two())
    result = chord(members)(total.s().set(task_id=task_id))
    result.parent.save()
    return dict.fromkeys((*ids, task_id), "SUCCESS")


def publish_large(task_id):
    members, ids = members_of(task_id, *(add.s(number, number) for number in range(25)))
    chord(members)(total.s().set(task_id=task_id))
    return dict.fromkeys((*ids, task_id), "SUCCESS")


CASES = {
    "chord": header_and_body(two, total.s, "SUCCESS", "SUCCESS", "SUCCESS"),
    "chord.of_one": header_and_body(lambda: [add.s(1, 1)], echo.s, "SUCCESS", "SUCCESS"),
    "chord.of_none": publish_empty,
    "chord.large": publish_large,
    "chord.immutable_body": header_and_body(
        two, lambda: echo.si("alone"), "SUCCESS", "SUCCESS", "SUCCESS"
    ),
    "chord.body_with_args": header_and_body(
        two, lambda: echo.s("more", key="é"), "SUCCESS", "SUCCESS", "SUCCESS"
    ),
    "chord.body_fails": header_and_body(
        two, lambda: fail_with.si("in the body"), "SUCCESS", "SUCCESS", "FAILURE"
    ),
    "chord.body_retries": header_and_body(
        two, lambda: retry_then.si(1, "body"), "SUCCESS", "SUCCESS", "SUCCESS"
    ),
    "chord.body_shadowed": header_and_body(
        two, lambda: echo.s(), "SUCCESS", "SUCCESS", "SUCCESS", shadow="body in the shadow"
    ),
    "chord.body_periodic": header_and_body(
        two,
        lambda: echo.s(),
        "SUCCESS",
        "SUCCESS",
        "SUCCESS",
        headers={"periodic_task_name": "body", "meta": {"of": "the body"}},
    ),
    "chord.header_fails": header_and_body(one_fails, total.s, "SUCCESS", "FAILURE", "FAILURE"),
    "chord.header_fails_wholly": header_and_body(
        lambda: (fail_with.s("all alike"), fail_with.s("all alike")),
        total.s,
        "FAILURE",
        "FAILURE",
        "FAILURE",
    ),
    "chord.header_fails_oddly": header_and_body(
        lambda: (add.s(1, 1), fail.s("keyword_only")), total.s, "SUCCESS", "FAILURE", "FAILURE"
    ),
    "chord.header_unserialisable": header_and_body(
        lambda: (add.s(1, 1), give.s("generator")), echo.s, "SUCCESS", MAYBE, MAYBE
    ),
    "chord.header_retries": header_and_body(
        lambda: (add.s(1, 1), retry_then.s(2, 5)), total.s, "SUCCESS", "SUCCESS", "SUCCESS"
    ),
    "chord.header_retries_in_vain": header_and_body(
        lambda: (add.s(1, 1), fail_at_first.s()), total.s, "SUCCESS", "FAILURE", "FAILURE"
    ),
    "chord.header_out_of_time": header_and_body(
        lambda: (add.s(1, 1), sleep_too_long.s()), total.s, "SUCCESS", "FAILURE", "FAILURE"
    ),
    "chord.header_expires": header_and_body(
        lambda: (add.s(1, 1), add.s(2, 2).set(countdown=4, expires=3)),
        total.s,
        "SUCCESS",
        "REVOKED",
        MAYBE,
    ),
    "chord.header_dies": header_and_body(
        lambda: (add.s(1, 1), fail.s("exit")), total.s, "SUCCESS", "FAILURE", "FAILURE"
    ),
    "chord.header_unregistered": header_and_body(
        lambda: (add.s(1, 1), echo.app.signature("shop.zoo.nowhere")),
        total.s,
        "SUCCESS",
        "FAILURE",
        MAYBE,
    ),
    "chord.header_meta": header_and_body(
        lambda: (set_meta.s("plain", 1), set_meta.s("children", 2)),
        echo.s,
        "SUCCESS",
        "SUCCESS",
        "SUCCESS",
    ),
    "chord.header_values": header_and_body(
        lambda: (give.s("datetime_aware"), give.s("text_beyond_bmp"), give.s("none")),
        echo.s,
        ENDS,
        "SUCCESS",
        "SUCCESS",
        ENDS,
    ),
    "chord.errback_old": publish_errback(errback_of_old.s(), "SUCCESS"),
    "chord.errback_new": publish_errback(errback_of_new.s(), NO_ROW),
    "chord.chain_body": publish_with_chain_for_body(two, *["SUCCESS"] * 4),
    "chord.chain_body_never": publish_with_chain_for_body(one_fails, SEEN, "FAILURE", MAYBE, MAYBE),
    "chord.group_body": publish_with_group_for_body(two, "SUCCESS", "SUCCESS", "SUCCESS"),
    "chord.group_body_never": publish_with_group_for_body(one_fails, "SUCCESS", "FAILURE", MAYBE),
    "chord.chord_body": publish_with_chord_for_body,
    "chord.nested": publish_nested,
    "chord.nested_fails": publish_nested_that_fails,
    "chord.of_chains": publish_of_chains,
    "chord.of_chains_fails": publish_of_chains_that_fail,
    "chord.in_chain": publish_group_in_chain,
    "chord.in_chain_fails": publish_group_in_chain_that_fails,
    "chord.in_chain_never": publish_group_in_chain_never_reached,
    "chord.in_chain_twice": publish_groups_in_chain,
    "chord.linked": publish_linked,
    "chord.members_children": publish_with_members_children,
    "chord.saved": publish_saved,
    "chord.by_task": spawning(start_chord, ("0", "1", "body")),
    "chord.replacing": spawning(replace_with_chord, ("0", "1")),
    "chord.added_to": publish_added_to,
    "replaced.group": spawning(replace_with_group, ("one", "two")),
}
