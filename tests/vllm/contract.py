"""Every name inside vLLM that the guard leans on, and whether a vLLM's source has it.

vLLM is read, not imported, so that a wheel for GPUs can be looked at anywhere. Nothing here says
that what is called so still means the same: a new version is run before it is named in `TESTED`.
"""

from __future__ import annotations

import ast
import zipfile
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Def = ast.FunctionDef | ast.AsyncFunctionDef

# A module, or a class in it (its bases count), and its names. A function that the guard replaces or
# calls has its parameters, `self` aside; behind `*others` vLLM may have more that can be left out.
# `__dict__` says that an instance takes attributes it was not made with.
_WORKER = (
    "device",
    "execute_model(scheduler_output)",
    "initialize_from_config(kv_cache_config)",
    "load_model(*others)",
    "model_runner",
    "rank",
    "sample_tokens(grammar_output)",
    "vllm_config",
)
NAMES = {
    "vllm.version": ("__version__",),
    # ---- what vLLM is started with: options.py, host.py, and the words behind `serve ... --`
    "vllm": ("AsyncEngineArgs", "LLM", "SamplingParams"),
    "vllm.engine.arg_utils:AsyncEngineArgs": (
        "additional_config",
        "add_cli_args(parser, *others)",
        "dtype",
        "gpu_memory_utilization",
        "max_model_len",
        "max_num_seqs",
        "model",
        "revision",
        "scheduler_cls",
        "tensor_parallel_size",
        "trust_remote_code",
        "worker_cls",
    ),
    "vllm.utils.argparse_utils:FlexibleArgumentParser": ("parse_args",),
    "vllm.config:VllmConfig": (
        "additional_config",
        "compilation_config",
        "kv_transfer_config",
        "lora_config",
        "model_config",
        "parallel_config",
        "scheduler_config",
        "speculative_config",
    ),
    "vllm.config:ModelConfig": (
        "dtype",
        "hf_text_config",
        "is_encoder_decoder",
        "max_model_len",
        "model",
        "revision",
        "runner_type",
        "trust_remote_code",
    ),
    "vllm.config:ParallelConfig": (
        "decode_context_parallel_size",
        "pipeline_parallel_size",
        "prefill_context_parallel_size",
        "use_ubatching",
        "worker_cls",
    ),
    "vllm.config:SchedulerConfig": ("max_num_batched_tokens", "max_num_seqs", "scheduler_cls"),
    # ---- the engine as it is asked: host.py, guard.py, middleware.py, parity.py
    "vllm.v1.engine.async_llm:AsyncLLM": (
        "errored",
        "from_engine_args(engine_args, *others)",
        "generate(prompt, sampling_params, request_id, *others)",
        "renderer",
        "shutdown(*others)",
        "vllm_config",
    ),
    "vllm.v1.engine.exceptions": ("EngineDeadError", "EngineGenerateError"),
    "vllm.renderers.base:BaseRenderer": ("render_cmpl_async(prompts, *others)",),
    "vllm.sampling_params:RequestOutputKind": ("DELTA",),
    "vllm.sampling_params:StructuredOutputsParams": ("grammar",),
    "vllm.sampling_params:SamplingParams": (
        "detokenize",
        "extra_args",
        "logprobs",
        "max_tokens",
        "n",
        "output_kind",
        "repetition_penalty",
        "seed",
        "temperature",
        "top_k",
        "top_p",
    ),
    "vllm.entrypoints.llm:LLM": ("chat", "llm_engine"),
    "vllm.v1.engine.llm_engine:LLMEngine": ("reset_prefix_cache(*others)", "vllm_config"),
    "vllm.outputs:RequestOutput": (
        "kv_transfer_params",
        "num_cached_tokens",
        "outputs",
        "prompt_logprobs",
        "prompt_token_ids",
    ),
    "vllm.outputs:CompletionOutput": (
        "finish_reason",
        "logprobs",
        "stop_reason",
        "text",
        "token_ids",
    ),
    "vllm.logprobs:Logprob": ("logprob", "rank"),
    # ---- the scheduler: scheduler.py
    "vllm.tokenizers": ("cached_tokenizer_from_config(model_config, *others)",),
    "vllm.v1.core.sched.async_scheduler:AsyncScheduler": (
        "_preempt_request(request, timestamp, drop_stale_output=False)",
        "_update_request_with_output(request, new_token_ids, is_stale=False)",
        "kv_cache_config",
        "kv_cache_manager",
        "prev_step_scheduled_req_ids",
        "requests",
        "running",
        "schedule(*others)",
        "update_from_output(scheduler_output, model_runner_output)",
        "vllm_config",
    ),
    "vllm.v1.core.sched.output:SchedulerOutput": (
        "__dict__",
        "finished_req_ids",
        "num_scheduled_tokens",
    ),
    "vllm.v1.core.kv_cache_manager:KVCacheManager": ("get_block_ids(request_id)",),
    "vllm.v1.request:Request": (
        "_block_hasher",
        "block_hashes",
        "mm_features",
        "num_computed_tokens",
        "num_prompt_tokens",
        "prompt_token_ids",
        "request_id",
        "resumable",
        "sampling_params",
        "status",
        "stop_reason",
    ),
    "vllm.v1.request:RequestStatus": ("FINISHED_STOPPED", "RUNNING"),
    "vllm.multimodal.inputs:MultiModalFeatureSpec": ("mm_position", "modality"),
    "vllm.multimodal.inputs:PlaceholderRange": ("length", "offset"),
    "vllm.v1.engine:EngineCoreOutputs": ("outputs",),
    "vllm.v1.engine:EngineCoreOutput": (
        "kv_transfer_params",
        "new_logprobs",
        "new_prompt_logprobs_tensors",
        "new_token_ids",
        "request_id",
    ),
    "vllm.v1.kv_cache_interface:FullAttentionSpec": ("block_size",),
    "vllm.v1.kv_cache_interface:KVCacheConfig": (
        "hash_block_size",
        "kv_cache_groups",
        "num_blocks",
    ),
    "vllm.v1.kv_cache_interface:KVCacheGroupSpec": ("kv_cache_spec",),
    # ---- the worker, with its first and its second runner: worker.py
    "vllm.platforms": ("current_platform",),
    "vllm.platforms.interface:Platform": ("is_cpu()", "is_cuda_alike()"),
    "vllm.v1.worker.cpu_worker:CPUWorker": _WORKER,
    "vllm.v1.worker.gpu_worker:Worker": _WORKER,
    "vllm.v1.outputs:AsyncModelRunnerOutput": ("get_output()",),
    "vllm.v1.outputs:ModelRunnerOutput": ("__dict__", "prompt_logprobs_dict"),
    "vllm.v1.worker.gpu_model_runner:AsyncGPUModelRunnerOutput": ("__dict__", "get_output()"),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner": (
        "_prepare_inputs(scheduler_output, num_scheduled_tokens)",
        "get_model()",
        "input_batch",
    ),
    "vllm.v1.worker.gpu_input_batch:InputBatch": (
        "block_table",
        "num_computed_tokens_cpu",
        "req_ids",
    ),
    "vllm.v1.worker.block_table:MultiGroupBlockTable": ("__getitem__(idx)",),
    "vllm.v1.worker.block_table:BlockTable": ("slot_mapping",),
    "vllm.v1.utils:CpuGpuBuffer": ("gpu",),
    "vllm.v1.worker.gpu.async_utils:AsyncOutput": ("__dict__", "get_output()"),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner": (
        "block_tables",
        "get_model()",
        "prepare_inputs",
    ),
    "vllm.v1.worker.gpu.block_table:BlockTables": ("slot_mappings",),
    "vllm.v1.worker.gpu.input_batch:InputBatch": (
        "num_computed_tokens_np",
        "num_scheduled_tokens",
        "req_ids",
    ),
    "vllm.model_executor.models.interfaces:SupportsMultiModal": ("get_language_model()",),
}

# Where vLLM does what the guard waits for: a function, and a call or an assignment in it.
USES = {
    "vllm.v1.core.sched.scheduler:Scheduler.update_from_output": (
        "self._update_request_with_output(request, new_token_ids, is_stale=_)",
    ),
    "vllm.v1.engine.core:EngineCore.step": (
        "self.scheduler.schedule(_)",
        "self.scheduler.update_from_output(scheduler_output, model_output)",
    ),
    "vllm.v1.engine.core:EngineCore.step_with_batch_queue": (
        "self.scheduler.schedule(_)",
        "self.scheduler.update_from_output(scheduler_output, model_output)",
    ),
    "vllm.v1.request:Request.update_block_hashes": ("self._block_hasher(self)",),
    "vllm.v1.worker.gpu_worker:Worker.execute_model": (
        "self.model_runner.execute_model(scheduler_output, intermediate_tensors)",
    ),
    "vllm.v1.worker.gpu_worker:Worker.sample_tokens": (
        "self.model_runner.sample_tokens(grammar_output)",
    ),
    "vllm.v1.worker.gpu_model_runner:GPUModelRunner.execute_model": (
        "self._prepare_inputs(scheduler_output, num_scheduled_tokens)",
    ),
    "vllm.v1.worker.gpu.model_runner:GPUModelRunner.execute_model": (
        "self.prepare_inputs(scheduler_output, batch_req_state, batch_desc, num_active_loras)",
    ),
    "vllm.v1.executor.uniproc_executor:UniProcExecutor.collective_rpc": ("result.get_output()",),
    "vllm.v1.executor.multiproc_executor:WorkerProc.enqueue_output": ("output.get_output()",),
    # The last token of a request that stopped is dropped: scheduler.py has one more in the refusal.
    "vllm.v1.engine.detokenizer:BaseIncrementalDetokenizer.update": (
        "skipped_stop_token_id = new_token_ids[-1]",
    ),
    "vllm.entrypoints.launchers.api_server.app_state:init_app_state": (
        "state.engine_client = engine_client",
        "state.vllm_config = vllm_config",
    ),
}


def broken(source: Source) -> list[str]:
    """What is not as it is written above, in words."""
    found = [
        f"{place}: {words}"
        for place, names in NAMES.items()
        for name in names
        if (words := source.lacks(place, name))
    ]
    found += [
        f"{place} has no `{use}`"
        for place, uses in USES.items()
        for use in uses
        if not source.does(place, use)
    ]
    return found


@dataclass(frozen=True)
class Found:
    """A definition, and the module that it stands in."""

    node: ast.AST
    module: str


class Source:
    """The Python of a vLLM, in a wheel or a folder that holds the folder `vllm`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[str, dict[str, ast.AST]] = {}

    @cached_property
    def _wheel(self) -> zipfile.ZipFile | None:
        return None if self._path.is_dir() else zipfile.ZipFile(self._path)

    def lacks(self, place: str, name: str) -> str | None:
        """How a module or class differs from having this name; None if it does not."""
        module, _, owner = place.partition(":")
        plain, told = name.partition("(")[0], "(" in name
        if owner:
            kinds = [*self._kinds(module, owner)]
            if not kinds:
                return "is gone"
            if name == "__dict__":
                return None if all(map(_is_open, kinds)) else "takes no attributes any more"
            found = next((one for kind in kinds if (one := _member(kind, plain))), None)
        else:
            top = self._find(module, plain)
            found = top.node if top else None
        if found is None:
            return f"has no {plain}"
        if not told:
            return None
        if not isinstance(found, Def):
            return f"{plain} is no function"
        return _differs(name, found, bound=bool(owner))

    def does(self, place: str, use: str) -> bool:
        """Whether a function has such a call or assignment."""
        module, _, path = place.partition(":")
        owner, _, name = path.rpartition(".")
        if owner:
            kinds = self._kinds(module, owner)
            node = next((one for kind in kinds if (one := _member(kind, name))), None)
        else:
            top = self._find(module, name)
            node = top.node if top else None
        (wanted,) = ast.parse(use).body
        return node is not None and any(_is_like(one, wanted) for one in ast.walk(node))

    def _kinds(self, module: str, name: str) -> Iterator[ast.ClassDef]:
        """A class and its bases as far as they are vLLM's."""
        found = self._find(module, name)
        if found is None or not isinstance(found.node, ast.ClassDef):
            return
        yield found.node
        for base in found.node.bases:
            plain = base.value if isinstance(base, ast.Subscript) else base
            if isinstance(plain, ast.Name):
                yield from self._kinds(found.module, plain.id)

    def _find(self, module: str, name: str) -> Found | None:
        """What a module calls so, wherever it is from."""
        node = self._top(module).get(name)
        if not isinstance(node, ast.ImportFrom):
            return Found(node, module) if node is not None else None
        origin = _origin(node, module, package=self._text(module)[1])
        own = next(one.name for one in node.names if (one.asname or one.name) == name)
        return self._find(origin, own) if origin.split(".")[0] == "vllm" else None

    def _top(self, module: str) -> dict[str, ast.AST]:
        """A module's own names; of several definitions the last one."""
        if module not in self._read:
            self._read[module] = dict(named(ast.parse(self._text(module)[0]).body))
        return self._read[module]

    def _text(self, module: str) -> tuple[str, bool]:
        """A module's source, and whether it is a package; nothing where there is none."""
        path = module.replace(".", "/")
        for name, package in ((f"{path}/__init__.py", True), (f"{path}.py", False)):
            if self._wheel is not None:
                if name in self._wheel.NameToInfo:
                    return self._wheel.read(name).decode(), package
            elif (self._path / name).is_file():
                return (self._path / name).read_text("utf-8"), package
        return "", False


def _origin(node: ast.ImportFrom, module: str, *, package: bool) -> str:
    """The module that something is imported from."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    kept = parts[: len(parts) - node.level + package]
    return ".".join([*kept, *([node.module] if node.module else [])])


def named(body: list[ast.stmt]) -> Iterator[tuple[str, ast.AST]]:
    """Names that statements give to something, also inside `if` and `try`."""
    for node in body:
        if isinstance(node, Def | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.ImportFrom):
            yield from ((one.asname or one.name, node) for one in node.names)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((one.id, node) for one in flat(targets) if isinstance(one, ast.Name))
        else:
            for part in ("body", "orelse", "handlers", "finalbody"):
                yield from named(getattr(node, part, []))


def flat(targets: list[ast.expr]) -> Iterator[ast.expr]:
    for one in targets:
        if isinstance(one, ast.Tuple | ast.List):
            yield from flat(one.elts)
        else:
            yield one


def _member(kind: ast.ClassDef, name: str) -> ast.AST | None:
    """What a class's body calls so, or a method of it sets on `self`."""
    found = dict(named(kind.body)).get(name)
    if found is not None:
        return found
    for node in ast.walk(kind):
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(ast.unparse(one) == f"self.{name}" for one in flat(targets)):
                return node
    return None


def _is_open(kind: ast.ClassDef) -> bool:
    """Whether a class leaves its instances a `__dict__` that can be written to."""
    made = " ".join(map(ast.unparse, (*kind.decorator_list, *kind.bases, *kind.keywords)))
    closed = ("slots=True", "frozen=True", "Struct", "NamedTuple")
    return _member(kind, "__slots__") is None and not any(word in made for word in closed)


def _differs(wanted: str, found: Def, *, bound: bool) -> str | None:
    """How a function's parameters differ from those that are wanted."""
    (stub,) = ast.parse(f"def {wanted}: ...").body
    static = any(ast.unparse(one) == "staticmethod" for one in found.decorator_list)
    needed, given = _parameters(stub), _parameters(found)[bound and not static :]
    others = isinstance(stub, Def) and stub.args.vararg is not None
    same = given == needed or (
        others and given[: len(needed)] == needed and all(free for _, free in given[len(needed) :])
    )
    return None if same else f"{found.name} takes ({ast.unparse(found.args)}), not {wanted}"


def _parameters(function: Any) -> list[tuple[str, bool]]:
    """Each parameter's name, and whether it can be left out."""
    said = function.args
    places = [*said.posonlyargs, *said.args]
    needed = len(places) - len(said.defaults)
    found = [(one.arg, number >= needed) for number, one in enumerate(places)]
    named = zip(said.kwonlyargs, said.kw_defaults, strict=True)
    return found + [(one.arg, default is not None) for one, default in named]


def _is_like(node: ast.AST, wanted: ast.stmt) -> bool:
    """Whether a call goes to the same, with as many words, or an assignment says the same."""
    if not isinstance(wanted, ast.Expr):
        return isinstance(node, type(wanted)) and ast.dump(node) == ast.dump(wanted)
    call = wanted.value
    if not isinstance(node, ast.Call) or not isinstance(call, ast.Call):
        return False
    return (
        ast.unparse(node.func) == ast.unparse(call.func)
        and len(node.args) == len(call.args)
        and {one.arg for one in node.keywords} == {one.arg for one in call.keywords}
    )
