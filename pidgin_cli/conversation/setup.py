"""What a person has set up, made to count in this process."""

import threading

from pidgin_cli.core.errors import SpecError
from pidgin_cli.providers.registry import BUILT_IN, INSIDE, PROVIDERS, add_provider, endpoint, load_plugins
from pidgin_cli.spec.catalogue import resolve_model, use_settings
from pidgin_cli.spec.errors import nearest
from pidgin_cli.spec.settings import Settings, config_folder, load_settings

__all__ = ["ensure_person_settings", "use_person_settings"]

_lock = threading.Lock()
_in_use = False


def ensure_person_settings() -> None:
    """`use_person_settings`, unless that has been done in this process.

    Raises:
        SpecError: the file or a plug-in is wrong.
    """
    with _lock:
        if not _in_use:
            use_person_settings()


def use_person_settings() -> Settings:
    """Load plug-ins and `config.toml`: endpoints, addresses, limits, aliases and prices.

    Raises:
        SpecError: the file or a plug-in is wrong.
    """
    global _in_use
    plugins = load_plugins()
    settings = load_settings()
    faults = []
    for name, given in settings.endpoints.items():
        if name in BUILT_IN:
            faults.append(
                f"endpoints.{name}: Pidgin has a provider {name!r}; choose another name, "
                f"or set base_url under [providers.{name}]"
            )
            continue
        if name in plugins:
            faults.append(
                f"endpoints.{name}: the package {plugins[name]} brings a provider {name!r}; choose another name"
            )
            continue
        made = endpoint(name, given.base_url, given.api_key_env)
        try:
            add_provider(
                made._replace(
                    max_concurrency=given.max_concurrency,
                    requests_per_minute=given.requests_per_minute,
                    tokens_per_minute=given.tokens_per_minute,
                )
            )
        except SpecError as error:
            faults.append(f"endpoints.{name}: {error}")
    for name, changes in settings.providers.items():
        if name not in PROVIDERS:
            hint = nearest(name, PROVIDERS)
            faults.append(f"providers.{name}: there is no such provider, only {', '.join(PROVIDERS)}.{hint}")
            continue
        set_here = {key: value for key, value in changes.model_dump().items() if value is not None}
        if name in INSIDE and "base_url" in set_here:
            faults.append(f"providers.{name}.base_url: {name} models run in Pidgin itself and have no address")
            continue
        add_provider(PROVIDERS[name]._replace(**set_here))
    use_settings(settings)
    for alias in settings.aliases:
        try:
            resolve_model(alias, PROVIDERS)
        except SpecError as error:
            faults.append(f"aliases.{alias}: {error}")
    if faults:
        path = config_folder() / "config.toml"
        raise SpecError("\n".join(f"{path}: {fault}" for fault in faults))
    _in_use = True
    return settings
