# SPDX-License-Identifier: MIT
"""What a server cannot draw is answered with a 4xx that says what to do, and nothing else happens."""

import contextlib
import sys
import threading

import pytest
import schemathesis
from bad_requests import PATH, bad_requests
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from server_local import local_app, local_client

from ascedfast.server.settings import ServerSettings

MAX_BODY = 1 << 16
REQUESTS = bad_requests(MAX_BODY)
WRITING = {"w", "a", "x", "+"}
written: list[str] = []
listening = threading.Event()


def _watch_files(event, arguments):
    if listening.is_set() and (
        (event == "open" and WRITING & set(str(arguments[1])))
        or event in ("os.mkdir", "os.rename", "os.remove", "subprocess.Popen", "os.system")
    ):
        written.append(f"{event} {arguments[0]}")


@pytest.fixture(scope="module")
def client():
    with local_client(max_body=MAX_BODY) as client:
        yield client


@pytest.fixture
def no_files():
    """Fails when anything in this process is written, or started."""
    if not hasattr(sys, "_asced_watches"):
        sys.addaudithook(_watch_files)
        sys._asced_watches = True
    written.clear()
    listening.set()
    yield
    listening.clear()
    assert written == []


def test_the_watch_sees_what_is_written(tmp_path):
    sys.addaudithook(_watch_files)
    listening.set()
    (tmp_path / "x").write_text("")
    listening.clear()
    assert written
    written.clear()


def test_there_are_a_hundred():
    assert len(REQUESTS) >= 100


@pytest.mark.parametrize("name", REQUESTS)
def test_each_gets_a_4xx_that_says_what_to_do(name, client, no_files):
    method, path, headers, body = REQUESTS[name]
    answer = client.request(method, path, headers=headers, content=body)
    assert 400 <= answer.status_code < 500, answer.text
    assert "Traceback" not in answer.text
    assert 'File "' not in answer.text
    error = answer.json()["error"]
    assert len(error["message"]) > 15
    assert len(answer.text) < 2000
    assert set(error) == {"message", "type", "param", "code"}


def test_the_server_goes_on(client):
    assert client.post(PATH, json={"seed": 1, "steps": 2}).status_code == 200


def test_messages_name_the_field_and_repeat_nothing_that_was_sent(client):
    error = client.post(PATH, json={"n": 0, "steps": "secret-of-mine"}).json()["error"]
    assert error["message"].startswith("n: Input should be greater than or equal to 1; steps: ")
    assert error["param"] == "n"
    assert "secret-of-mine" not in error["message"]


def test_openapi_narrows_to_what_this_server_takes(client):
    wanted = client.get("/openapi.json").json()["components"]["schemas"]["ImageRequest"]["properties"]
    assert (wanted["n"]["maximum"], wanted["steps"]["maximum"]) == (8, 250)
    assert wanted["size"]["enum"] == ["auto", "16x16"]


TOKEN = "a-token-for-this-test"
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]


@pytest.fixture(scope="module")
def api():
    with local_app(max_body=MAX_BODY, max_steps=4, token=TOKEN) as app:
        yield schemathesis.openapi.from_asgi("/openapi.json", app)


@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_schemathesis_finds_nothing(api, mode):
    tried = []
    for found in api.get_all_operations():
        operation = found.ok()

        @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(checks=CHECKS, headers={"Authorization": f"Bearer {TOKEN}"})
            tried.append(case.operation.path)

        with contextlib.suppress(Unsatisfiable):  # an operation that takes nothing cannot be asked wrongly
            check()
    assert tried.count(PATH) >= 60


def test_a_body_without_its_length_is_counted(client):
    answer = client.post(PATH, headers={"Content-Type": "application/json"}, content=iter([b" " * 40_000] * 3))
    assert answer.status_code == 413
    assert str(MAX_BODY) in answer.json()["error"]["message"]


def test_a_token_is_asked_for():
    with local_client(token=TOKEN) as client:
        for headers in ({}, {"Authorization": "Bearer wrong-token"}, {"Authorization": f"Basic {TOKEN}"}):
            answer = client.post(PATH, json={"steps": 1}, headers=headers)
            assert answer.status_code == 401
            assert "Bearer" in answer.json()["error"]["message"]
        assert client.get("/metrics").status_code == 401
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert client.post(PATH, json={"steps": 1}, headers=right).status_code == 200
        assert [client.get(path).status_code for path in ("/healthz", "/readyz", "/")] == [200] * 3


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
def test_without_a_token_other_machines_are_not_listened_to(host):
    with pytest.raises(ValueError, match="set a token"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, token=TOKEN)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_without_a_token_this_machine_is(host):
    assert ServerSettings(host=host).is_loopback


@pytest.mark.parametrize("host", ["127.0.0.2", "127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("port", ["", ":8000"])
def test_without_a_token_the_server_is_asked_under_its_names_alone(host, port):
    with local_client(host=host) as client:
        names = {host if host != "::1" else "[::1]", "127.0.0.1", "LocalHost", "[::1]"}
        for name in names:
            assert client.get("/healthz", headers={"Host": name + port}).status_code == 200
        for name in ("127.0.0.3", "evil.example", "localhost.evil.example", "evil.example:localhost", "::1", ""):
            answer = client.get("/page/index.html", headers={"Host": name + port})
            assert answer.status_code == 400
            assert "localhost" in answer.json()["error"]["message"]


@pytest.mark.parametrize("token", ["12345678\n", "  12345678", " " * 8, "пароль-пароль", "1234\x005678", "1234\n5678"])
def test_a_token_that_no_client_can_send_is_refused(token):
    with pytest.raises(ValueError, match="no client can send: "):
        ServerSettings(token=token)


def test_a_token_of_any_printable_ascii_can_be_sent():
    token = "".join(map(chr, range(33, 127)))
    with local_client(token=token) as client:
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {token}"}).status_code == 200


def test_refused_requests_for_images_are_counted_once():
    json = {"Content-Type": "application/json"}
    asked = [
        ({"json": {"n": 0}}, 422),
        ({"json": {"asced": {"t_c": 3}, "steps": 3}}, 422),
        ({"json": {"asced": {"t_c": 3}, "steps": 3, "stream": True}}, 422),
        ({"content": b"{", "headers": json}, 400),
        ({"content": b"{}", "headers": {**json, "Host": "["}}, 400),
        ({"content": b" " * 2000, "headers": json}, 413),
        ({"json": {"steps": 1}}, 200),
    ]
    with local_client(max_body=1000) as client:
        for ask, status in asked:
            assert client.post(PATH, **ask).status_code == status
        for path in ("/v1/models", "/nothing"):  # not requests for images
            assert client.post(path, json={}).status_code in (404, 405)
        assert client.get(PATH).status_code == 405
        assert _counts(client) == {"422": 3, "400": 2, "413": 1, "200": 1}


def test_requests_without_the_token_and_slow_ones_are_counted():
    right = {"Authorization": f"Bearer {TOKEN}"}
    with local_client(token=TOKEN, body_seconds=1e-9) as client:
        assert client.post(PATH, json={}, headers=right).status_code == 408
        assert client.get("/v1/models").status_code == 401
        assert _counts(client, right) == {"408": 1}
    with local_client(token=TOKEN) as client:
        assert client.post(PATH, json={}).status_code == 401
        assert _counts(client, right) == {"401": 1}


def _counts(client, headers=None):
    lines = client.get("/metrics", headers=headers).text.splitlines()
    found = [line.split() for line in lines if line.startswith("ascedfast_requests_total{")]
    return {name.split('"')[1]: float(value) for name, value in found}
