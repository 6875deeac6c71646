"""The OpenAPI document against the server, by schemathesis: no 500, answers of the form that is promised."""

from __future__ import annotations

import importlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis.core.failures import FailureGroup  # noqa: E402


@pytest.fixture(scope="module")
def server(serving, bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("openapi")
    with serving(bundle, "--workers", "1", "--store", folder / "decisions.sqlite", "--load-from", folder) as running:
        yield running


@pytest.fixture(scope="module")
def api(server):
    return schemathesis.openapi.from_url(f"{server.address}/openapi.json")


NAMES = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")
importlib.import_module("schemathesis.specs.openapi.checks")  # registers them
CHECKS = [schemathesis.checks.CHECKS.get_one(name) for name in NAMES]
QUIET = list(HealthCheck)


def call_each(api, examples: int, *, repeats: bool) -> int:
    """Requests of every operation, drawn from the document, as it has them and not; how many."""
    count = 0
    failures: list[str] = []
    for result in api.get_all_operations():
        operation = result.ok()
        for mode in schemathesis.GenerationMode:

            @settings(max_examples=examples, deadline=None, suppress_health_check=QUIET, derandomize=repeats)
            @given(operation.as_strategy(generation_mode=mode))
            def called(case):
                nonlocal count
                count += 1
                response = case.call(timeout=60)
                assert "Traceback" not in response.text
                # 503 says that it is busy, which a flood of odd requests may make it.
                if response.status_code != 503:
                    case.validate_response(response, checks=CHECKS)

            try:
                called()
            except Unsatisfiable:  # an operation without a wrong form
                continue
            except (AssertionError, FailureGroup) as error:
                failures.append(f"{operation.label}: {error}")
    assert not failures, "\n".join(failures)
    return count


def test_a_few_requests_of_each_operation_are_answered_as_promised(api):
    assert call_each(api, 2, repeats=True) > 30


@pytest.mark.slow
def test_many_requests_of_each_operation_are_answered_as_promised(api):
    count = call_each(api, 200, repeats=False)
    print(f"{count} requests")
    assert count > 3000
