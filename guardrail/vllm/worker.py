"""Where prompts are read: in the process that runs the model.

Before the model is compiled its layers are hooked; before a step runs, its edits are laid out by
token; after it, the numbers of the prompts that it completed go to the scheduler with its output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput
from vllm.version import __version__

from guardrail.decide.detector import Detector
from guardrail.errors import ConfigurationError
from guardrail.model.decoder import layer_list
from guardrail.model.fingerprint import require_fitted_on
from guardrail.model.load import load_model
from guardrail.vllm.judge import TokenNumbers
from guardrail.vllm.options import NAME, Settings, full_attention, require_names, require_supported
from guardrail.vllm.residual import Residuals, install

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from guardrail.vllm.scheduler import Edit, Step

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as Base
else:
    from vllm.v1.worker.gpu_worker import Worker as Base


class GuardWorker(Base):  # type: ignore[misc]
    """vLLM's worker, which takes every token's numbers and moves the rows it is told to."""

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load the model, and hook its layers.

        Raises:
            ConfigurationError: something is missing, or was not tested.
            ArtefactMismatchError: the artefact is of another model.
        """
        settings = Settings.of(self.vllm_config)
        require_supported(self.vllm_config, __version__)
        artefact, model = settings.load(), self.vllm_config.model_config
        if self.rank == 0:
            loaded = load_model(
                model.model,
                device="cpu",
                revision=model.revision,
                trust_remote_code=model.trust_remote_code,
            )
            require_fitted_on(artefact, loaded, allow_mismatch=settings.allow_mismatch)
            del loaded
        super().load_model(*args, **kwargs)
        wanted = TokenNumbers.of(Detector.from_artefact(artefact, settings.policy))
        tokens = self.vllm_config.scheduler_config.max_num_batched_tokens
        self._residuals = Residuals(wanted, tokens, self.device)
        count = model.hf_text_config.num_hidden_layers
        install(self._residuals, decoder_layers(self.model_runner.get_model(), count))
        self._step: Step | None = None
        self._lay_out_edits()

    def initialize_from_config(self, kv_cache_config: Any) -> Any:
        """Make room for the numbers beside the blocks of keys and values."""
        found = super().initialize_from_config(kv_cache_config)
        group, size = full_attention(kv_cache_config)
        self._residuals.keep(kv_cache_config.num_blocks * size, self._slots_of(group))
        return found

    def execute_model(self, scheduler_output: Any) -> Any:
        """Run a step with its edits; its numbers go with the output."""
        self._step = getattr(scheduler_output, NAME, None)
        return self._with_numbers(super().execute_model(scheduler_output))

    def sample_tokens(self, grammar_output: Any) -> Any:
        """The second half of a step."""
        return self._with_numbers(super().sample_tokens(grammar_output))

    def _slots_of(self, group: int) -> Callable[[], torch.Tensor]:
        """Where a step's tokens lie, at an address that stays."""
        runner = self.model_runner
        if not hasattr(runner, "_prepare_inputs"):  # the second runner
            require_names(runner, ("block_tables",))
            require_names(runner.block_tables, ("slot_mappings",))
            return lambda: runner.block_tables.slot_mappings[group]
        require_names(runner, ("input_batch",))
        require_names(runner.input_batch.block_table[group], ("slot_mapping",))
        return lambda: runner.input_batch.block_table[group].slot_mapping.gpu

    def _lay_out_edits(self) -> None:
        """Have the runner tell, before each pass, which place of the batch is whose."""
        runner = self.model_runner
        if hasattr(runner, "_prepare_inputs"):
            require_names(runner, ("_prepare_inputs", "input_batch"))
            prepare = runner._prepare_inputs

            def prepared(scheduler_output: Any, counts: Any) -> Any:
                found, batch = prepare(scheduler_output, counts), runner.input_batch
                done = batch.num_computed_tokens_cpu
                self._move(zip(batch.req_ids, done, counts, strict=False))
                return found

            runner._prepare_inputs = prepared
            return
        require_names(runner, ("prepare_inputs",))
        prepare_rows = runner.prepare_inputs

        def prepared_rows(*args: Any, **kwargs: Any) -> Any:
            found = prepare_rows(*args, **kwargs)
            done, counts = found.num_computed_tokens_np, found.num_scheduled_tokens
            self._move(zip(found.req_ids, done, counts, strict=False))
            return found

        runner.prepare_inputs = prepared_rows

    def _move(self, rows: Iterable[tuple[str, int, int]]) -> None:
        """Lay out the edits of a step: whose rows follow each other, from where, how many."""
        edits: Mapping[str, Edit] = {} if self._step is None else self._step.edits
        amounts: dict[int, float] = {}
        if edits:
            start = 0
            for name, done, count in rows:
                edit = edits.get(name)
                if edit is not None:
                    moved = range(max(int(done), edit.first), min(int(done + count), edit.stop))
                    amounts |= {start + at - int(done): edit.amount for at in moved}
                start += int(count)
        self._residuals.move(amounts)

    def _with_numbers(self, output: Any) -> Any:
        """An output with the numbers of the prompts that its step completed."""
        step = self._step
        if not isinstance(output, ModelRunnerOutput | AsyncModelRunnerOutput):
            return output
        self._step = None
        if step is None or not step.judged or self.rank != 0:
            return output
        found = {name: self._residuals.read(slots) for name, slots in step.judged.items()}
        if isinstance(output, ModelRunnerOutput):
            setattr(output, NAME, {name: one.cpu() for name, one in found.items()})
            return output
        copies = {name: one.to("cpu", non_blocking=True) for name, one in found.items()}
        done = None
        if current_platform.is_cuda_alike():
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record()
        get = output.get_output

        def with_numbers() -> ModelRunnerOutput:
            real = get()
            if done is not None:
                done.synchronize()
            setattr(real, NAME, copies)
            return real

        output.get_output = with_numbers
        return output


def decoder_layers(model: torch.nn.Module, count: int) -> list[torch.nn.Module]:
    """The language model's list of `count` blocks, not one of a vision tower's.

    Raises:
        ConfigurationError: there is none.
    """
    of = getattr(model, "get_language_model", None)
    found = layer_list(model if of is None else of(), count)
    if found is None:
        raise ConfigurationError(
            f"vLLM's {type(model).__name__} has no list of {count} decoder layers to read"
        )
    return list(found[1])
