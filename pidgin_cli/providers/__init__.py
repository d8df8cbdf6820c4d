"""From a `ModelRequest` to a stream of `Delta`: adapters, wrappers, and the registry that opens them."""
