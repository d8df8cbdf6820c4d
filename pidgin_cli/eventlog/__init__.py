"""The only reader, writer and tailer of `*.jsonl`; the bus that carries events; and what is derived from them."""
