"""What a running guard tells its operators: counts, traces, records; never what was said.

from guardrail.observe import fan_out

guard = Guard(model, artefact, audit=fan_out(AuditLog("audit.jsonl"), my_own_sink))
"""

from guardrail.observe.fan_out import FanOut as FanOut
from guardrail.observe.fan_out import fan_out as fan_out
