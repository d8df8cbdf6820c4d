"""Vectors of texts by the embedding model that a person has chosen, cached so that no text is sent twice.

Nothing here is asked of its own accord: without a choice there are no vectors.
"""

import asyncio
import contextlib
import hashlib
import importlib
import json
import logging
import sqlite3
import time
from array import array
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from pidgin_cli.core.errors import (
    ContextLengthExceeded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    SpecError,
)
from pidgin_cli.core.types import Retries, Timeouts

from .base import Embedded, Embeds
from .cache import CacheFile, OtherSchema, default_cache_path
from .registry import PROVIDERS, ProviderInfo, address
from .validation import Vector, checked_vectors, token_count
from .wrappers import Sleep, retry_wait

__all__ = ["OFFLINE", "EmbeddingModel", "VectorCache", "cached_vectors", "check_choice", "open_model"]

OFFLINE = "wordllama"
"""The model that needs no server: its weights come with its package, in the extra `embeddings`."""
_OFFLINE_MODEL = f"{OFFLINE}:l2_supercat_256"
_ADAPTERS = tuple(PROVIDERS[name].adapter for name in ("openai", "google", "ollama"))

BATCH_TEXTS = 64
"""Texts in one request; the smallest limit of the APIs is 100."""
BATCH_CHARS = 100_000
"""Characters in one request, unless one text alone is longer."""
KEY_VERSION = 1
"""Raised when the same request begins to mean something else."""
SCHEMA_VERSION = 1
LOCK_WAIT_S = 5.0
"""At most so long another process is waited for."""
_KEYS_AT_ONCE = 500

_log = logging.getLogger(__name__)


def check_choice(choice: str) -> None:
    """See that a choice names something that can be asked for vectors, without asking it.

    Raises:
        SpecError: it names none; the text says what there is.
    """
    if choice == OFFLINE:
        return
    provider, colon, model = choice.partition(":")
    info = PROVIDERS.get(provider)
    if not colon or not model or info is None:
        raise SpecError(
            f"{choice!r} is no embedding model; write lexical_hash, {OFFLINE}, or PROVIDER:MODEL such as "
            "openai:text-embedding-3-small, google:gemini-embedding-001 or ollama:nomic-embed-text"
        )
    if info.name in ("anthropic", "local", "replay") or (info.adapter not in _ADAPTERS and _adapter(info) is None):
        raise SpecError(
            f"{provider} has no embedding models; those of OpenAI, Google, Ollama and endpoints can be used"
        )


def _adapter(info: ProviderInfo) -> type[Embeds] | None:
    """The adapter's class where it can embed."""
    module, _, name = info.adapter.partition(":")
    found = getattr(importlib.import_module(module), name)
    return found if callable(getattr(found, "embed", None)) else None


def open_model(choice: str, *, cache: "VectorCache | None" = None, sleep: Sleep = asyncio.sleep) -> "EmbeddingModel":
    """The model of a choice. Its server is not asked yet.

    Args:
        cache: None: the one of this user.

    Raises:
        SpecError: there is no such model, its key or its package is missing, or its address is none.
    """
    check_choice(choice)
    cache = VectorCache() if cache is None else cache
    if choice == OFFLINE:
        return EmbeddingModel(_WordLlama(), _OFFLINE_MODEL, _offline_place(), cache=cache, sleep=sleep)
    info = PROVIDERS[choice.partition(":")[0]]
    make: Any = _adapter(info)
    return EmbeddingModel(make(Timeouts(), info), choice, address(info) or "", cache=cache, sleep=sleep)


class _WordLlama:
    """Means of word vectors, from weights that are part of the installed package. Never touches the network."""

    def __init__(self) -> None:
        try:
            package = importlib.import_module(OFFLINE)
        except ImportError:
            raise SpecError(f"{OFFLINE} needs an extra: pip install 'pidgin-cli[embeddings]'") from None
        try:
            # Left alone it looks for its own tokeniser in a folder that it does not have, and then on the network.
            home = Path(str(package.__file__)).parent
            self._model = package.WordLlama.load(cache_dir=home, disable_download=True)
        except (FileNotFoundError, OSError) as error:
            raise SpecError(f"the package {OFFLINE} has come without its weights: {error}") from None

    async def embed(self, model: str, texts: Sequence[str]) -> Embedded:  # noqa: ARG002
        return Embedded(self._model.embed(list(texts)).tolist())

    async def aclose(self) -> None:
        pass


class Spent(NamedTuple):
    """What vectors took."""

    sent: int = 0
    """Texts that the model was asked for."""
    cached: int = 0
    """Texts whose vectors were there already."""
    tokens: int | None = 0
    """Input tokens; None as soon as one request did not report them."""
    too_long: int = 0
    """Texts that the model does not take."""


class EmbeddingModel:
    """One embedding model behind the cache, with the retries that replies have."""

    def __init__(
        self,
        adapter: Any,
        model_id: str,
        place: str,
        *,
        cache: "VectorCache",
        sleep: Sleep = asyncio.sleep,
        retries: Retries | None = None,
        timeout_s: float | None = Timeouts().first_token_s,
    ) -> None:
        """
        Args:
            adapter: an `Embeds` with `aclose`.
            place: its address, or whatever else decides what the same name of a model gives.
            timeout_s: seconds that one request may take.
        """
        self.model_id = model_id
        self.spent = Spent()
        self._adapter = adapter
        self._place = place
        self._cache = cache
        self._sleep = sleep
        self._retries = Retries() if retries is None else retries
        self._timeout_s = timeout_s

    async def vectors(
        self, texts: Sequence[str], progress: Callable[[int, int], None] = lambda _done, _of: None
    ) -> list[Vector | None]:
        """A vector for each text; None for blank ones and for those that are too long for the model.

        What has arrived is kept when a later request fails: the next try asks for the rest only.

        Raises:
            ProviderError: the model cannot be asked.
        """
        keys = _keys(self.model_id, self._place, texts)
        found: dict[str, Vector | None] = dict(self._cache.get(keys))
        todo = [text for text in keys if text not in found]
        self.spent = self.spent._replace(cached=self.spent.cached + len(found))
        done = 0
        for batch in _batches(todo):
            progress(done, len(todo))
            new = dict(zip(batch, await self._ask(batch), strict=True))
            self._check_lengths([*found.values(), *new.values()])
            self._cache.put({keys[text]: vector for text, vector in new.items() if vector is not None})
            found |= new
            done += len(batch)
        self._check_lengths([*found.values()])
        return [found.get(text) for text in texts]

    def _check_lengths(self, vectors: Sequence[Vector | None]) -> None:
        sizes = {len(vector) for vector in vectors if vector is not None}
        if len(sizes) > 1:
            raise ProviderUnavailable(
                f"{self.model_id} gave vectors of different lengths: {sorted(sizes)}; if the model has changed, "
                "`pidgin cache clear` forgets those that were kept",
                provider=self.model_id.partition(":")[0],
            )

    async def _ask(self, texts: Sequence[str]) -> list[Vector | None]:
        try:
            embedded = await self._attempts(texts)
        except ContextLengthExceeded:
            if len(texts) == 1:
                self.spent = self.spent._replace(too_long=self.spent.too_long + 1)
                return [None]
            half = len(texts) // 2
            return await self._ask(texts[:half]) + await self._ask(texts[half:])
        found = checked_vectors(embedded.vectors, len(texts), self.model_id)
        used = token_count(embedded.tokens, "the count of tokens", self.model_id.partition(":")[0])
        spent = self.spent
        tokens = None if spent.tokens is None or used is None else spent.tokens + used
        self.spent = spent._replace(sent=spent.sent + len(texts), tokens=tokens)
        return [*found]

    async def _attempts(self, texts: Sequence[str]) -> Embedded:
        model = self.model_id.partition(":")[2]
        attempt = 1
        while True:
            try:
                async with asyncio.timeout(self._timeout_s):
                    found: Embedded = await self._adapter.embed(model, texts)
                    return found
            except TimeoutError:
                error: ProviderError = ProviderTimeout(
                    f"{self.model_id}: vectors took longer than {self._timeout_s:g} s"
                )
            except ProviderError as refused:
                error = refused
            wait = retry_wait(self._retries, error, attempt)
            if wait is None:
                raise error
            await self._sleep(wait)
            attempt += 1

    async def aclose(self) -> None:
        """Close the connections and the cache."""
        await self._adapter.aclose()
        self._cache.close()


def cached_vectors(model_id: str, texts: Sequence[str]) -> list[Vector | None]:
    """What this user's cache holds of texts by a model; nobody is asked. None: it is not there, or the text is blank.

    Args:
        model_id: as `EmbeddingModel.model_id` gives it.
    """
    provider = model_id.partition(":")[0]
    if provider == OFFLINE:
        with contextlib.suppress(PackageNotFoundError):
            return _cached(model_id, _offline_place(), texts)
    elif info := PROVIDERS.get(provider):
        return _cached(model_id, address(info) or "", texts)
    return [None] * len(texts)


def _cached(model_id: str, place: str, texts: Sequence[str]) -> list[Vector | None]:
    cache = VectorCache()
    try:
        found = cache.get(_keys(model_id, place, texts))
    finally:
        cache.close()
    return [found.get(text) for text in texts]


def _keys(model_id: str, place: str, texts: Sequence[str]) -> dict[str, bytes]:
    """Of all texts but blank ones, for `VectorCache`."""
    return {text: _key(model_id, place, text) for text in texts if text.strip()}


def _key(model_id: str, place: str, text: str) -> bytes:
    told = json.dumps([KEY_VERSION, model_id, place, hashlib.sha256(_utf8(text)).hexdigest()])
    return hashlib.blake2b(told.encode(), digest_size=20).digest()


def _offline_place() -> str:
    return f"package {version(OFFLINE)}"


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _batches(texts: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = []
    room = 0
    for text in texts:
        if not found or len(found[-1]) == BATCH_TEXTS or room < len(text):
            found.append([])
            room = BATCH_CHARS
        found[-1].append(text)
        room -= len(text)
    return found


class VectorCache(CacheFile):
    """Vectors by key, in one SQLite file. It holds no text.

    A convenience: a file that is broken, locked or read-only is left out, with one warning.
    """

    _name = "embedding cache"
    kept = "vectors"
    _value = "vector"

    def __init__(self, path: Path | None = None) -> None:
        """`path`: None: `embeddings.db` beside the cache of replies."""
        super().__init__(path or default_cache_path().with_name("embeddings.db"))
        self._db: sqlite3.Connection | None = None
        self._off = False

    def get(self, keys: "dict[str, bytes]") -> dict[str, Vector]:
        """The vectors that there are, by the name that `keys` gives each key."""
        rows: dict[bytes, bytes] = {}
        wanted = iter(keys.values())
        while some := list(islice(wanted, _KEYS_AT_ONCE)):
            marks = ",".join("?" * len(some))
            rows |= dict(self._run(f"SELECT key, vector FROM vectors WHERE key IN ({marks})", [some]))  # noqa: S608
        found = {}
        for name, key in keys.items():
            if data := rows.get(key):
                vector = array("f")
                with contextlib.suppress(ValueError):  # cut short; it is asked for again
                    vector.frombytes(data)
                    found[name] = vector
        self.hits += len(found)
        self.misses += len(keys) - len(found)
        return found

    def put(self, vectors: "dict[bytes, Vector]") -> None:
        """Keep vectors by key."""
        now = time.time()
        self._run(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)",
            [[key, vector.tobytes(), now] for key, vector in vectors.items()],
        )

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    def _run(self, sql: str, rows: Sequence[Sequence[Any]]) -> list[Any]:
        if self._off:
            return []
        try:
            if self._db is None:
                self._db = self._open(LOCK_WAIT_S)
            with self._db:
                if sql.startswith("SELECT"):
                    return [row for values in rows for row in self._db.execute(sql, values)]
                self._db.executemany(sql, rows)
        except (sqlite3.Error, OSError) as error:
            self._off = True
            _log.warning(
                "the embedding cache %s is left out (%s); `pidgin cache clear` starts a new one", self.path, error
            )
        return []

    def _begin_anew(self) -> None:
        self._off = False

    def _open(self, wait_s: float) -> sqlite3.Connection:
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        db = sqlite3.connect(self.path, timeout=wait_s)
        try:
            (found,) = db.execute("PRAGMA user_version").fetchone()
            if found > SCHEMA_VERSION:
                raise OtherSchema("it was written by a newer Pidgin")
            with db:
                db.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB, stored REAL)")
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except BaseException:
            db.close()
            raise
        return db
