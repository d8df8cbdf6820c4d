"""What a person has set up once: named endpoints, addresses, limits, prices and aliases, in `config.toml`."""

import os
import re
import tomllib
from pathlib import Path
from typing import Self

import platformdirs
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pidgin_cli.core.errors import SpecError

from .errors import explain

__all__ = ["EndpointSettings", "ModelSettings", "ProviderSettings", "Settings", "config_folder", "load_settings"]


class _Checked(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LimitSettings(_Checked):
    """Limits of an account, shared by all conversations of a process. Unset: found out while running."""

    max_concurrency: int | None = Field(None, ge=1, description="Requests under way at once")
    requests_per_minute: int | None = Field(None, ge=1)
    tokens_per_minute: int | None = Field(None, ge=1, description="Input and output together")


class EndpointSettings(LimitSettings):
    """A server that speaks OpenAI's chat completions; its models are `<name>:<model>`."""

    base_url: str = Field(description="Such as http://gpu:8000/v1")
    api_key_env: str | None = Field(None, description="Environment variable that holds its key")
    context: int | None = Field(None, ge=1, description="Context window of its models, in tokens")


class ProviderSettings(LimitSettings):
    """Changes to a provider that Pidgin knows."""

    base_url: str | None = Field(None, description="Where to reach it; the environment variable wins")


class ModelSettings(_Checked):
    """What is known better about one model than the price data says. Prices in USD per million tokens."""

    context: int | None = Field(None, ge=1, description="Context window in tokens")
    input_price: float | None = Field(None, ge=0)
    output_price: float | None = Field(None, ge=0)
    cached_price: float | None = Field(None, ge=0, description="Input tokens read from the provider's cache")
    cache_write_price: float | None = Field(None, ge=0, description="Input tokens written to the provider's cache")

    @model_validator(mode="after")
    def _prices_come_together(self) -> Self:
        if (self.input_price is None) != (self.output_price is None):
            raise ValueError("input_price and output_price go together; give both or neither")
        for name in ("cached_price", "cache_write_price"):
            if getattr(self, name) is not None and self.input_price is None:
                raise ValueError(f"{name} needs input_price and output_price beside it")
        return self


class Settings(_Checked):
    """All of `config.toml`."""

    aliases: dict[str, str] = Field(default_factory=dict, description="Short names for models")
    endpoints: dict[str, EndpointSettings] = Field(default_factory=dict)
    providers: dict[str, ProviderSettings] = Field(default_factory=dict)
    models: dict[str, ModelSettings] = Field(default_factory=dict, description="By `provider:model`")

    @field_validator("models")
    @classmethod
    def _whole_ids(cls, models: dict[str, ModelSettings]) -> dict[str, ModelSettings]:
        for name in models:
            if not re.fullmatch(r"[^:]+:.+", name, re.DOTALL):
                raise ValueError(f'{name!r} is no id; write [models."PROVIDER:MODEL"]')
        return models


def config_folder() -> Path:
    """`PIDGIN_CONFIG_DIR`, or where this system keeps settings."""
    return Path(os.environ.get("PIDGIN_CONFIG_DIR") or platformdirs.user_config_dir("pidgin"))


def load_settings(folder: Path | None = None) -> Settings:
    """The person's settings; all defaults where there is no file.

    Raises:
        SpecError: the file cannot be read or is wrong; every fault on a line of its own.
    """
    path = (folder or config_folder()) / "config.toml"
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return Settings()
    except OSError as error:
        raise SpecError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{path} is not valid TOML: {error}") from None
    try:
        return Settings.model_validate(data)
    except ValidationError as error:
        raise SpecError(explain(error, str(path), model=Settings)) from None
