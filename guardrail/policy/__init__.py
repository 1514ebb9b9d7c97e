"""A guard's rules, and what follows from them.

`policy` has the rules themselves, and the normal form of a host's name; `files` reads rules from
files and from the environment. `acting` alone knows what mode, fail mode and allowed actions turn
a score or an outage into.
"""

from guardrail.policy.policy import CAUTION, REFUSAL, Limits, Policy, Thresholds, VideoSampling

__all__ = ["CAUTION", "REFUSAL", "Limits", "Policy", "Thresholds", "VideoSampling"]
