"""A Django application: views of both kinds, and one that answers in pieces."""

from typing import Any

from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path

from tests.support.apps.asgi_broad import numbers


async def stream(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse(numbers(), content_type="text/plain")


async def echo(request: HttpRequest) -> JsonResponse:
    fields: dict[str, Any] = {**request.GET.dict(), **request.POST.dict()}
    return JsonResponse(fields, json_dumps_params={"ensure_ascii": False})


def threaded(request: HttpRequest) -> HttpResponse:
    return HttpResponse("from a thread")


urlpatterns = [path("stream", stream), path("echo", echo), path("threaded", threaded)]
