# SPDX-License-Identifier: MIT
"""The HTTP side: routes, limits and errors around whoever draws."""

from pathlib import Path

from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from ascedfast._version import __version__
from ascedfast.server.auth import HostCheck, bearer_check
from ascedfast.server.backend import Backend
from ascedfast.server.errors import add_handlers
from ascedfast.server.images import UNKNOWN, Counted, images_router
from ascedfast.server.limits import BodyLimits
from ascedfast.server.metrics import Gathered, ServerMetrics
from ascedfast.server.settings import ServerSettings

PAGE = Path(__file__).parent / "page"
SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def create_app(
    settings: ServerSettings, size: tuple[int, int], backend: Backend, metrics: ServerMetrics | None = None
) -> FastAPI:
    """Args: size: (height, width) of the model's images. The app's ``state.counted`` counts images in flight."""
    metrics = metrics or ServerMetrics()
    app = FastAPI(
        title="ascedfast",
        version=__version__,
        description="Images whose emerging artifacts are repaired while they are drawn.",
        docs_url=None,  # these two load scripts from elsewhere
        redoc_url=None,
    )
    counted = app.state.counted = Counted(settings, metrics)
    guarded = [] if settings.token is None else [Depends(bearer_check(settings.token))]
    app.include_router(images_router(settings, size, backend, counted), dependencies=guarded)
    app.include_router(_watching(backend, metrics), dependencies=guarded)
    app.include_router(_health(backend, counted))
    app.include_router(_page())
    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    add_handlers(app, settings, counted.refused)
    app.add_middleware(BodyLimits, most=settings.max_body, seconds=settings.body_seconds)
    if settings.token is None:
        app.add_middleware(HostCheck, host=settings.host)
    return app


def _watching(backend: Backend, metrics: ServerMetrics) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **UNKNOWN})
    async def prometheus() -> Response:
        """Counts of the server and of all replicas, for Prometheus."""
        replicas = await backend.metrics()
        metrics.replicas.set(len(replicas))
        gathered = CollectorRegistry()
        gathered.register(Gathered(replicas))
        text = generate_latest(metrics.registry) + generate_latest(gathered)
        return Response(text, headers={"Content-Type": CONTENT_TYPE_LATEST})

    return router


def _health(backend: Backend, counted: Counted) -> APIRouter:
    router = APIRouter(tags=["operation"])

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the server answers at all."""
        return {"status": "ok"}

    @router.get("/readyz", responses={503: {"description": "Not now."}})
    async def readyz() -> JSONResponse:
        """Whether a request would be drawn."""
        if counted.is_stopping:
            return JSONResponse({"status": "stopping"}, 503)
        ready = await backend.is_ready()
        return JSONResponse({"status": "ready" if ready else "starting"}, 200 if ready else 503)

    return router


def _page() -> APIRouter:
    router = APIRouter(include_in_schema=False)

    @router.get("/", response_class=FileResponse)
    async def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers=SAFE)

    return router
