"""A request from question to answer: batches, verdicts, streams, deadlines."""
