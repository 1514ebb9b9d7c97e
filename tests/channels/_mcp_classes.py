"""Every class of the protocol whose instances a server sends, and where one stands in a message."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mcp.types as t

from tests.channels._mcp import answers, asks, asks_message, fails, notes, notes_message
from tests.channels.contract import LibraryClass
from tests.mcp.conftest import b64, png

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from guardrail.testing import FakeGuard

    Json = dict[str, Any]
    Send = Callable[[FakeGuard, Any], Awaitable[str]]

PNG = b64(png())
TEXT: Json = {"type": "text", "text": "hi"}
TOOL: Json = {"name": "find", "inputSchema": {"type": "object"}}
SAMPLE: Json = {"messages": [{"role": "user", "content": TEXT}], "maxTokens": 5}


@dataclass(frozen=True, kw_only=True)
class Placed:
    """A class, an instance of it as JSON, and how a server sends a message with it."""

    fields: LibraryClass
    instance: Json
    send: Send


def _in(send: Send, wrap: Callable[[Json], Any]) -> Send:
    async def sent(guard: FakeGuard, value: Json) -> str:
        return await send(guard, wrap(value))

    return sent


PLACED: list[Placed] = []


def _add(name: str, send: Send, instance: Json, **fields: str) -> None:
    """Add a class, if this version of the library has it."""
    if (kind := getattr(t, name, None)) is not None:
        known = LibraryClass(kind=kind, **fields)
        PLACED.append(Placed(fields=known, instance=instance, send=send))


# ---- what a server says of itself

_HELLO: Json = {"protocolVersion": "2025-06-18", "capabilities": {}}
_INFO: Json = {"name": "a", "version": "1"}
_hello = answers("initialize")
_found = answers("server/discover")
_add(
    "InitializeResult",
    _hello,
    {**_HELLO, "serverInfo": _INFO},
    judged="meta capabilities server_info instructions",
    labels="protocol_version",
)
_add(
    "DiscoverResult",
    _found,
    {"supportedVersions": ["2026-07-28"], "capabilities": {}, "resultType": "complete"},
    judged="meta capabilities instructions ttl_ms",
    labels="supported_versions cache_scope result_type",
)
for _place, _wrap in (
    (_hello, lambda info: {**_HELLO, "serverInfo": info}),
    (answers("tools/call"), lambda i: {"content": [TEXT], "_meta": {t.SERVER_INFO_META_KEY: i}}),
):
    _add(
        "Implementation",
        _in(_place, _wrap),
        _INFO,
        judged="title description website_url icons",
        labels="name version",
    )
_add(
    "BaseMetadata",
    _in(_hello, lambda info: {**_HELLO, "serverInfo": info}),
    _INFO,
    judged="title",
    labels="name",
)


def _capability(*path: str) -> Send:
    def wrap(value: Json) -> Json:
        for key in reversed(path):
            value = {key: value}
        return {**_HELLO, "capabilities": value}

    return _in(_hello, wrap)


_add(
    "ServerCapabilities",
    _capability(),
    {},
    judged="experimental logging prompts resources tools completions extensions tasks",
)
_add("PromptsCapability", _capability("prompts"), {}, judged="list_changed")
_add("ResourcesCapability", _capability("resources"), {}, judged="subscribe list_changed")
_add("ToolsCapability", _capability("tools"), {}, judged="list_changed")
_add("LoggingCapability", _capability("logging"), {})
_add("CompletionsCapability", _capability("completions"), {})
_add("ServerTasksCapability", _capability("tasks"), {}, judged="list cancel requests")
_add("TasksListCapability", _capability("tasks", "list"), {})
_add("TasksCancelCapability", _capability("tasks", "cancel"), {})
_add("ServerTasksRequestsCapability", _capability("tasks", "requests"), {}, judged="tools")
_add("TasksToolsCapability", _capability("tasks", "requests", "tools"), {}, judged="call")
_add("TasksCallCapability", _capability("tasks", "requests", "tools", "call"), {})

# ---- lists

_OF_A_LIST = {"judged": "meta ttl_ms", "labels": "next_cursor cache_scope result_type"}
_LISTS = {
    "ListToolsResult": ("tools/list", "tools", "tools"),
    "ListPromptsResult": ("prompts/list", "prompts", "prompts"),
    "ListResourcesResult": ("resources/list", "resources", "resources"),
    "ListResourceTemplatesResult": (
        "resources/templates/list",
        "resourceTemplates",
        "resource_templates",
    ),
}
for _name, (_method, _key, _field) in _LISTS.items():
    _judged = f"{_OF_A_LIST['judged']} {_field}"
    _add(_name, answers(_method), {_key: []}, judged=_judged, labels=_OF_A_LIST["labels"])
_add("PaginatedResult", answers("tools/list"), {"tools": []}, judged="meta", labels="next_cursor")
_add(
    "CacheableResult",
    answers("tools/list"),
    {"tools": []},
    judged="meta ttl_ms",
    labels="cache_scope",
)


def _listed(method: str, key: str, *path: str) -> Send:
    base = {"tools": TOOL, "prompts": {"name": "a"}}.get(key, {"name": "a", "uri": "a://b"})

    def wrap(value: Any) -> Json:
        for name in reversed(path):
            value = {name: value}
        return {key: [{**base, **value}]}

    return _in(answers(method), wrap)


_tool = _listed("tools/list", "tools")
_add(
    "Tool",
    _tool,
    TOOL,
    judged="name title description input_schema execution output_schema icons annotations meta",
)
_add(
    "ToolAnnotations",
    _listed("tools/list", "tools", "annotations"),
    {},
    judged="title read_only_hint destructive_hint idempotent_hint open_world_hint",
)
_add("ToolExecution", _listed("tools/list", "tools", "execution"), {}, judged="task_support")
for _wrap in (
    lambda icon: {"tools": [{**TOOL, "icons": [icon]}]},
    lambda icon: {
        "tools": [],
        "_meta": {t.SERVER_INFO_META_KEY: {**_INFO, "icons": [icon]}},
    },
):
    _add(
        "Icon",
        _in(answers("tools/list"), _wrap),
        {"src": "https://a.b/c.png", "mimeType": "image/png", "sizes": ["48x48"]},
        labels="src mime_type sizes theme",
    )
_add(
    "Prompt",
    _listed("prompts/list", "prompts"),
    {"name": "a"},
    judged="name title description arguments icons meta",
)
_add(
    "PromptArgument",
    _in(answers("prompts/list"), lambda each: {"prompts": [{"name": "a", "arguments": [each]}]}),
    {"name": "a"},
    judged="name title description required",
)
_RESOURCE = "name title description mime_type icons annotations meta"
_add(
    "Resource",
    _listed("resources/list", "resources"),
    {"name": "a", "uri": "a://b"},
    judged=f"{_RESOURCE} uri size",
)
_add(
    "ResourceTemplate",
    _listed("resources/templates/list", "resourceTemplates"),
    {"name": "a", "uriTemplate": "a://{b}"},
    judged=f"{_RESOURCE} uri_template",
)
_ANNOTATED = "audience priority last_modified"
_add(
    "Annotations",
    _listed("resources/list", "resources", "annotations"),
    {},
    judged=_ANNOTATED,
)

# ---- results and what they hold

_called, _said = answers("tools/call"), answers("prompts/get")
_add("Result", answers("ping"), {}, judged="meta")
_add("EmptyResult", answers("ping"), {}, judged="meta", labels="result_type")
_add(
    "SubscriptionsListenResult",
    answers("subscriptions/listen"),
    {},
    judged="meta",
    labels="result_type",
)
_add(
    "CallToolResult",
    _called,
    {"content": [TEXT]},
    judged="meta content structured_content is_error",
    labels="result_type",
)
_add(
    "GetPromptResult",
    _said,
    {"messages": [{"role": "user", "content": TEXT}]},
    judged="meta description messages",
    labels="result_type",
)
_add(
    "ReadResourceResult",
    answers("resources/read"),
    {"contents": [{"uri": "a://b", "text": "hi"}]},
    judged="meta contents ttl_ms",
    labels="cache_scope result_type",
)
_add(
    "CompleteResult",
    answers("completion/complete"),
    {"completion": {"values": []}},
    judged="meta completion",
    labels="result_type",
)
_add(
    "Completion",
    _in(answers("completion/complete"), lambda each: {"completion": each}),
    {"values": []},
    judged="values total has_more",
)
_add(
    "InputRequiredResult",
    _called,
    {"resultType": "input_required"},
    judged="meta input_requests",
    labels="result_type request_state",
)
_add(
    "PromptMessage",
    _in(_said, lambda each: {"messages": [each]}),
    {"role": "user", "content": TEXT},
    judged="role content",
)

_CONTENTS = {
    "TextContent": (TEXT, {"judged": "type text annotations meta"}),
    "ImageContent": (
        {"type": "image", "data": PNG, "mimeType": "image/png"},
        # the picture's own type goes on
        {"judged": "type annotations meta", "refused": "data", "never": "mime_type"},
    ),
    "AudioContent": (
        {"type": "audio", "data": "UklGRg==", "mimeType": "audio/wav"},
        {"refused": "data mime_type annotations meta", "judged": "type"},
    ),
    "ResourceLink": (
        {"type": "resource_link", "name": "a", "uri": "a://b"},
        {"judged": f"type {_RESOURCE} uri size"},
    ),
    "EmbeddedResource": (
        {"type": "resource", "resource": {"uri": "a://b", "text": "hi"}},
        {"judged": "type resource annotations meta"},
    ),
}
for _name, (_block, _fields) in _CONTENTS.items():
    _add(_name, _in(_called, lambda each: {"content": [TEXT, each]}), _block, **_fields)
    _in_a_prompt = _in(_said, lambda each: {"messages": [{"role": "user", "content": each}]})
    _add(_name, _in_a_prompt, _block, **_fields)
_add(
    "Annotations",
    _in(_called, lambda each: {"content": [{**TEXT, "annotations": each}]}),
    {},
    judged=_ANNOTATED,
)
for _contents in (
    _in(answers("resources/read"), lambda each: {"contents": [each]}),
    _in(_called, lambda each: {"content": [{"type": "resource", "resource": each}]}),
):
    _add(
        "TextResourceContents",
        _contents,
        {"uri": "a://b", "text": "hi"},
        judged="uri mime_type meta text",
    )
    _add(
        "BlobResourceContents",
        _contents,
        {"uri": "a://b", "blob": PNG, "mimeType": "image/png"},
        judged="uri meta",
        refused="blob",
        never="mime_type",
    )
    _add("ResourceContents", _contents, {"uri": "a://b", "text": ""}, judged="uri mime_type meta")

# ---- tasks

_TASK: Json = {"taskId": "a", "status": "working", "createdAt": "2026-01-01T00:00:00Z", "ttl": None}
_OF_A_TASK = "status_message created_at last_updated_at ttl poll_interval"
_add(
    "Task",
    _in(_called, lambda task: {"task": task}),
    _TASK,
    judged=_OF_A_TASK,
    labels="task_id status",
)
_add(
    "Task",
    _in(answers("tasks/list"), lambda task: {"tasks": [task]}),
    _TASK,
    judged=_OF_A_TASK,
    labels="task_id status",
)
_add("CreateTaskResult", _called, {"task": _TASK}, judged="meta task")
for _name, _method in (("GetTaskResult", "tasks/get"), ("CancelTaskResult", "tasks/cancel")):
    _judged = f"meta {_OF_A_TASK}"
    _add(_name, answers(_method), _TASK, judged=_judged, labels="task_id status")
_add(
    "ListTasksResult",
    answers("tasks/list"),
    {"tasks": [_TASK]},
    judged="meta tasks",
    labels="next_cursor",
)
_add("GetTaskPayloadResult", answers("tasks/result"), {"content": [TEXT]}, judged="meta")
_add(
    "RelatedTaskMetadata",
    _in(
        _called,
        lambda each: {
            "content": [TEXT],
            "_meta": {"io.modelcontextprotocol/related-task": each},
        },
    ),
    {},
    labels="task_id",
)

# ---- errors

_add("ErrorData", fails, {"message": "hi"}, judged="message data", never="code")
_data = _in(fails, lambda data: {"message": "hi", "data": data})
_add("ElicitationRequiredErrorData", _data, {}, judged="elicitations")
_add("UnsupportedProtocolVersionErrorData", _data, {}, judged="supported requested")
_add("MissingRequiredClientCapabilityErrorData", _data, {}, judged="required_capabilities")

# ---- what a server asks

_sample = asks("sampling/createMessage")
_add(
    "CreateMessageRequestParams",
    _sample,
    SAMPLE,
    judged="meta messages model_preferences system_prompt include_context temperature max_tokens "
    "stop_sequences metadata tools tool_choice task",
)
_add(
    "ModelPreferences",
    _in(_sample, lambda each: {**SAMPLE, "modelPreferences": each}),
    {},
    judged="hints cost_priority speed_priority intelligence_priority",
)
_add(
    "ModelHint",
    _in(_sample, lambda each: {**SAMPLE, "modelPreferences": {"hints": [each]}}),
    {},
    judged="name",
)
_add("ToolChoice", _in(_sample, lambda each: {**SAMPLE, "toolChoice": each}), {}, judged="mode")
_add("TaskMetadata", _in(_sample, lambda each: {**SAMPLE, "task": each}), {}, judged="ttl")
_add(
    "SamplingMessage",
    _in(_sample, lambda each: {"messages": [each]}),
    {"role": "user", "content": TEXT},
    judged="role content meta",
)
_in_a_sample = _in(_sample, lambda each: {"messages": [{"role": "user", "content": [each]}]})
for _name in ("TextContent", "ImageContent", "AudioContent"):
    _block, _fields = _CONTENTS[_name]
    _add(_name, _in_a_sample, _block, **_fields)
_add(
    "ToolUseContent",
    _in_a_sample,
    {"type": "tool_use", "name": "a", "id": "b", "input": {}},
    judged="type name id input meta",
)
_add(
    "ToolResultContent",
    _in_a_sample,
    {"type": "tool_result", "toolUseId": "b", "content": [TEXT]},
    judged="type tool_use_id content structured_content is_error meta",
)
_elicit = asks("elicitation/create")
_add(
    "ElicitRequestFormParams",
    _elicit,
    {"message": "hi there", "requestedSchema": {}},
    judged="meta mode message requested_schema task",
)
_add(
    "ElicitRequestURLParams",
    _elicit,
    {"mode": "url", "message": "hi there", "url": "https://a.b"},
    judged="meta mode message url elicitation_id task",
)
_add("RequestParams", asks("roots/list"), {}, judged="meta")
_add(
    "RequestParamsMeta",
    _in(asks("ping"), lambda each: {"_meta": each}),
    {},
    labels="progress_token",
)
for _name, _method, _params in (
    ("Request", "later/request", {}),
    ("PingRequest", "ping", {}),
    ("ListRootsRequest", "roots/list", {}),
    ("CreateMessageRequest", "sampling/createMessage", SAMPLE),
    ("ElicitRequest", "elicitation/create", {"message": "hi there"}),
):
    _add(
        _name,
        asks_message,
        {"method": _method, "params": _params},
        judged="params",
        refused="method",
    )

# ---- notifications

_add("NotificationParams", notes("notifications/tools/list_changed"), {}, judged="meta")
_add(
    "LoggingMessageNotificationParams",
    notes("notifications/message"),
    {"level": "info", "data": 1},
    judged="meta data",
    labels="level logger",
)
_add(
    "ProgressNotificationParams",
    notes("notifications/progress"),
    {"progressToken": 1, "progress": 1},
    judged="meta progress total message",
    labels="progress_token",
)
_add(
    "ResourceUpdatedNotificationParams",
    notes("notifications/resources/updated"),
    {"uri": "a://b"},
    judged="meta",
    labels="uri",
)
_add(
    "CancelledNotificationParams",
    notes("notifications/cancelled"),
    {},
    judged="meta reason",
    labels="request_id",
)
_add(
    "ElicitCompleteNotificationParams",
    notes("notifications/elicitation/complete"),
    {},
    judged="meta",
    labels="elicitation_id",
)
_add(
    "SubscriptionsAcknowledgedNotificationParams",
    notes("notifications/subscriptions/acknowledged"),
    {},
    judged="meta notifications",
)
_add(
    "SubscriptionFilter",
    _in(
        notes("notifications/subscriptions/acknowledged"),
        lambda each: {"notifications": each},
    ),
    {},
    judged="tools_list_changed prompts_list_changed resources_list_changed",
    labels="resource_subscriptions",
)
_add(
    "TaskStatusNotificationParams",
    notes("notifications/tasks/status"),
    _TASK,
    judged=f"meta {_OF_A_TASK}",
    labels="task_id status",
)
for _name, _method in (
    ("Notification", "notifications/later"),
    ("CancelledNotification", "notifications/cancelled"),
    ("ProgressNotification", "notifications/progress"),
    ("LoggingMessageNotification", "notifications/message"),
    ("ResourceUpdatedNotification", "notifications/resources/updated"),
    ("ResourceListChangedNotification", "notifications/resources/list_changed"),
    ("ToolListChangedNotification", "notifications/tools/list_changed"),
    ("PromptListChangedNotification", "notifications/prompts/list_changed"),
    ("ElicitCompleteNotification", "notifications/elicitation/complete"),
    ("SubscriptionsAcknowledgedNotification", "notifications/subscriptions/acknowledged"),
    ("TaskStatusNotification", "notifications/tasks/status"),
):
    _add(_name, notes_message, {"method": _method, "params": {}}, judged="params", never="method")

# ---- the envelope; its own ids are the proxy's, or numbers

_OF_JSONRPC = {
    "JSONRPCRequest": {"judged": "params", "refused": "method id", "never": "jsonrpc"},
    "JSONRPCNotification": {"judged": "params", "never": "jsonrpc method"},
    "JSONRPCResponse": {"judged": "result", "never": "jsonrpc id"},
    "JSONRPCError": {"judged": "error", "never": "jsonrpc id"},
}
ENVELOPE = [
    LibraryClass(kind=getattr(t, name), **fields)  # type: ignore[arg-type]
    for name, fields in _OF_JSONRPC.items()
]

CLIENTS = frozenset(
    "CallToolRequest CallToolRequestParams CancelTaskRequest CancelTaskRequestParams "
    "ClientCapabilities ClientTasksCapability ClientTasksRequestsCapability CompleteRequest "
    "CompleteRequestParams CompletionArgument CompletionContext CreateMessageResult "
    "CreateMessageResultWithTools DiscoverRequest ElicitResult ElicitationCapability "
    "FormElicitationCapability GetPromptRequest GetPromptRequestParams GetTaskPayloadRequest "
    "GetTaskPayloadRequestParams GetTaskRequest GetTaskRequestParams InitializeRequest "
    "InitializeRequestParams InitializedNotification InputResponseRequestParams "
    "ListPromptsRequest ListResourceTemplatesRequest ListResourcesRequest ListRootsResult "
    "ListTasksRequest ListToolsRequest PaginatedRequest PaginatedRequestParams PromptReference "
    "ReadResourceRequest ReadResourceRequestParams ResourceTemplateReference Root "
    "RootsCapability RootsListChangedNotification SamplingCapability SamplingContextCapability "
    "SamplingToolsCapability SetLevelRequest SetLevelRequestParams SubscribeRequest "
    "SubscribeRequestParams SubscriptionsListenRequest SubscriptionsListenRequestParams "
    "TasksCreateElicitationCapability TasksCreateMessageCapability TasksElicitationCapability "
    "TasksSamplingCapability UnsubscribeRequest UnsubscribeRequestParams UrlElicitationCapability"
    "".split()
)
"""Classes of what a client says, which goes to a server and to no model of the client's."""
