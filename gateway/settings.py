"""Every setting of the gateway: one `NUNCHI_…` environment variable each, read once, empty and wrong values refused.

Only the gateway's own variables are looked at; the other rooms share the prefix.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from gateway.errors import SettingRefused

ROOT = Path(__file__).resolve().parent.parent
PREFIX = "NUNCHI_"
SHORTEST_ADMIN_KEY = 16  # characters


def _not_empty(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise ValueError("it is empty; name a path, or unset it")
    return value


def _origins(value: str) -> str:
    for origin in value.split(","):
        if origin.strip() != "*" and not re.fullmatch(r"https?://[^/\s,*@]+", origin.strip()):
            raise ValueError(
                f"{origin.strip()[:100]!r} is not an origin such as https://example.org (scheme and host, no path); "
                "mend the list, or say * for every origin"
            )
    if "*" in value and value.strip() != "*":
        raise ValueError("* stands for every origin, so it stands alone; leave out the others, or the *")
    return value


Port = Annotated[int, Field(ge=1, le=65535)]
Folder = Annotated[Path, BeforeValidator(_not_empty)]
Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
URL = Annotated[str, StringConstraints(pattern=r"^https?://[^\s,/?#]+[^\s,?#]*$")]


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, populate_by_name=True)

    host: Name = Field("127.0.0.1", description="address the gateway listens on")
    gateway_port: Port = Field(8080, description="port the gateway listens on")
    triton_grpc_host: Name = Field("127.0.0.1", description="host of Triton's gRPC endpoint")
    triton_grpc_port: Port = Field(8001, description="port of Triton's gRPC endpoint")
    model_repository: Folder = Field(
        Path("model_repository"), description="folder with serving.json; relative to the repository root"
    )
    api_key: SecretStr | None = Field(None, description="when set, /v1/… asks for `Authorization: Bearer <key>`")
    api_keys_file: Folder | None = Field(
        None, description="file of keys, one `name: key` per line, read again when it changes; not readable by others"
    )
    admin_key: SecretStr | None = Field(
        None, description="key of /v1/operations, 16 characters or more; nobody may operate when unset"
    )
    host_without_key: Name | None = Field(
        None, description="the address of NUNCHI_HOST once more, to listen there although no key is set"
    )
    cors_origins: Annotated[Name, AfterValidator(_origins)] | None = Field(
        None, description="origins whose pages may ask, separated by commas, or * for all; none when unset"
    )
    max_in_flight: int = Field(
        4096, ge=1, le=1_000_000, description="texts (not requests) ever let in at one time; usually 429 comes earlier"
    )
    max_texts: int = Field(1024, ge=1, le=100_000, description="texts in one batch request")
    max_text_characters: int = Field(20_000, ge=1, le=1_000_000, description="characters of one text")
    max_body_bytes: int = Field(1_000_000, ge=100, le=100_000_000, description="bytes of one request body")
    deadline_seconds: float = Field(15.0, gt=0, le=600, description="seconds from a request to its answer; then 504")
    log_format: Literal["json", "text"] = Field("json", description="lines of the log: JSON objects, or for people")
    otlp_endpoint: URL | None = Field(
        None, description="base URL of an OTLP/HTTP collector, as http://127.0.0.1:4318; traces are off without one"
    )
    replicas: int = Field(1, ge=1, le=1000, description="gateways on a Ray cluster (RAY_ADDRESS); the fewest of them")
    max_replicas: int | None = Field(
        None, ge=1, le=1000, description="as many gateways there may be when many requests come; never more when unset"
    )
    requests_per_replica: float = Field(
        16.0,
        gt=0,
        le=100_000,
        description="requests at a time that are work for one gateway, where their number varies",
    )
    scale_down_seconds: float = Field(
        60.0, ge=1, le=86_400, description="seconds for which a gateway has to be one too many before it is stopped"
    )
    ray_address: Name | None = Field(
        None, validation_alias="RAY_ADDRESS", description="a running Ray cluster to join; else a private one is started"
    )

    @model_validator(mode="after")
    def a_full_batch_can_be_let_in(self) -> Self:
        if self.max_texts > self.max_in_flight:
            raise ValueError(
                f"NUNCHI_MAX_TEXTS is {self.max_texts} but NUNCHI_MAX_IN_FLIGHT only {self.max_in_flight}, so a full "
                "batch could never be let in; raise the one or lower the other"
            )
        return self

    @model_validator(mode="after")
    def the_most_replicas_are_no_fewer_than_the_fewest(self) -> Self:
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError(
                f"NUNCHI_MAX_REPLICAS is {self.max_replicas} but NUNCHI_REPLICAS already {self.replicas}; raise the "
                "one, lower the other, or unset NUNCHI_MAX_REPLICAS to keep their number"
            )
        return self

    @model_validator(mode="after")
    def the_key_is_not_empty(self) -> Self:
        if self.api_key is not None and not self.api_key.get_secret_value().strip():
            raise ValueError("NUNCHI_API_KEY is empty; give it a value, or unset it to serve without a key")
        return self

    @model_validator(mode="after")
    def the_admin_key_is_long_and_fits_a_header(self) -> Self:
        if self.admin_key is None:
            return self
        key = self.admin_key.get_secret_value()
        if len(key) < SHORTEST_ADMIN_KEY or not re.fullmatch("[!-~]*", key):
            raise ValueError(
                f"NUNCHI_ADMIN_KEY has {len(key)} characters; give it {SHORTEST_ADMIN_KEY} or more, printable ASCII "
                "without spaces (openssl rand -hex 16), or unset it"
            )
        return self

    @model_validator(mode="after")
    def without_a_key_only_this_machine_is_served(self) -> Self:
        if self.asks_for_a_key or _is_loopback(self.host) or self.host_without_key == self.host:
            return self
        raise ValueError(
            f"NUNCHI_HOST is {self.host}, where other machines reach it, and there is no key; set NUNCHI_API_KEYS_FILE "
            "or NUNCHI_API_KEY, or keep the host 127.0.0.1, or say that it is meant with "
            f"NUNCHI_HOST_WITHOUT_KEY={self.host}"
        )

    @property
    def asks_for_a_key(self) -> bool:
        return self.api_key is not None or self.api_keys_file is not None

    @property
    def keys_path(self) -> Path | None:
        """The file of keys as an absolute path."""
        return self.api_keys_file and ROOT / self.api_keys_file

    @property
    def origins(self) -> list[str]:
        return [each.strip() for each in self.cors_origins.split(",")] if self.cors_origins else []

    @property
    def repository(self) -> Path:
        """The model repository as an absolute path."""
        return ROOT / self.model_repository

    @property
    def triton_address(self) -> str:
        return f"{self.triton_grpc_host}:{self.triton_grpc_port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings() -> Settings:
    """Settings from the environment; SettingRefused, in one sentence per wrong value, otherwise."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingRefused("; ".join(_sentence(each) for each in error.errors())) from None


def _sentence(error: dict) -> str:
    if not error["loc"]:  # one of our own cross-checks: its message is the sentence
        return str(error["ctx"]["error"])
    field = str(error["loc"][0])
    variable = field if field.isupper() else PREFIX + field.upper()
    purpose = Settings.model_fields.get(field)
    shown = "" if field in ("api_key", "admin_key") else f" is {error['input']!r}"
    reason = error["msg"][0].lower() + error["msg"][1:]
    return f"{variable}{shown}: {reason}" + (f" ({purpose.description})" if purpose else "")
