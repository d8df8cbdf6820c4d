"""What Pidgin costs, beside a bare asyncio loop that makes the same calls and writes: `python -m benchmarks`."""
