"""The only forward passes: loading, encoding, hooks and generation."""
