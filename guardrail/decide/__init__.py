"""Pure tensor functions from a residual to an action; nothing here runs a model."""
