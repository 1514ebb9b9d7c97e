"""The checks, one function each: a subject in, figures out, or an error that says how it ended."""
