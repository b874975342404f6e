"""The client knows every route that the service documents."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from service.access.roles import Role
from service.api.app import create_app
from service.client import routes
from service.client.calls import Call, Pages, Stream
from service.schemas import API
from service.settings import Settings
from service.studies.study_spec import StudySpec
from trainer.spec import JobSpec

ARGUMENTS = {
    "spec": JobSpec.model_validate({"name": "n", "data": {"manifest": "m", "batch_size": 8}}),
    "study": StudySpec.model_validate({"name": "n", "base": {}}),
    "mode": "now",
    "role": Role.VIEWER,
    "page": 1,
    "attempt": 1,
    "after": 1,
}
"""For parameters of the client's routes, by name; any other is some text."""


def requests_of_the_client() -> Iterator[tuple[str, str]]:
    """Method and path of each."""
    for name, make in inspect.getmembers(routes, inspect.isfunction):
        if make.__module__ != routes.__name__ or name.startswith("_"):
            continue
        parameters = inspect.signature(make).parameters.values()
        given = {p.name: ARGUMENTS.get(p.name, "x") for p in parameters}
        # Of jobs, `study` is an id.
        given |= {"study": "x"} if name == "jobs" else {}
        positional = [given[p.name] for p in parameters if p.kind is not p.KEYWORD_ONLY]
        named = {p.name: given[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY}
        match make(*positional, **named):
            case Call() as call:
                yield call.method, call.path
            case Pages() as pages:
                yield pages.first.method, pages.first.path
            case Stream() as stream:
                yield "GET", stream.path


def test_each_documented_route_has_a_call_and_each_call_a_route(tmp_path: Path) -> None:
    document = create_app(Settings(home=tmp_path)).openapi()
    documented = {
        (method.upper(), path)
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith(f"{API}/")
    }
    asked = set(requests_of_the_client())

    def answers(route: tuple[str, str], request: tuple[str, str]) -> bool:
        return route[0] == request[0] and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", route[1]), request[1]) is not None

    missing = {route for route in documented if not any(answers(route, request) for request in asked)}
    assert not missing, f"add them to service/client/routes.py and to both clients: {missing}"
    unknown = {request for request in asked if not any(answers(route, request) for route in documented)}
    assert not unknown, f"the service has no such routes: {unknown}"
