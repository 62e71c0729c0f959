"""Settings, from the environment and a `.env` file; the README's table is made from these fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from llamastead_server.domain.models.gpu_settings import CacheKind, GpuSettings

_DATABASE_URL = re.compile(r"postgresql(\+psycopg)?://.|sqlite(\+pysqlite)?:///(?!:memory:)[^?]")
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Settings(BaseSettings):
    """Everything an operator can set, each as `LLAMASTEAD_<NAME>`."""

    model_config = SettingsConfigDict(
        env_prefix="LLAMASTEAD_", env_file=".env", extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    host: str = Field("127.0.0.1", description="Address both ports listen on. Any but loopback needs a token.")
    port: int = Field(8000, ge=1, le=65535, description="Port for REST, SSE, gRPC, gRPC-Web and WebSocket (Envoy).")
    grpc_port: int = Field(50051, ge=1, le=65535, description="Port for gRPC without the gateway.")
    data_dir: Path = Field(
        Path("~/.llamastead"),
        validation_alias=AliasChoices("LLAMASTEAD_DATA_DIR", "LF_DATA_DIR", "data_dir"),
        description="Folder of projects, files, vectors and the database. `LF_DATA_DIR` works too.",
    )
    models_dir: Path | None = Field(None, description="Folder of models. Default: `models` in the data folder.")
    default_model: str | None = Field(
        None, description="Model for requests that name none. Default: the model on board."
    )
    model_aliases: dict[str, str] = Field(
        default_factory=dict, description='Other names for models, as JSON: `{"llama3.2:3b": "my-llama"}`.'
    )
    api_tokens: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Bearer tokens of the scope admin, separated by commas, beside those that `llamastead tokens` "
        "makes. No token at all: open, on loopback only.",
    )
    reflection: bool = Field(True, description="Whether gRPC clients may ask for the contract, without a token.")
    rate_limit_requests: int | None = Field(
        None, ge=0, description="Requests per minute and token (or address); 0: no limit. Default: 60 with tokens."
    )
    rate_limit_streams: int | None = Field(
        None, ge=0, description="Streams at once per token (or address); 0: no limit. Default: 10 with tokens."
    )
    rate_limit_batch: int | None = Field(
        None,
        ge=0,
        description="Batch operations per minute and token (or address); 0: no limit. Default: 5 with tokens.",
    )
    redis_url: str | None = Field(
        None,
        description="Redis or Valkey that several servers share to count requests and streams. Default: each counts "
        "its own.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_format: Literal["text", "json"] = Field("text", description="Log lines for people or for machines.")

    database_url: str | None = Field(
        None,
        description="Database for this server alone, as postgresql://user:password@host/database (the extra "
        "`postgres`) or sqlite:///file. Default: SQLite in the data folder.",
    )
    milvus_uri: str | None = Field(
        None,
        description="URI of a Milvus cluster, as https://host:19530; tested only with Milvus Lite on a port. Default: "
        "Milvus Lite in the data folder.",
    )
    milvus_token: str | None = Field(None, description="Token for the Milvus cluster.")
    embedding_model: str = Field(
        "all-MiniLM-L6-v2",
        description="sentence-transformers model: the one on board, or a folder in the models folder.",
    )

    context_length: int | None = Field(
        None, ge=256, description="Tokens per request's window. Default: the model's own, at most 8192."
    )
    engine_slots: int = Field(4, ge=1, le=256, description="Requests one engine decodes at once.")
    engine_queue: int = Field(32, ge=0, le=10_000, description="Requests that may wait per engine; more get 503.")
    engine_threads: int | None = Field(None, ge=1, description="Threads of the CPU engine. Default: cores less one.")
    remote_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Hosts whose models projects may use by `base_url`, separated by commas, as `host` (at port 443 of "
        "https, 80 of http) or `host:port`. None: no other server is called.",
    )
    gpu: Literal["auto", "off"] = Field("auto", description="Whether models may be loaded onto NVIDIA GPUs.")
    gpu_slots: int = Field(32, ge=1, le=256, description="Requests the GPU engine decodes at once.")
    gpu_cache: CacheKind = Field(
        "fp16", description="Precision of the GPU's cached keys and values: `fp16`, `q8`, `q6` or `q4`."
    )
    gpu_chunk: int = Field(
        2048, ge=256, le=65_536, multiple_of=256, description="Prompt tokens the GPU processes between decoding steps."
    )
    gpu_margin: float = Field(1.0, ge=0, description="Gigabytes that are left free on each GPU.")
    gpu_split: Annotated[tuple[float, ...] | None, NoDecode] = Field(
        None, description="Most gigabytes of weights for each GPU, separated by commas. Default: one after the other."
    )
    max_loaded_models: int = Field(2, ge=1, le=64, description="Models held in memory at once; the least used goes.")
    request_timeout: float = Field(600.0, gt=0, description="Seconds one completion may take.")

    max_upload_bytes: int = Field(1 << 30, ge=1, description="Largest file that can be uploaded.")
    max_body_bytes: int = Field(4 << 20, ge=1024, description="Largest JSON body.")
    parser_timeout: float = Field(120.0, gt=0, description="Seconds one document may take to parse.")
    parser_memory_bytes: int = Field(2 << 30, ge=256 << 20, description="Memory one document may take to parse.")
    session_ttl: float = Field(
        1800.0, gt=0, description="Seconds of inactivity after which a chat session is forgotten."
    )
    shutdown_grace: float = Field(10.0, ge=0, description="Seconds running requests get to end at shutdown.")
    examples_dir: Path | None = Field(None, description="Folder of example projects. Default: the ones on board.")
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Web origins allowed to call the API, separated by commas, beside loopback ones. `*`: any."
    )

    @field_validator("api_tokens", "cors_origins", "remote_hosts", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("redis_url", mode="after")
    @classmethod
    def _known_scheme(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("redis://", "rediss://", "redis+unix://")):
            raise ValueError("use redis://, rediss:// or redis+unix://")
        return value

    @field_validator("database_url", mode="after")
    @classmethod
    def _known_database(cls, value: str | None) -> str | None:
        if value is not None and not _DATABASE_URL.match(value):
            raise ValueError("use postgresql://user:password@host/database or sqlite:///file")
        return value

    @field_validator("milvus_uri", mode="after")
    @classmethod
    def _known_cluster(cls, value: str | None) -> str | None:
        # A file's name would make the client start an embedded server of its own, which nothing looks after.
        if value is not None and not re.match(r"(https?|tcp)://[^/\s]", value):
            raise ValueError("use http://host:port or https://host:port")
        return value

    @field_validator("gpu_split", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        return [float(part) for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("data_dir", "models_dir", "examples_dir", mode="after")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        return None if value is None else value.expanduser().absolute()

    @model_validator(mode="after")
    def _two_ports(self) -> Settings:
        if self.port == self.grpc_port:
            raise ValueError("LLAMASTEAD_PORT and LLAMASTEAD_GRPC_PORT must differ")
        return self

    @property
    def exposed(self) -> bool:
        """Whether others can reach the server."""
        return self.host not in _LOOPBACK

    @property
    def models_folder(self) -> Path:
        """Where models are looked for."""
        return self.models_dir or self.data_dir / "models"

    @property
    def gpu_defaults(self) -> GpuSettings:
        """How models are loaded onto GPUs unless they say otherwise."""
        return GpuSettings(
            context_length=self.context_length,
            slots=self.gpu_slots,
            cache=self.gpu_cache,
            chunk=self.gpu_chunk,
            margin=self.gpu_margin,
            split=self.gpu_split,
        )


def table() -> str:
    """The settings as the README's Markdown table."""
    rows = ["| Setting | Default | Meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        shown = "" if default in (None, (), {}) else f"`{default}`"
        rows.append(f"| `LLAMASTEAD_{name.upper()}` | {shown} | {field.description} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
