"""The guard inside vLLM: read in the pass that generation needs, judged before a token leaves."""

from guardrail.vllm.options import engine_options

__all__ = ["engine_options"]
