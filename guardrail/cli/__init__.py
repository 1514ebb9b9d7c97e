"""The command line: `guardrail fit | calibrate | check | generate | info`."""
