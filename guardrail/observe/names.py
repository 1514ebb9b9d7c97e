"""Every OpenTelemetry name in use, and how settled it is.

Stable in the semantic conventions (1.44): `http.*`, `url.scheme`, `error.type`.
Provisional: all `gen_ai.*`. They left the general conventions for a repository of their own and are
in development there; as installed beside 1.44 they are marked as moved. They may change with a
release of this package. `guardrail.*` are our own and change with this package alone.
"""

from __future__ import annotations

# stable
HTTP_METHOD = "http.request.method"
HTTP_ROUTE = "http.route"
HTTP_STATUS = "http.response.status_code"
URL_SCHEME = "url.scheme"
ERROR_TYPE = "error.type"

# provisional
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
EVALUATION_EVENT = "gen_ai.evaluation.result"
EVALUATION_NAME = "gen_ai.evaluation.name"
EVALUATION_SCORE = "gen_ai.evaluation.score.value"
EVALUATION_LABEL = "gen_ai.evaluation.score.label"
EVALUATION_EXPLANATION = "gen_ai.evaluation.explanation"

# our own
CHECK_SPAN = "guardrail.check"
REQUEST_ID = "guardrail.request_id"
CLIENT = "guardrail.client"
ACTION = "guardrail.action"
WOULD_BE = "guardrail.would_be"
MODALITY = "guardrail.modality"
REASON = "guardrail.reason"
MODE = "guardrail.mode"
ARTEFACT = "guardrail.artefact_id"
QUEUE_S = "guardrail.queue_s"

# values
CHAT = "chat"
PROVIDER_VALUE = "guardrail-vlm"
EVALUATION = "guardrail.refusal_direction"
