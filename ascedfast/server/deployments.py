# SPDX-License-Identifier: MIT
"""The two deployments of Ray Serve: replicas that draw, and one that answers HTTP."""

from ray import serve
from ray.serve.config import BackpressureConfig

from ascedfast.server.ingress import Ingress
from ascedfast.server.model import load_model
from ascedfast.server.replica import Load, Replica
from ascedfast.server.settings import ServerSettings

SPARE = 64
"""Calls beyond those for images, which are answered while the queue is full: health, metrics, the page."""


def application(settings: ServerSettings, size: tuple[int, int], load: Load = load_model) -> serve.Application:
    """What ``serve.run`` runs. Args: size: (height, width) of the model's images. load: makes it, in each replica."""
    full = BackpressureConfig(status_code=429, retry_after_s=settings.retry_after)
    replicas = serve.deployment(
        Replica,
        num_replicas=settings.replicas,
        max_ongoing_requests=settings.in_flight + SPARE,  # the ingress counts; here it would hold back metrics too
        ray_actor_options={"num_cpus": settings.num_cpus, "num_gpus": settings.num_gpus},
        graceful_shutdown_timeout_s=settings.drain_seconds,
        health_check_period_s=2,
    )
    ingress = serve.deployment(
        Ingress,
        num_replicas=1,
        max_ongoing_requests=settings.in_flight + SPARE,
        max_queued_requests=SPARE,
        backpressure_config=full,
        ray_actor_options={"num_cpus": 0},
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )
    return ingress.bind(settings, size, replicas.bind(settings, load))
