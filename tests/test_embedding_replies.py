"""Servers that send something else in place of vectors: one clear error, and nothing of it is kept."""

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import LoopbackServer, Reply, loopback_in_thread

from pidgin_cli.core.errors import ProviderError
from pidgin_cli.core.types import Retries, Timeouts
from pidgin_cli.providers.embeddings import EmbeddingModel, VectorCache, open_model
from pidgin_cli.providers.registry import ProviderPool

CHOICES = ("openai:text-embedding-3-small", "google:gemini-embedding-001", "ollama:nomic-embed-text")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    with loopback_in_thread() as found:
        found.installed.append("nomic-embed-text:latest")
        for name, value in (found.env | {"PIDGIN_CACHE_DIR": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        yield found


async def vectors(model: EmbeddingModel, *texts: str) -> list[Any]:
    try:
        return [None if vector is None else list(vector) for vector in await model.vectors(texts)]
    finally:
        await model.aclose()


def as_json(sent: Any) -> Reply:
    return Reply(body=json.dumps(sent).encode(), headers={"Content-Type": "application/json"})


def body(choice: str, found: Any) -> Any:
    """What the API of a provider sends for vectors."""
    match choice.partition(":")[0]:
        case "google":
            return {"embeddings": [{"values": each} for each in found] if isinstance(found, list) else found}
        case "ollama":
            return {"embeddings": found, "model": "nomic-embed-text", "prompt_eval_count": 2}
    data = [
        {"object": "embedding", "index": n, "embedding": each}
        for n, each in enumerate(found if isinstance(found, list) else ())
    ]
    return {"object": "list", "data": data if isinstance(found, list) else found, "usage": {"prompt_tokens": 20}}


WRONG: dict[str, Any] = {
    "a text": ["abc", "def"],
    "nothing": [None, [1.0, 2.0]],
    "texts": [["x", "y"], ["z", "z"]],
    "holes": [[1.0, None], [1.0, 2.0]],
    "no numbers": [[], []],
    "not a number": [[float("nan"), 1.0], [1.0, 2.0]],
    "infinite": [[1.0, 2.0], [1e39, 1.0]],
    "lists": [[[1.0]], [[2.0]]],
    "objects": [{"x": 1.0}, {"x": 2.0}],
    "different lengths": [[1.0, 2.0], [1.0]],
    "too few": [[1.0, 2.0]],
    "too many": [[1.0], [1.0], [1.0]],
    "none": [],
    "no list": "abc",
    "null": None,
    "a number": 5,
}


PAGES = (b"<html>Sign in</html>", b"[]", b'"x"', b"7", b"{", b"null", b"{}")


@pytest.fixture
async def models(there: LoopbackServer) -> AsyncIterator[dict[str, EmbeddingModel]]:
    """Real SDKs, asked once."""
    pool = ProviderPool()
    once = Retries(attempts=1)
    yield {
        choice: EmbeddingModel(pool.adapter(choice, Timeouts()), choice, there.url, cache=VectorCache(), retries=once)
        for choice in CHOICES
    }
    await pool.aclose()


@pytest.mark.parametrize("choice", CHOICES)
async def test_what_are_no_vectors_is_told_and_not_kept(
    there: LoopbackServer, models: dict[str, EmbeddingModel], choice: str
) -> None:
    """Wrong types, counts, values and pages are a provider's error in one line; the next try asks again."""
    wrong = {name: as_json(body(choice, found)) for name, found in WRONG.items()}
    for page in PAGES:
        kind = "text/html" if page.startswith(b"<") else "application/json"
        wrong[page.decode()] = Reply(body=page, headers={"Content-Type": kind})
    for name, reply in wrong.items():
        there.script(reply)
        with pytest.raises(ProviderError) as caught:
            await models[choice].vectors(["One.", "Three!"])
        assert str(caught.value), name
        assert "\n" not in str(caught.value), name
    found = await models[choice].vectors(["One.", "Three!"])
    assert [list(vector or ()) for vector in found] == [[4, 1, 0.5], [6, 1, 0.5]]


async def test_indices_say_which_vector_is_whose(there: LoopbackServer, models: dict[str, EmbeddingModel]) -> None:
    """Two of one index are refused rather than guessed at; a server without indices is taken in its order."""
    model = models[CHOICES[0]]
    for numbers in ([0, 0], [1, 2], ["a", "b"], [None, 0], [0.5, 1]):
        data = [{"index": n, "embedding": [float(place)]} for place, n in enumerate(numbers)]
        there.script(as_json({"data": data}))
        with pytest.raises(ProviderError, match="indices"):
            await model.vectors(["One.", "Three!"])
    there.script(as_json({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]}))
    assert [list(vector or ()) for vector in await model.vectors(["One.", "Three!"])] == [[1.0], [2.0]]


async def test_a_count_of_tokens_that_is_none(there: LoopbackServer, models: dict[str, EmbeddingModel]) -> None:
    """Tokens that are no count are an error; those that are not told stay unknown, and the vectors are good."""
    model = models[CHOICES[0]]
    for tokens in ("many", -1, 1.5, [2]):
        there.script(as_json({"data": [{"index": 0, "embedding": [1.0]}], "usage": {"prompt_tokens": tokens}}))
        with pytest.raises(ProviderError, match="tokens"):
            await model.vectors(["One."])
    assert model.spent.tokens == 0
    usages: tuple[Any, ...] = ([], "x", None)
    for usage in usages:
        there.script(as_json({"data": [{"index": 0, "embedding": [1.0]}], "usage": usage}))
        assert [list(vector or ()) for vector in await model.vectors([f"One. {usage}"])] == [[1.0]]
        assert model.spent.tokens is None


async def test_a_model_that_changed_its_length_is_told(there: LoopbackServer) -> None:
    """Vectors of another length than those that are kept are not mixed with them; the error says how to begin anew."""
    assert await vectors(open_model(CHOICES[0]), "One.") == [[4, 1, 0.5]]
    there.embed = lambda _: [1.0, 2.0]
    for _ in range(2):
        with pytest.raises(ProviderError, match=r"different lengths: \[2, 3\].*pidgin cache clear"):
            await vectors(open_model(CHOICES[0]), "One.", "Three!")
    assert await vectors(open_model(CHOICES[0]), "Three!") == [[1.0, 2.0]]
