# SPDX-License-Identifier: MIT
"""What an operator chooses: one typed object, from arguments, or from the environment as ASCEDFAST_SERVER_<NAME>."""

import ipaddress
from pathlib import Path
from typing import Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ascedfast.config import MODES, Mode

PACKAGED = "emoji64-dit"
"""The model that is served where no folder is given."""

LONGEST_FOLDER = 45
"""A socket's path has 107 bytes at most, and Ray's are 62 longer than its folder's."""


class ServerSettings(BaseSettings):
    """Settings of a server. Lengths of time are in seconds.

    Attributes:
        pipeline: folder of a diffusers pipeline, weights in safetensors. None: the packaged transformer.
        table: of sound runs, for mode "calibrated". None: asced_null.json in the folder, else the packaged one.
        host, port: where HTTP is listened for. Without ``token`` the host must be a loopback address.
        token: what clients send as "Authorization: Bearer ...", printable ASCII. None: nobody is asked for one.
        folder: the only folder that is written into: logs and sockets of Ray. None: Ray's own, /tmp/ray.
        replicas: processes with a model each. num_cpus, num_gpus: what Ray sets aside for each; with a GPU the model
            runs on it. threads: of torch in each. seconds_to_start: for all replicas to load it.
        max_rows: images that a replica steps at once; further ones wait.
        queue: images that wait beyond those that are stepped; a request for more is answered 429.
        max_n, max_steps: images and steps of one request. max_body: bytes of one request.
        modes: of the treatment. On a GPU each replica keeps max_rows * max_steps maps of float32, and of "official" and
            "paper" as many states, of uint8 and of float32: leave out what nobody asks for.
        body_seconds: for a body to arrive. request_seconds: for a request to be answered.
        drain_seconds: for running requests to end when the server is told to stop.
        retry_after: what a client that meets a full queue is told to wait.
        retries: how often a request is sent again when the replica that ran it has died.
    """

    model_config = SettingsConfigDict(env_prefix="ASCEDFAST_SERVER_", extra="forbid", frozen=True)

    pipeline: Path | None = None
    table: Path | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    token: SecretStr | None = Field(default=None, min_length=8)
    folder: Path | None = None
    replicas: int = Field(default=1, ge=1)
    num_cpus: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    num_gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    threads: int = Field(default=1, ge=1)
    seconds_to_start: float = Field(default=600, gt=0)
    max_rows: int = Field(default=32, ge=1)
    queue: int = Field(default=128, ge=0)
    max_n: int = Field(default=8, ge=1, le=1 << 16)
    max_steps: int = Field(default=250, ge=1, le=10_000)
    modes: tuple[Mode, ...] = Field(default=MODES, min_length=1)
    max_body: int = Field(default=1 << 16, ge=1)
    body_seconds: float = Field(default=10, gt=0)
    request_seconds: float = Field(default=300, gt=0)
    drain_seconds: float = Field(default=60, ge=0)
    retry_after: int = Field(default=2, ge=1)
    retries: int = Field(default=10, ge=0)

    @field_validator("pipeline", "table", "folder")
    @classmethod
    def _resolve(cls, path: Path | None) -> Path | None:
        return None if path is None else path.resolve()  # the replicas work in another folder

    @field_validator("token")
    @classmethod
    def _can_be_sent(cls, token: SecretStr | None) -> SecretStr | None:
        text = "" if token is None else token.get_secret_value()
        if text != text.strip():
            raise ValueError(
                "begins or ends with a blank or a line break, which no client can send: leave it out "
                "($(cat FILE) does for a file)"
            )
        if not (text.isascii() and text.isprintable()):
            raise ValueError("holds what no client can send: printable ASCII only, such as openssl rand -hex 32 makes")
        return token

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.token is None and not self.is_loopback:
            raise ValueError(
                f"host {self.host} can be reached from other machines: set a token, ASCEDFAST_SERVER_TOKEN, which "
                "clients then send, or host 127.0.0.1"
            )
        if self.folder is not None and len(str(self.folder)) > LONGEST_FOLDER:
            raise ValueError(
                f"folder {self.folder} is too long for the sockets in it: at most {LONGEST_FOLDER} letters"
            )
        if self.max_n > self.max_rows:
            raise ValueError(f"max_n {self.max_n} is above max_rows {self.max_rows}: such a request could never start")
        return self

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches ``host``."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def name(self) -> str:
        """Of the model, as requests may name it."""
        return PACKAGED if self.pipeline is None else self.pipeline.name

    @property
    def in_flight(self) -> int:
        """Images that are being stepped or wait, at most."""
        return self.replicas * self.max_rows + self.queue
