"""What a running guard tells its operators: counts, traces, records; never what was said."""
