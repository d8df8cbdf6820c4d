"""What a person has set up, made to count in this process."""

from pidgin_cli.core.errors import SpecError
from pidgin_cli.providers.registry import PROVIDERS, add_provider, endpoint, load_plugins
from pidgin_cli.spec.catalogue import use_settings
from pidgin_cli.spec.settings import Settings, load_settings

__all__ = ["use_person_settings"]


def use_person_settings() -> Settings:
    """Load plug-ins and `config.toml`: endpoints, addresses, limits, aliases and prices.

    Raises:
        SpecError: the file or a plug-in is wrong.
    """
    load_plugins()
    settings = load_settings()
    for name, given in settings.endpoints.items():
        made = endpoint(name, given.base_url, given.api_key_env)
        add_provider(
            made._replace(
                max_concurrency=given.max_concurrency,
                requests_per_minute=given.requests_per_minute,
                tokens_per_minute=given.tokens_per_minute,
            )
        )
    for name, changes in settings.providers.items():
        if name not in PROVIDERS:
            raise SpecError(f"config.toml: providers: no provider {name!r}; there are {', '.join(PROVIDERS)}")
        set_here = {key: value for key, value in changes.model_dump().items() if value is not None}
        add_provider(PROVIDERS[name]._replace(**set_here))
    use_settings(settings)
    return settings
