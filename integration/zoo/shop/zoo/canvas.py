"""Tasks that start other tasks: children, chains, groups, links, replacements."""

import celery
from celery import chain, group, shared_task, signature

from .cases import (
    MAYBE,
    NO_ROW,
    SOON,
    add,
    break_down,
    child_id_of,
    children_of,
    echo,
    simple,
    spawning,
    total,
)


def named(task_id, **signatures):
    """Gives the signatures ids derived from their names."""
    return [part.set(task_id=child_id_of(task_id, name)) for name, part in signatures.items()]


@shared_task(bind=True)
def spawn(self, names):
    """Starts children, which the row lists in `meta`."""
    for name in names:
        echo.apply_async((name,), task_id=child_id_of(self.request.id, name))
    return len(names)


@shared_task(bind=True)
def spawn_group(self, names):
    members = [echo.s(name).set(task_id=child_id_of(self.request.id, name)) for name in names]
    group(members).apply_async(task_id=child_id_of(self.request.id, "group"))


@shared_task(bind=True)
def spawn_chain(self):
    first, second = named(self.request.id, first=add.s(1, 2), second=add.s(3))
    chain(first, second).apply_async()


@shared_task(bind=True)
def spawn_and_fail(self):
    echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))
    raise ValueError("with a child")


@shared_task(bind=True)
def spawn_and_retry(self):
    """Each attempt has its own children."""
    name = f"child {self.request.retries}"
    echo.apply_async((name,), task_id=child_id_of(self.request.id, name))
    if not self.request.retries:
        raise self.retry(countdown=SOON)


@shared_task(bind=True)
def spawn_and_tell(self):
    echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))
    self.update_state(state="PROGRESS", meta={"children": 1})


@shared_task(bind=True)
def spawn_trailless(self):
    echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"), add_to_parent=False)


@shared_task(trail=False, bind=True)
def spawn_untrailed(self):
    echo.apply_async(("child",), task_id=child_id_of(self.request.id, "child"))


@shared_task(bind=True)
def call_directly(self):
    """Function calls and `apply` send no message, so they have no row."""
    return [echo("direct"), echo.apply(("applied",)).get(disable_sync_subtasks=False)]


@shared_task(bind=True)
def replace(self, number):
    raise self.replace(echo.s("replacement", number=number))


@shared_task(bind=True)
def replace_with_failing(self):
    raise self.replace(break_down.s())


@shared_task(bind=True)
def replace_with_group(self):
    one, two = named(self.request.id, one=add.s(1, 1), two=add.s(2, 2))
    raise self.replace(group(one, two))


@shared_task(bind=True)
def replace_with_chain(self):
    (first,) = named(self.request.id, first=add.s(1, 2))
    raise self.replace(chain(first, add.s(3)))


@shared_task(bind=True)
def replace_twice(self, left):
    if left:
        raise self.replace(replace_twice.s(left - 1))
    return "replaced"


@shared_task(bind=True)
def replace_after_progress(self):
    self.update_state(state="PROGRESS", meta={"before": "replacement"})
    self.request.meta = {"lost": "with the replaced"}
    raise self.replace(echo.s("after"))


# Error callbacks: the worker calls those that take a request directly; the others are tasks.


@shared_task
def errback_of_old(task_id):
    return task_id


@shared_task
def errback_of_new(request, error, traceback):
    return [request.id, repr(error)]


@shared_task
def errback_that_fails(request, error, traceback):
    raise RuntimeError("in the errback")


@shared_task
def fail_with(text):
    raise ValueError(text)


# Ways to publish -----------------------------------------------------------------------------


def publish_chain(task_id):
    first, second = children_of(task_id, "first", "second")
    chain(
        add.s(1, 2).set(task_id=first),
        add.s(4).set(task_id=second),
        add.s(8).set(task_id=task_id),
    ).apply_async()
    return dict.fromkeys((first, second, task_id), "SUCCESS")


def publish_chain_that_fails(task_id):
    """Celery also stores FAILURE for the tasks of the chain that never run, except in 4.4."""
    first, second = children_of(task_id, "first", "second")
    chain(
        add.s(1, 2).set(task_id=first),
        break_down.si().set(task_id=second),
        add.s(8).set(task_id=task_id),
    ).apply_async()
    last = "FAILURE" if celery.VERSION >= (5,) else NO_ROW
    return {first: "SUCCESS", second: "FAILURE", task_id: last}


def publish_chain_that_fails_early(task_id):
    """Three tasks never run. One of them has keyword arguments, and one an error callback."""
    first, second, third = children_of(task_id, "first", "second", "third")
    errback = child_id_of(task_id, "errback")
    chain(
        fail_with.s("crème 🥬").set(task_id=first),
        echo.s(2, two={"deep": [1]}).set(task_id=second),
        add.s(4).set(task_id=third, link_error=errback_of_old.s().set(task_id=errback)),
        echo.si().set(task_id=task_id),
    ).apply_async()
    return {
        first: "FAILURE",
        second: "FAILURE",
        third: "FAILURE",
        task_id: "FAILURE",
        errback: MAYBE,
    }


def publish_chain_revoked(task_id):
    """The task after one that expires."""
    (first,) = children_of(task_id, "first")
    chain(
        echo.s(1).set(task_id=first, countdown=4, expires=3),
        echo.s(2).set(task_id=task_id),
    ).apply_async()
    return {first: "REVOKED", task_id: MAYBE}


def publish_chain_out_of_time(task_id):
    from .ends import sleep_too_long

    (first,) = children_of(task_id, "first")
    chain(sleep_too_long.si().set(task_id=first), echo.s(2).set(task_id=task_id)).apply_async()
    return {first: "FAILURE", task_id: MAYBE}


def publish_chain_with_error_link(task_id):
    first, errback = children_of(task_id, "first", "errback")
    chain(
        fail_with.s("in a chain").set(task_id=first),
        echo.s(2).set(task_id=task_id),
    ).apply_async(link_error=errback_of_old.s().set(task_id=errback))
    return {first: "FAILURE", task_id: "FAILURE", errback: "SUCCESS"}


def publish_chain_nested(task_id):
    first, second, third = children_of(task_id, "first", "second", "third")
    inner = chain(add.s(1).set(task_id=second), add.s(2).set(task_id=third))
    chain(add.s(0, 0).set(task_id=first), inner, add.s(3).set(task_id=task_id)).apply_async()
    return dict.fromkeys((first, second, third, task_id), "SUCCESS")


def publish_chain_with_replacement(task_id):
    first, second = children_of(task_id, "first", "second")
    chain(
        add.s(1, 1).set(task_id=first),
        replace.s().set(task_id=second),
        echo.s("last").set(task_id=task_id),
    ).apply_async()
    return dict.fromkeys((first, second, task_id), "SUCCESS")


def publish_chain_with_retry(task_id):
    from .states import retry_then

    (first,) = children_of(task_id, "first")
    chain(retry_then.s(1, "x").set(task_id=first), echo.s().set(task_id=task_id)).apply_async()
    return dict.fromkeys((first, task_id), "SUCCESS")


def publish_chain_linked(task_id):
    first, linked = children_of(task_id, "first", "linked")
    chain(add.s(1, 1).set(task_id=first), add.s(2).set(task_id=task_id)).apply_async(
        link=echo.s("linked").set(task_id=linked)
    )
    return dict.fromkeys((first, task_id, linked), "SUCCESS")


def publish_chain_stamped(task_id):
    from celery.canvas import StampingVisitor

    class Order(StampingVisitor):
        def on_signature(self, sig, **headers):
            return {"order": "o-1", "stamped_headers": ["order"]}

    first, second = children_of(task_id, "first", "second")
    steps = chain(
        add.s(1, 2).set(task_id=first),
        fail_with.si("stamped").set(task_id=second),
        add.s(8).set(task_id=task_id),
    )
    steps.stamp(visitor=Order())
    steps.apply_async()
    return {first: "SUCCESS", second: "FAILURE", task_id: "FAILURE"}


def members_of(task_id, *signatures):
    """Gives the signatures ids derived from their positions; returns both."""
    ids = [child_id_of(task_id, str(number)) for number in range(len(signatures))]
    return [part.set(task_id=id) for part, id in zip(signatures, ids)], ids


def publish_group(task_id):
    members, ids = members_of(task_id, *(add.s(number, number) for number in range(3)))
    group(members).apply_async(task_id=task_id)
    return dict.fromkeys(ids, "SUCCESS")


def publish_group_saved(task_id):
    members, ids = members_of(task_id, add.s(1, 1), fail_with.s("in a group"), echo.s("é"))
    group(members).apply_async(task_id=task_id).save()
    return dict(zip(ids, ("SUCCESS", "FAILURE", "SUCCESS")))


def publish_group_saved_nested(task_id):
    (one, two), ids = members_of(task_id, add.s(1, 1), add.s(2, 2))
    inner = chain(one, add.s(3).set(task_id=child_id_of(task_id, "last")))
    group(inner, two).apply_async(task_id=task_id).save()
    return dict.fromkeys((*ids, child_id_of(task_id, "last")), "SUCCESS")


@shared_task(bind=True)
def save_group(self):
    members, _ = members_of(self.request.id, echo.s(1), echo.s(2))
    group(members).apply_async(task_id=child_id_of(self.request.id, "group")).save()


def publish_group_of_chains(task_id):
    ids = children_of(task_id, "a", "b", "c", "d")
    a, b, c, d = named(
        task_id, a=add.s(1, 1), b=add.s(1), c=fail_with.si("in one chain"), d=add.s(1)
    )
    group(chain(a, b), chain(c, d)).apply_async(task_id=task_id)
    return dict(zip(ids, ("SUCCESS", "SUCCESS", "FAILURE", "FAILURE")))


def publish_group_linked(task_id):
    """The link of a group goes to its first member, and the error link to all members."""
    members, ids = members_of(task_id, add.s(1, 1), fail_with.s("in a group"))
    linked, errback = children_of(task_id, "linked", "errback")
    both = group(members)
    both.link(echo.s("linked").set(task_id=linked))
    both.link_error(errback_of_old.s().set(task_id=errback))
    both.apply_async(task_id=task_id)
    return {ids[0]: "SUCCESS", ids[1]: "FAILURE", linked: "SUCCESS", errback: "SUCCESS"}


def publish_chain_of_groups(task_id):
    """A group at the end of a chain, which needs no chord."""
    first = child_id_of(task_id, "first")
    members, ids = members_of(task_id, add.s(1), add.s(2))
    members = group(members).set(task_id=child_id_of(task_id, "group"))
    chain(add.s(1, 1).set(task_id=first), members).apply_async()
    return dict.fromkeys((first, *ids), "SUCCESS")


def publish_chain_of_groups_that_fails(task_id):
    """The members of the group never run."""
    first = child_id_of(task_id, "first")
    members, ids = members_of(task_id, add.s(1), add.s(2))
    chain(fail_with.s("before a group").set(task_id=first), group(members)).apply_async()
    return {first: "FAILURE", **dict.fromkeys(ids, MAYBE)}


def publish_map(task_id):
    total.map([[1, 2], [3, 4]]).apply_async(task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_starmap(task_id):
    add.starmap([(1, 2), (3, 4)]).apply_async(task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_chunks(task_id):
    chunks = add.chunks([(n, n) for n in range(4)], 2).group()
    members, ids = members_of(task_id, *chunks.tasks)
    group(members).apply_async(task_id=task_id)
    return dict.fromkeys(ids, "SUCCESS")


def publish_signature(task_id):
    """A signature by name and from a dictionary, as an application might store it in a database."""
    stored = dict(signature(add.name, args=(1,), kwargs={"right": 2}, options={"priority": 3}))
    signature(stored).apply_async(task_id=task_id)
    return {task_id: "SUCCESS"}


def publish_link(task_id):
    linked, errback = children_of(task_id, "linked", "errback")
    add.apply_async(
        (1, 1),
        task_id=task_id,
        link=echo.s("linked").set(task_id=linked),
        link_error=echo.si("never").set(task_id=errback),
    )
    return {task_id: "SUCCESS", linked: "SUCCESS", errback: NO_ROW}


def publish_links(task_id):
    """Several links: one has a link of its own, and one is a group."""
    one, two, deeper = named(task_id, one=echo.s(1), two=echo.si(2), deeper=echo.s(3))
    members, ids = members_of(task_id, echo.s("a"), echo.s("b"))
    one.link(deeper)
    add.apply_async((1, 1), task_id=task_id, link=[one, two, group(members)])
    ends = dict.fromkeys((*children_of(task_id, "one", "two", "deeper"), *ids), "SUCCESS")
    return {task_id: "SUCCESS", **ends}


def publish_errback(errback, status, *names):
    def publish(task_id):
        linked = child_id_of(task_id, "errback")
        fail_with.apply_async(
            ("with an errback",), task_id=task_id, link_error=errback.set(task_id=linked)
        )
        return {task_id: "FAILURE", linked: status}

    return publish


def publish_errbacks(task_id):
    old, new, immutable = named(
        task_id, old=errback_of_old.s(), new=errback_of_new.s(), immutable=errback_of_old.si("told")
    )
    fail_with.apply_async(("twice",), task_id=task_id, link_error=[old, new, immutable])
    old, new, immutable = children_of(task_id, "old", "new", "immutable")
    return {task_id: "FAILURE", old: "SUCCESS", new: NO_ROW, immutable: "SUCCESS"}


def publish_errback_by_name(task_id):
    """An error callback that the worker does not know."""
    errback = child_id_of(task_id, "errback")
    fail_with.apply_async(
        ("unknown errback",),
        task_id=task_id,
        link_error=signature("shop.zoo.nowhere", task_id=errback),
    )
    return {task_id: "FAILURE", errback: MAYBE}


STOCK = {
    "replaced": simple(replace, "SUCCESS", 7),
    "chain": publish_chain,
    "chain.fails": publish_chain_that_fails,
    "chain.of_groups": publish_chain_of_groups,
    "group": publish_group,
    "link": publish_link,
    "children": spawning(spawn, ("left", "right"), "SUCCESS", ("left", "right")),
    "children.group": spawning(spawn_group, ("one", "two"), "SUCCESS", ("one", "two")),
}

CASES = {
    **STOCK,
    "children.chain": spawning(spawn_chain, ("first", "second")),
    "children.of_failure": spawning(spawn_and_fail, ("child",), "FAILURE"),
    "children.of_attempts": spawning(spawn_and_retry, ("child 0", "child 1")),
    "children.told": spawning(spawn_and_tell, ("child",)),
    "children.trailless": spawning(spawn_trailless, ("child",)),
    "children.untrailed": spawning(spawn_untrailed, ("child",)),
    "children.direct": simple(call_directly, "SUCCESS"),
    "replaced.failing": simple(replace_with_failing, "FAILURE"),
    "replaced.chain": spawning(replace_with_chain, ("first",)),
    "replaced.twice": simple(replace_twice, "SUCCESS", 2),
    "replaced.after_progress": simple(replace_after_progress, "SUCCESS"),
    "chain.fails_early": publish_chain_that_fails_early,
    "chain.expires": publish_chain_revoked,
    "chain.out_of_time": publish_chain_out_of_time,
    "chain.errback": publish_chain_with_error_link,
    "chain.nested": publish_chain_nested,
    "chain.replaced": publish_chain_with_replacement,
    "chain.retried": publish_chain_with_retry,
    "chain.linked": publish_chain_linked,
    "chain.of_groups_fails": publish_chain_of_groups_that_fails,
    "group.saved": publish_group_saved,
    "group.saved_nested": publish_group_saved_nested,
    "group.saved_by_task": spawning(save_group, ("0", "1")),
    "group.of_chains": publish_group_of_chains,
    "group.linked": publish_group_linked,
    "map": publish_map,
    "starmap": publish_starmap,
    "chunks": publish_chunks,
    "signature": publish_signature,
    "links": publish_links,
    "errback.old": publish_errback(errback_of_old.s(), "SUCCESS"),
    "errback.new": publish_errback(errback_of_new.s(), NO_ROW),
    "errback.failing": publish_errback(errback_that_fails.s(), NO_ROW),
    "errback.immutable": publish_errback(errback_of_old.si("told"), "SUCCESS"),
    "errback.several": publish_errbacks,
    "errback.unknown": publish_errback_by_name,
}
if celery.VERSION >= (5, 3):
    CASES["chain.stamped"] = publish_chain_stamped
