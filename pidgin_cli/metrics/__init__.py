"""Numbers about text: one incremental engine, its registry of metrics, and the word lists they use."""
