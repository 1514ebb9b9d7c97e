"""What a guard has decided lately, counted, and how that compares with its calibration.

    snapshot = guard.monitor.snapshot()
    compare(snapshot, guard.artefact).alarm

No request is kept, only counts: a snapshot holds nothing that anybody wrote.
"""

from guardrail.monitor.comparing import Comparison as Comparison
from guardrail.monitor.comparing import compare as compare
from guardrail.monitor.monitor import Monitor as Monitor
from guardrail.monitor.snapshot import MonitorSnapshot as MonitorSnapshot
