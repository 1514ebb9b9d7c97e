"""Evidence for a safety review: a fitted guard measured on labelled inputs, with controls."""
