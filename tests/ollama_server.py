"""A stand-in for Ollama that has memory: models take room, loading takes time, and what does not fit makes others go.

    async with OllamaServer({"a:latest": 6 * GB}, capacity=8 * GB) as server:
        ...
        assert server.log == [("load", "a:latest"), ("chat", "a:latest")]

`log` tells what happened in order. `surprise` there is a request for a model that was not loaded, so that its load was
part of its reply; `broken` is an unloading in the middle of a reply (the real one waits; so it must never be asked to).
"""

import asyncio
from collections import Counter
from typing import Any

from loopback import LoopbackServer, ReplyTo, Request, _respond

from pidgin_cli.providers.residency import Memory

__all__ = ["GB", "OllamaServer"]

GB = 1_000_000_000


class OllamaServer(LoopbackServer):
    """See the module."""

    def __init__(self, models: dict[str, int], capacity: int, reply: ReplyTo | None = None) -> None:
        """`models`: bytes that each takes when loaded. `capacity`: bytes there are."""
        super().__init__(reply)
        self.models = models
        self.installed = list(models)
        self.capacity = capacity
        self.gpu = True
        self.loaded: list[str] = []
        """Least recently used first."""
        self.contexts: dict[str, int] = {}
        """What each was loaded with, where that was said."""
        self.tells_contexts = True
        """As newer versions do."""
        self.load_s = 0.0
        self.most_models = 99
        self.expires_at = "2199-01-01T00:00:00Z"
        self.failing: set[str] = set()
        """Paths that answer with status 500."""
        self.stubborn = False
        """Unloads nothing."""
        self.log: list[tuple[str, str]] = []
        self.loading = asyncio.Event()
        """Set when a load begins."""
        self.go_on = asyncio.Event()
        """Loads end only while it is set."""
        self.go_on.set()
        self._under_way: Counter[str] = Counter()

    @property
    def free(self) -> int:
        return self.capacity - sum(self.models[name] for name in self.loaded)

    def memory(self) -> Memory:
        """The probe of the machine this server is on."""
        return Memory(self.free, self.capacity, self.gpu)

    @property
    def looks(self) -> int:
        """How often it was asked what is loaded."""
        return sum(request.path == "/api/ps" for request in self.requests)

    def happened(self, what: str) -> list[str]:
        """The models of all entries of one kind."""
        return [model for kind, model in self.log if kind == what]

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.path in self.failing:
            await _respond(writer, 500, {"error": "out of order"})
            return True
        if request.path == "/api/generate":
            await _respond(writer, *await self._generate(request))
            return True
        if not request.api:
            return await super()._answer(request, reader, writer)
        model = self._full(request.model)
        if model not in self.models:
            return await super()._answer(request, reader, writer)
        if not self._suits(model, request):
            self.log.append(("surprise", model))
            await self._load(model, request)
        self._touch(model)
        self.log.append(("chat", model))
        self._under_way[model] += 1
        try:
            return await super()._answer(request, reader, writer)
        finally:
            self._under_way[model] -= 1

    def _about_models(self, request: Request) -> tuple[int, Any]:
        match request.path:
            case "/api/tags":
                files = {name: size * 5 // 6 for name, size in self.models.items()}
                return 200, {"models": [{"name": name, "model": name, "size": size} for name, size in files.items()]}
            case "/api/ps":
                return 200, {"models": [self._entry(name) for name in self.loaded]}
        return super()._about_models(request)

    def _entry(self, name: str) -> dict[str, Any]:
        size = self.models[name]
        return {
            "name": name,
            "model": name,
            "size": size,
            "size_vram": size if self.gpu else 0,
            "expires_at": self.expires_at,
        } | ({"context_length": self.contexts[name]} if self.tells_contexts and name in self.contexts else {})

    async def _generate(self, request: Request) -> tuple[int, Any]:
        """Load or unload, which is what a prompt without text means."""
        assert request.body.get("prompt", "") == ""
        model = self._full(request.model)
        if model not in self.models:
            return 404, {"error": f"model '{request.model}' not found"}
        reason = "load"
        if request.body.get("keep_alive") == 0:
            reason = "unload"
            if model in self.loaded and not self.stubborn:
                self.log.append(("broken" if self._under_way[model] else "unload", model))
                self.loaded.remove(model)
        elif not self._suits(model, request):
            await self._load(model, request)
            self.log.append(("load", model))
        start = {"model": request.model, "created_at": "2026-01-01T00:00:00Z"}
        return 200, start | {"response": "", "done": True, "done_reason": reason}

    def _suits(self, model: str, request: Request) -> bool:
        """Whether it is loaded with the context that the request wants; any other has it loaded anew."""
        wanted = (request.body.get("options") or {}).get("num_ctx")
        return model in self.loaded and wanted in (None, self.contexts.get(model, wanted))

    async def _load(self, model: str, request: Request) -> None:
        self.loading.set()
        if model in self.loaded:
            self.loaded.remove(model)
        self.contexts[model] = (request.body.get("options") or {}).get("num_ctx", 4096)  # which is its own
        await asyncio.sleep(self.load_s)
        await self.go_on.wait()
        while self.loaded and (self.models[model] > self.free or len(self.loaded) >= self.most_models):
            self.log.append(("evict", self.loaded.pop(0)))
        self.loaded.append(model)

    def _touch(self, model: str) -> None:
        if model in self.loaded:
            self.loaded.remove(model)
            self.loaded.append(model)

    def _full(self, model: str) -> str:
        return model if ":" in model else f"{model}:latest"
