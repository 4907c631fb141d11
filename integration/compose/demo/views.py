from celery import chord, group
from celery.states import READY_STATES
from django.conf import settings
from django.http import Http404
from django.shortcuts import redirect, render
from django.views.decorators.http import require_POST, require_safe
from django_celery_results.models import TaskResult

from . import tasks

#: The task that each button sends.
KINDS = {
    "success": tasks.price.s("celeriac", quantity=3),
    "failure": tasks.reserve.s("celeriac"),
    "retry": tasks.charge_card.s("4242"),
    "progress": tasks.import_catalogue.s(8),
    "500 tasks": group(tasks.add.s(n, 1) for n in range(500)),
}
# Workers with `rpc://` cannot run chords.
if settings.CELERY_RESULT_BACKEND == "celeriac://":
    KINDS["chord"] = chord([tasks.add.s(n, n) for n in range(3)], tasks.total.s())


@require_safe
def index(request):
    return render(request, "index.html", {"kinds": KINDS, **context()})


@require_safe
def rows(request):
    """The part of the page that is refreshed every second."""
    return render(request, "rows.html", context())


def context():
    results = TaskResult.objects.order_by("-date_created", "-id")
    final = results.filter(status__in=READY_STATES)
    return {"rows": results[:25], "count": results.count(), "final": final.count()}


@require_POST
def send(request):
    kind = KINDS.get(request.POST.get("kind"))
    if kind is None:
        raise Http404("there is no such kind of task")
    kind.apply_async()
    return redirect("index")
