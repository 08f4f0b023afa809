"""The OpenAPI document: every call has examples of what it is sent and what it answers, and they are true to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.app import create_app
from service.examples import ANSWERS, REQUESTS
from service.settings import Settings


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    data: Path = tmp_path_factory.mktemp("openapi")
    app = create_app(Settings(data=data, model="hue", broker_url="memory://"))
    app.state.rooms.close()
    return app.openapi()


def operations(api: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, item in api["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def bodies(api: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, media type object) of every request body and of every answer that has one."""
    for call, operation in operations(api):
        for kind, form in operation.get("requestBody", {}).get("content", {}).items():
            yield f"{call} is sent {kind}", form
        for code, answer in operation["responses"].items():
            for kind, form in answer.get("content", {}).items():
                yield f"{call} answers {code} {kind}", form


def examples_of(form: dict[str, Any]) -> list[Any]:
    found = [form["example"]] if "example" in form else []
    return found + [named["value"] for named in form.get("examples", {}).values()]


def test_every_call_has_examples(api: dict[str, Any]) -> None:
    assert [where for where, form in bodies(api) if not examples_of(form)] == []
    for call, operation in operations(api):
        good = [answer for code, answer in operation["responses"].items() if code in ("200", "201", "202")]
        assert any(examples_of(form) for answer in good for form in answer.get("content", {}).values()), call


def test_every_path_parameter_has_an_example(api: dict[str, Any]) -> None:
    for call, operation in operations(api):
        for parameter in operation.get("parameters", ()):
            if parameter["in"] == "path":
                assert "example" in parameter, f"{call}: {parameter['name']}"
                check(api, parameter["example"], parameter["schema"], f"{call}: {parameter['name']}")


def test_every_example_is_true_to_its_schema(api: dict[str, Any]) -> None:
    for where, form in bodies(api):
        for example in examples_of(form):
            check(api, example, form.get("schema", {}), where)
            assert form.get("schema") or not isinstance(example, str), f"{where}: words that no schema allows"


def test_there_is_no_example_of_what_is_not_there(api: dict[str, Any]) -> None:
    calls = {call for call, _ in operations(api)}
    assert set(ANSWERS) | set(REQUESTS) <= calls


def check(api: dict[str, Any], example: Any, schema: dict[str, Any], where: str) -> None:
    errors = list(Draft202012Validator({**schema, "components": api["components"]}).iter_errors(example))
    assert not errors, f"{where}: {errors[0].message}"
