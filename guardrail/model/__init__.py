"""The only forward passes: loading, encoding, hooks, generation and the worker thread."""
