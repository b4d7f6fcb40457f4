# SPDX-License-Identifier: MIT
"""Requests that no server may draw, by name: (method, path, headers, body)."""

import json

PATH = "/v1/images/generations"
JSON = {"Content-Type": "application/json"}
TRICKS = ("../../etc/passwd", "/etc/passwd", "..\\..\\x", "a\x00b", "file:///etc/passwd", "$(touch x)", "%2e%2e%2fx")


def _post(body, headers=None, path=PATH):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return "POST", path, JSON if headers is None else headers, content


def bad_requests(max_body):
    """Args: max_body: the server's limit in bytes."""
    found = {}

    def add(name, *request):
        assert name not in found
        found[name] = request

    values = {
        "n": [0, -1, 9, 1 << 70, 1.5, "1", None, True, [], {}, [1]],
        "steps": [0, -3, 251, 1 << 70, 2.5, "25", None, False, [], {"a": 1}],
        "seed": [-1, 1 << 63, 1 << 200, 0.5, "0", True, [0], {}],
        "size": [
            "65x64",
            "0x0",
            "1024x1024",
            "99999999999x1",
            "64",
            "x",
            "-64x-64",
            "",
            64,
            None,
            [64, 64],
            *TRICKS[:2],
        ],
        "prompt": ["a fox", 3, None, ["a"], "x" * 5000, *TRICKS],
        "model": ["dall-e-3", 1, [], *TRICKS],
        "response_format": ["url", "", None, 1],
        "output_format": ["jpeg", "../png", None],
        "stream": ["yes", 1, None],
        "user": [1, "x" * 201, {}],
        "asced": [1, "on", [], None],
        "quality": ["hd"],
        "__proto__": [{"n": 1}],
        "output": ["/tmp/x.png"],
    }
    for field, wrong in values.items():
        for i, value in enumerate(wrong):
            add(f"{field}-{i}", *_post({field: value}))
    asced = {
        "enabled": ["no", 1, None],
        "mode": ["quick", 1, "../fast", ["fast"]],
        "rate": [0, -0.1, 0.6, "0.1", True, [0.1]],
        "report": ["all", None, 2],
        "exact": ["true", 1, None],
        "t_c": [-1, 10_001, 1.5, "0.5", [1]],
        "window_start": [-1, 10_001, 1.0, "0"],
        "table": ["/etc/passwd"],
        "backend": ["native"],
    }
    for field, wrong in asced.items():
        for i, value in enumerate(wrong):
            add(f"asced.{field}-{i}", *_post({"asced": {field: value}}))
    add("rate-of-another-mode", *_post({"asced": {"mode": "fast", "rate": 0.1}}))
    add("rate-below-the-table", *_post({"asced": {"rate": 1e-9}}))
    add("t_c-past-the-end", *_post({"steps": 4, "asced": {"t_c": 4}}))
    add("t_c-at-the-start", *_post({"steps": 4, "asced": {"t_c": 0}}))
    add("t_c-no-share-of-a-step", *_post({"steps": 2, "asced": {"t_c": 0.01}}))
    add("window-after-t_c", *_post({"asced": {"t_c": 3, "window_start": 5}}))
    add("window-empty", *_post({"steps": 10, "asced": {"t_c": 5, "window_start": 0.5}}))
    add("window-of-calibrated", *_post({"asced": {"mode": "calibrated", "window_start": 3}}))
    for name in ("NaN", "Infinity", "-Infinity", "1e999"):
        for field in ("seed", "n", "steps"):
            add(f"{field}-{name}", *_post(f'{{"{field}": {name}}}'.encode()))
        for field in ("rate", "t_c"):
            add(f"asced.{field}-{name}", *_post(f'{{"asced": {{"{field}": {name}}}}}'.encode()))
    bodies = {
        "nothing": b"",
        "cut": b'{"n": 1',
        "null": b"null",
        "list": b"[]",
        "number": b"1",
        "text": b'"n"',
        "no-utf8": b'{"user": "\xff\xfe"}',
        "zeros": b"\x00" * 100,
        "deep": b"[" * 20_000,
        "deep-object": b'{"a":' * 5_000,
        "single-quotes": b"{'n': 1}",
        "comma": b'{"n": 1,}',
        "comment": b'{"n": 1} // one',
        "two": b'{"n": 1}{"n": 1}',
        "digits": b'{"seed": ' + b"9" * 5_000 + b"}",
        "xml": b"<n>1</n>",
        "form": b"n=1&steps=2",
        "half-a-surrogate": b'{"user": "\\ud800", "n": 0}',
    }
    for name, body in bodies.items():
        add(f"body-{name}", *_post(body))
    add("too-large", *_post(b'{"user": "' + b"x" * max_body + b'"}'))
    add("far-too-large", *_post(b" " * (20 * max_body)))
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "image/png", ""):
        add(f"type-{kind or 'none'}", *_post({"n": 1}, {"Content-Type": kind} if kind else {}))
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        add(f"method-{method}", method, PATH, {}, b"")
    add("post-metrics", *_post({}, path="/metrics"))
    add("post-page", *_post({}, path="/"))
    paths = {
        "unknown": "/v1/images/edits",
        "up": "/page/../app.py",
        "up-encoded": "/page/%2e%2e/app.py",
        "up-twice": "/page/..%2f..%2f..%2fetc%2fpasswd",
        "double-slash": "//etc/passwd",
        "null": "/page/%00",
        "absolute": "/page//etc/passwd",
        "backslash": "/page/..%5c..%5capp.py",
        "docs": "/docs",
        "long": "/" + "a" * 5_000,
    }
    for name, path in paths.items():
        add(f"path-{name}", "GET", path, {}, b"")
    add("other-host", "POST", PATH, {**JSON, "Host": "evil.example"}, b"{}")
    return found
