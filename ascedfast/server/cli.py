# SPDX-License-Identifier: MIT
"""``ascedfast serve``; what it needs beyond the core is imported when it is called."""

import os
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from ascedfast.console import fail, quiet_diffusers

EXTRA = "pip install 'ascedfast[serve]' (in a checkout: pip install -c constraints.txt -e '.[serve]')"
Pipeline = Annotated[Path | None, typer.Option(help="Folder of a diffusers pipeline. Default: the packaged model.")]
Table = Annotated[Path | None, typer.Option(help="Of sound runs, for mode calibrated.")]
Replicas = Annotated[int | None, typer.Option(help="Processes with a model each. Default: 1.")]
Gpus = Annotated[float | None, typer.Option(help="GPUs of each replica. Default: 0, on the CPU.")]
Threads = Annotated[int | None, typer.Option(help="Of torch in each replica. Default: 1.")]
MaxRows = Annotated[int | None, typer.Option(help="Images that a replica steps at once. Default: 32.")]
Folder = Annotated[Path | None, typer.Option(help="For Ray's logs and sockets. Default: /tmp/ray.")]


def serve(
    pipeline: Pipeline = None,
    table: Table = None,
    host: Annotated[str | None, typer.Option(help="Default: 127.0.0.1; beyond loopback a token is needed.")] = None,
    port: Annotated[int | None, typer.Option(help="Default: 8000.")] = None,
    replicas: Replicas = None,
    num_gpus: Gpus = None,
    threads: Threads = None,
    max_rows: MaxRows = None,
    queue: Annotated[int | None, typer.Option(help="Images that may wait beyond those. Default: 128.")] = None,
    folder: Folder = None,
) -> None:
    """Serve a model over HTTP: OpenAI's images API, progress, metrics, a page at /. SIGTERM drains and ends it.

    More settings, the token among them, come from the environment: ASCEDFAST_SERVER_<NAME>, see docs/serving.md.
    """
    given = {"pipeline": pipeline, "table": table, "host": host, "port": port, "replicas": replicas}
    given |= {"num_gpus": num_gpus, "threads": threads, "max_rows": max_rows, "queue": queue, "folder": folder}
    settings = _settings(given)
    _check_port(settings.host, settings.port)
    size = _size_of(settings)
    from ascedfast.server.start import serve_until_told

    try:
        left = serve_until_told(settings, size)
    except (RuntimeError, OSError) as error:
        fail(f"the server cannot be started: {error}")
    if left:
        fail(f"{left} images were not drawn in {settings.drain_seconds:g} s: set ASCEDFAST_SERVER_DRAIN_SECONDS higher")


def _settings(given: dict[str, Any]) -> Any:
    """Checked, or exit with a message. Also sets what Ray reads when it is imported."""
    try:
        from pydantic import ValidationError
        from pydantic_settings import SettingsError

        from ascedfast.server.ray_environment import set_ray_environment
        from ascedfast.server.settings import ServerSettings

        set_ray_environment()
        import ray.serve  # noqa: F401 - to miss it here, and not in the middle
    except ModuleNotFoundError as error:
        fail(f"this command needs {error.name}: {EXTRA}")
    try:
        return ServerSettings(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        fail("; ".join(_in_words(one) for one in error.errors()))
    except SettingsError as error:  # of a list
        fail(f"{error}: give it as JSON, as ASCEDFAST_SERVER_MODES='[\"fast\"]'")


def _in_words(error: Any) -> str:
    name = ".".join(map(str, error["loc"]))
    variable = f"ASCEDFAST_SERVER_{name.upper()}"
    where = f"{variable}: " if variable in os.environ else f"{name} " if name else ""
    return where + error["msg"].removeprefix("Value error, ")


def _check_port(host: str, port: int) -> None:
    """Exits where nobody can listen there, before Ray and the model are loaded."""
    try:
        socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET).close()
    except OSError as error:
        why = str(error.strerror).partition(" (while")[0]
        fail(f"{host}:{port} cannot be listened on ({why}): choose another --port, or --host")


def _size_of(settings: Any) -> tuple[int, int]:
    """(height, width) of the model's images; exits where the model cannot be served."""
    from ascedfast.adapters.pipeline_folder import FolderError
    from ascedfast.server.model import load_model, load_null_table

    quiet_diffusers()
    try:
        load_null_table(settings)
        return load_model(settings.model_copy(update={"num_gpus": 0})).shape[1:]
    except (FolderError, OSError, ValueError) as error:
        fail(str(error))
