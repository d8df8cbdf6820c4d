"""Every error Pidgin raises on purpose.

    PidginError
    ├── SpecError                  the command, a spec or a name in it is wrong              exit 2
    │   └── NotFound               no such experiment, conversation, file or model           exit 2
    ├── LogError                   a record cannot be written or is not what it should be    exit 1
    ├── StoreError                 the database                                              exit 1
    ├── ToolError                  a tool failed
    └── ProviderError              a model could not be asked, or did not answer whole
        ├── AuthenticationFailed   the key is missing, wrong or not allowed
        ├── RateLimited            too many requests or tokens; may say when to come back    retried
        ├── Overloaded             the provider is busy or broke on its own (5xx)            retried
        ├── ProviderTimeout        connecting, first token, a gap, or the whole took long    retried
        ├── ProviderUnavailable    no connection, or it was cut                              retried
        ├── ContextLengthExceeded  the request is longer than the model reads
        ├── RequestRejected        the provider refuses this request as it stands
        └── ContentFiltered        the provider's filter refused the request

`Pause` and `Stop` are control signals, not errors; they live with `conversation.Control`.
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:  # `pidgin --help` loads this module, and should not load what the values are made of
    from .types import RateLimit

__all__ = [
    "AuthenticationFailed",
    "ContentFiltered",
    "ContextLengthExceeded",
    "LogError",
    "NotFound",
    "Overloaded",
    "PidginError",
    "ProviderError",
    "ProviderTimeout",
    "ProviderUnavailable",
    "RateLimited",
    "RequestRejected",
    "SpecError",
    "StoreError",
    "ToolError",
]


class PidginError(Exception):
    """Base of all. Its text is one clear line for a person and says what to do next."""

    exit_code: ClassVar[int] = 1


class SpecError(PidginError):
    """What was asked for is wrong; nothing has been started."""

    exit_code = 2


class NotFound(SpecError):
    """A name that nothing has; the text lists the nearest ones."""


class LogError(PidginError):
    """A record could not be written, or cannot be read as one."""


class StoreError(PidginError):
    """The database could not be read or written."""


class ToolError(PidginError):
    """A tool failed; the text goes to the model that called it."""


class ProviderError(PidginError):
    """A model could not be asked or did not answer whole.

    Attributes:
        provider: name of the provider, such as `openai`.
        status: HTTP status, if there was one.
        retry_after_s: seconds the provider asked to wait, if it did.
        attempt: the attempt that failed, counted from 1.
        limits: what the answer said of the account's limits.
        sent: whether the request may have reached the provider.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        provider: str = "",
        status: int | None = None,
        retry_after_s: float | None = None,
        attempt: int = 1,
        limits: "tuple[RateLimit, ...]" = (),
        sent: bool = True,
    ) -> None:
        super().__init__(message)
        self.provider = provider
        self.status = status
        self.retry_after_s = retry_after_s
        self.attempt = attempt
        self.limits = limits
        self.sent = sent

    @property
    def may_be_billed(self) -> bool:
        """Whether the provider may have answered, and charge for, what never arrived."""
        return self.sent and isinstance(self, ProviderTimeout | ProviderUnavailable)


class AuthenticationFailed(ProviderError):
    """The key is missing, wrong, or not allowed to use the model."""


class RateLimited(ProviderError):
    """Too many requests or tokens for now."""

    retryable = True


class Overloaded(ProviderError):
    """The provider is busy or failed on its own side (5xx)."""

    retryable = True


class ProviderTimeout(ProviderError):
    """Connecting, the first token, a gap between tokens, or the whole reply took longer than allowed."""

    retryable = True


class ProviderUnavailable(ProviderError):
    """No connection, or the connection was cut before the reply was whole."""

    retryable = True


class ContextLengthExceeded(ProviderError):
    """The request is longer than the model can read."""


class RequestRejected(ProviderError):
    """The provider will not take this request as it stands: unknown model, bad parameter, bad request."""


class ContentFiltered(ProviderError):
    """The provider's content filter refused the request."""
