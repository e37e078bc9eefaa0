"""The description of the API, held against what it does: nothing that it allows makes a 5xx."""

import json

import schemathesis
from hypothesis import HealthCheck, given, settings

from distrib.serve.arrow_stream import ARROW
from tests.serve.conftest import served


@schemathesis.serializer(ARROW)
def as_drawn(_context, value):
    """Bytes that are no Arrow stream, but by chance."""
    return value if isinstance(value, bytes) else str(value).encode(errors="replace")


def checked(operation, statuses):
    @settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case):
        for model in ("drawn", "default"):  # most names are of no model
            if model == "default" and "model" in case.path_parameters:
                case.path_parameters["model"] = "default"
            answer = case.call()
            statuses.setdefault(operation.path, set()).add(answer.status_code)
            assert answer.status_code < 500, (operation.path, answer.text)

    check()


def test_no_request_that_the_description_allows_makes_a_server_error(run, small, tmp_path):
    described = schemathesis.openapi.from_asgi("/openapi.json", served({"default": run}).app)
    operations = [found.ok() for found in described.get_all_operations()]
    assert len(operations) == 11
    statuses = {}
    for operation in operations:
        checked(operation, statuses)
    reported = {path: found for path, found in statuses.items() if found != {200}}
    assert all(found & {404, 422} for found in reported.values()), reported


def test_descriptions_are_markdown(run):
    assert "``" not in json.dumps(served({"default": run}).app.openapi())
