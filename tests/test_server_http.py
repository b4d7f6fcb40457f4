# SPDX-License-Identifier: MIT
"""Answers, events, metrics and health of the HTTP side, and the command that starts it; no Ray."""

import json
import os
import socket
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families
from server_local import local_app, local_client
from starlette.testclient import TestClient
from typer.testing import CliRunner

from ascedfast.cli import app as commands
from ascedfast.server.app import create_app
from ascedfast.server.errors import BusyError, LostError
from ascedfast.server.settings import ServerSettings
from benchmarks.serving.load import body_of, requests
from benchmarks.serving.stub import PLACES, SHAPE, alone, differences

PATH = "/v1/images/generations"


@pytest.fixture(scope="module")
def client():
    with local_client() as client:
        yield client


@pytest.mark.parametrize("request_", requests(12, seed=9), ids=range(12))
def test_an_answer_is_what_the_request_gives_alone(client, request_):
    assert differences(body_of(client.post(PATH, json=request_)), alone(request_)) == []


def test_differences_are_seen():
    request = {"seed": 1, "steps": 6, "asced": {"report": "masks", **PLACES}}
    with local_client() as client:
        answer = client.post(PATH, json=request).json()
    assert differences(answer, alone({**request, "seed": 2})) != []
    less = alone({**request, "asced": {**request["asced"], "report": "severity"}})
    assert differences(answer, less) == ["mask", "mask_grown"]
    assert "asced" in differences(answer, alone({**request, "asced": {"enabled": False}}))


def test_a_seed_is_drawn_and_told(client):
    first, second = (client.post(PATH, json={"steps": 2}).json()["data"][0]["seed"] for _ in range(2))
    assert first != second
    assert min(first, second) >= 0


@pytest.mark.parametrize("ask", [{"json": {"stream": True, "steps": 3}}, {"json": {"steps": 3}, "headers": {}}])
def test_events_end_with_the_answer(client, ask):
    if "headers" in ask:
        ask["headers"] = {"Accept": "text/event-stream"}
    with client.stream("POST", PATH, **ask) as answer:
        lines = [line for line in answer.iter_lines() if line]
    events = list(zip(lines[::2], lines[1::2], strict=True))
    assert [name for name, _ in events] == ["event: progress"] * 3 + ["event: completed"]
    data = [json.loads(line.removeprefix("data: ")) for _, line in events]
    assert data[:3] == [{"step": k, "steps": 3} for k in (1, 2, 3)]
    assert data[3]["data"][0]["b64_json"]


def test_what_is_refused_before_the_first_step_has_its_status_though_events_were_asked_for(client):
    answer = client.post(PATH, json={"stream": True, "steps": 3, "asced": {"t_c": 3}})
    assert answer.status_code == 422
    assert "t_c = 3 is past the end" in answer.json()["error"]["message"]


class Failing:
    """A backend that raises, at once or after a step."""

    def __init__(self, error):
        self.error = error

    async def draw(self, request):
        raise self.error

    async def draw_in_steps(self, request):
        yield 1
        raise self.error

    async def metrics(self):
        return {}

    async def is_ready(self):
        return False


@pytest.mark.parametrize(
    ("error", "status"), [(BusyError(), 429), (LostError(), 503), (RuntimeError("a secret"), 500), (KeyError("x"), 500)]
)
def test_faults_of_the_server_are_told_without_what_they_hold(error, status):
    app = create_app(ServerSettings(), (16, 16), Failing(error))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        answer = client.post(PATH, json={})
        assert answer.status_code == status
        assert ("retry-after" in answer.headers) == (status in (429, 503))
        assert "secret" not in answer.text
        with client.stream("POST", PATH, json={"stream": True}) as answer:
            lines = [line for line in answer.iter_lines() if line]
        assert lines[2] == "event: error"
        assert "secret" not in lines[3]
        assert client.get("/readyz").status_code == 503
        assert client.get("/healthz").status_code == 200


def test_metrics_are_prometheus_and_count(client):
    def values():
        families = text_string_to_metric_families(client.get("/metrics").text)
        return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}

    before = values()
    watched = {"seed": 5, "n": 2, "steps": 6, "asced": PLACES}
    statuses = [one["asced"]["status"] for one in alone(watched)]
    client.post(PATH, json=watched)
    client.post(PATH, json={"n": 1, "steps": 6, "asced": {"enabled": False}})
    client.post(PATH, json={"n": 0})
    replica = next(dict(labels)["replica"] for (_, *labels) in values() if "replica" in dict(labels))

    def grew(name, **labels):
        key = (name, *sorted(labels.items()))
        return values()[key] - before.get(key, 0)

    one = {"replica": replica}
    assert grew("ascedfast_requests_total", code="200") == 2
    assert grew("ascedfast_row_steps_total", **one) == 18
    assert grew("ascedfast_step_seconds_count", **one) == 12
    assert grew("ascedfast_batch_fill_sum", **one) == pytest.approx(18 / 32)
    assert grew("ascedfast_images_total", status="off", **one) == 1
    assert grew("ascedfast_images_total", status="corrected", **one) == statuses.count("corrected") > 0
    assert grew("ascedfast_severity_count", mode="fast", **one) == 2
    assert 0 < values()["ascedfast_corrected_share", ("replica", replica)] <= 1
    assert values()["ascedfast_images_in_flight",] == 0
    assert values()["ascedfast_replicas",] == 1
    assert client.get("/metrics").headers["content-type"].startswith("text/plain; version=")


def test_while_it_stops_nothing_new_is_taken():
    with local_app() as app:
        app.state.counted.is_stopping = True
        with TestClient(app, base_url="http://127.0.0.1") as client:
            answer = client.post(PATH, json={"steps": 1})
            assert answer.status_code == 503
            assert answer.headers["retry-after"] == "2"
            assert client.get("/readyz").json() == {"status": "stopping"}


def test_the_page_may_load_nothing_from_elsewhere(client):
    policy = client.get("/").headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "http" not in policy
    for name in ("page.css", "page.js"):
        assert client.get(f"/page/{name}").status_code == 200


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--host", "0.0.0.0"], "set a token"),
        (["--port", "0"], "port"),
        (["--max-rows", "0"], "max_rows"),
        (["--folder", "/tmp/" + "x" * 60], "too long"),
        (["--pipeline", "/nowhere"], "is not a folder"),
        (["--table", "/nowhere"], "nowhere"),
    ],
)
def test_a_server_that_cannot_be_is_refused_in_words(arguments, why, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # what the command would set stays out of other tests
    done = CliRunner().invoke(commands, ["serve", *arguments])
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = CliRunner().invoke(commands, ["serve", "--port", str(port), "--pipeline", "/nowhere"])
    assert done.exit_code == 2
    assert f"127.0.0.1:{port} cannot be listened on (Address already in use): choose another --port" in " ".join(
        done.output.split()
    )


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("MODES", "fast", "give it as JSON"),
        ("MAX_N", "foo", "ASCEDFAST_SERVER_MAX_N: Input should be a valid integer"),
    ],
)
def test_a_variable_that_cannot_be_read_is_named(name, value, why, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv(f"ASCEDFAST_SERVER_{name}", value)
    done = CliRunner().invoke(commands, ["serve"])
    assert done.exit_code == 2
    assert why in " ".join(done.output.split())


def test_what_is_no_json_is_unreadable(client):
    answer = client.post(PATH, content="nope", headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("the body: this is no JSON")


def test_an_image_that_was_not_judged_has_no_area(client):
    found = client.post(PATH, json={"steps": 2, "asced": {"mode": "fast"}}).json()["data"][0]["asced"]
    assert found["status"] == "unavailable"
    assert (found["severity"], found["area"]) == (None, None)


def test_without_ray_the_command_names_the_extra(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError(\"No module named 'ray'\", name='ray')")
    done = subprocess.run(
        [sys.executable, "-m", "ascedfast", "serve"],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{os.getcwd()}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "this command needs ray: pip install 'ascedfast[serve]'" in " ".join(done.stderr.split())


def test_the_size_is_the_models():
    with local_client() as client:
        answer = client.post(PATH, json={"size": "16x16", "steps": 1}).json()
    assert answer["size"] == f"{SHAPE[2]}x{SHAPE[1]}"


def test_what_answers_http_imports_no_model():
    code = "import sys, ascedfast.server.ingress; sys.exit('diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
