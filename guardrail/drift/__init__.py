"""What a changed checkpoint does to a fitted artefact, and how to carry the artefact over."""
