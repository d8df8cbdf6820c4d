"""Every fault at every provider does to a conversation what the docs say: see `chaos`."""

import json

import chaos
import pytest

COMMITTED = json.loads(chaos.COMMITTED.read_text(encoding="utf-8"))


@pytest.mark.filterwarnings("ignore:The model .* is deprecated:DeprecationWarning")
@pytest.mark.parametrize("provider", chaos.PROVIDERS)
@pytest.mark.parametrize("fault", chaos.FAULTS)
async def test_a_fault_does_what_the_docs_say(fault: str, provider: str):
    """Error class, message, retries, abandoned text and the end are those of the table; the record is legal."""
    assert await chaos.observe(fault, provider) == COMMITTED[fault][provider]


def test_the_table_is_whole():
    """The committed outcomes are of all faults and providers, and of no others."""
    assert {fault: list(found) for fault, found in COMMITTED.items()} == {
        fault: list(chaos.PROVIDERS) for fault in chaos.FAULTS
    }
    assert chaos.COMMITTED.read_text(encoding="utf-8") == chaos.dump(COMMITTED)


@pytest.mark.parametrize(("fault", "provider"), [(f, p) for f in COMMITTED for p in COMMITTED[f] if COMMITTED[f][p]])
def test_no_outcome_is_one_that_we_would_not_want(fault: str, provider: str):
    """What may pass is tried again and then goes on; what does not ends at once, with the provider's words."""
    found = COMMITTED[fault][provider]
    if "error" not in found:
        assert found["always"].startswith("completed: turn_limit")
        return
    assert found["message"]
    assert found["error"].startswith(("RateLimited", "Overloaded", "Provider")) == found["retried"]
    assert found.get("once", "completed: turn_limit") == "completed: turn_limit"
    assert found["always"].startswith(
        "stopped: context_limit" if found["error"] == "ContextLengthExceeded" else "failed: provider_error"
    )
