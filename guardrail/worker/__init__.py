"""The one thread that owns a model, and the jobs that wait for it: see `worker`."""
