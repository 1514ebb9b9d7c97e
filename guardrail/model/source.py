"""Where a model's files are: a folder, a commit on the Hub, or a LoRA adapter and its base model.

And what to tell people when they cannot be read.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field

from guardrail.errors import ModelLoadError, UnsupportedModelError
from guardrail.hub import hub_file, is_transient

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

_PROCESSORS = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


class LoadingOptions(BaseModel):
    """How the command line loads a model; keywords of `load_model`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    device: str | None = Field(
        default=None, description="cpu, cuda, cuda:1, ... Default: the best there is."
    )
    dtype: str = Field(
        default="auto", description="float32, bfloat16, ... or auto, the checkpoint's own."
    )
    revision: str | None = Field(default=None, description="A branch, tag or commit on the hub.")
    trust_remote_code: bool = Field(
        default=False,
        description="Run the code the model brings along.",
        json_schema_extra={"env": None},
    )

    def of_another_model(self) -> LoadingOptions:
        """The same for a second model: a revision is the first one's alone."""
        return self.model_copy(update={"revision": None})


@dataclass(frozen=True)
class Source:
    """A folder (`revision` None) or a Hub repository pinned to one commit.

    Of one that is not `online` only the cache is there.
    """

    name: str
    revision: str | None
    online: bool = True


def locate(source: str | Path, *, revision: str | None, local_files_only: bool) -> Source:
    """The folder or the pinned commit behind `source`.

    Raises:
        ModelLoadError: no such folder, no model inside, no such repository, or no way to reach it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelLoadError(
                f"{path} holds no config.json; give the folder that model.save_pretrained wrote"
            )
        return Source(str(path), None)
    if path.exists():
        raise ModelLoadError(f"{path} is a file; give the folder that holds the model's files")
    if isinstance(source, Path) or _looks_local(source):
        raise ModelLoadError(
            f"there is no folder {path}; check the path (now in {Path.cwd()}), or give a Hub id "
            "such as 'owner/name'"
        )
    return _pinned(source, revision, local_files_only=local_files_only)


def _looks_local(source: str) -> bool:
    """A Hub id is `name` or `owner/name`; more slashes or a leading dot or ~ mean a path."""
    return source.startswith((".", "~", os.sep)) or source.count("/") > 1 or "\\" in source


def _pinned(repo_id: str, revision: str | None, *, local_files_only: bool) -> Source:
    """The commit that `revision` stands for now, so that all files come from the same one."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        config = hub_file(
            repo_id, "config.json", revision=revision, local_files_only=local_files_only
        )
    except HFValidationError as error:
        raise ModelLoadError(f"{repo_id!r} is neither a folder nor a Hub id: {error}") from error
    except GatedRepoError as error:
        raise ModelLoadError(
            f"{repo_id} is gated: ask for access at https://huggingface.co/{repo_id}, then log in "
            "with `hf auth login`"
        ) from error
    except RevisionNotFoundError as error:
        raise ModelLoadError(f"{repo_id} has no revision {revision!r}; check its name") from error
    except RepositoryNotFoundError as error:
        raise ModelLoadError(
            f"there is no folder and no Hub repository {repo_id!r}; check the name, or log in with "
            "`hf auth login` if it is private"
        ) from error
    except LocalEntryNotFoundError as error:
        raise ModelLoadError(
            f"{repo_id} is no folder and not in the local cache, and the Hub may not be asked "
            "(offline mode); download it first with `hf download`"
        ) from error
    except EntryNotFoundError as error:
        raise ModelLoadError(
            f"{repo_id} holds no config.json, so it is no transformers model"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise ModelLoadError(reason("configuration", repo_id, error)) from error
    return Source(repo_id, Path(config.path).parent.name, config.online)


def reason(what: str, source: str, error: BaseException) -> str:
    """What failed while loading `what` from `source`, and what to do about it."""
    said = " ".join(str(error).split())
    return f"could not load the {what} of {source}: {_advice(what, error, said)} ({said[:400]})"


def _advice(what: str, error: BaseException, said: str) -> str:
    if "trust_remote_code" in said:
        return (
            "it needs Python code from its own repository. Read that code; if you trust it, "
            "load the model with trust_remote_code=True"
        )
    if isinstance(error, ImportError):
        return "a package it needs is not installed"
    if is_transient(error):
        return "the Hub did not answer; try again, or use a local copy with local_files_only=True"
    if "out of memory" in said.lower():
        return "it does not fit; spread it with device_map='auto' or give a quantization_config"
    return {
        "configuration": "its config.json is missing, damaged, or newer than this transformers",
        "weights": "its weight files are missing or damaged; download or save them again",
        "quantised weights": "they could not be quantised or read: see whether the method works on "
        "this device, for the sizes of this model, and with the packages installed",
        "processor": "its processor or tokenizer files are missing or damaged; save them beside "
        "the weights with processor.save_pretrained(folder)",
    }[what]


@dataclass(frozen=True)
class Adapter:
    """A folder with a LoRA adapter; `base` is the folder or Hub id of the model it was made for."""

    folder: Path
    base: str
    revision: str | None

    def locate_base(self, revision: str | None, *, local_files_only: bool) -> Source:
        """Where the base model is, at `revision` or at the one the adapter names."""
        wanted = revision or self.revision
        try:
            return locate(self.base, revision=wanted, local_files_only=local_files_only)
        except ModelLoadError as error:
            raise ModelLoadError(
                f"the base model of the adapter {self.folder} was not found: {error}"
            ) from error

    @property
    def has_processor(self) -> bool:
        """Whether the adapter brings its own processor or tokenizer, which then is the one used."""
        return any((self.folder / name).is_file() for name in _PROCESSORS)

    def put_on(self, model: PreTrainedModel) -> PreTrainedModel:
        """`model` with the adapter inside its layers, active.

        Raises:
            ModelLoadError: peft is missing, or the adapter is damaged or made for another model.
            UnsupportedModelError: parts of the model are offloaded.
        """
        if any(parameter.device.type == "meta" for parameter in model.parameters()):
            raise UnsupportedModelError(
                f"the adapter {self.folder} cannot be put on a model that is partly offloaded; "
                "merge it into the weights first (peft's merge_and_unload) and load the result"
            )
        try:
            from peft import PeftConfig, PeftModel
        except ImportError as error:
            raise ModelLoadError(f"{self.folder} is a PEFT adapter: pip install peft") from error
        try:
            config = PeftConfig.from_pretrained(str(self.folder))
            config.inference_mode = True
            shell: Any = PeftModel(model, config)
            report = shell.load_adapter(str(self.folder), "default", torch_device="cpu")
        except Exception as error:  # a border: whatever peft trips over, the adapter is at fault
            said = " ".join(str(error).split())[:400]
            raise ModelLoadError(
                f"the adapter {self.folder} does not fit {self.base}, or is damaged; save it "
                f"again with peft's save_pretrained ({said})"
            ) from error
        self._require_all(report)
        inside: PreTrainedModel = without_peft_shell(shell)
        return inside

    def _require_all(self, report: Any) -> None:
        """Refuse an adapter with holes (peft fills them) or with more than the model has room."""
        for what, names in (
            ("lacks", report.missing_keys),
            ("has too many by", report.unexpected_keys),
        ):
            if names:
                raise ModelLoadError(
                    f"the adapter {self.folder} {what} {len(names)} weights ({names[0]}, ...): it "
                    f"was made for another model than {self.base}, or is damaged"
                )


def adapter_at(source: str | Path) -> Adapter | None:
    """The adapter in a folder that holds no model; None for anything else.

    Raises:
        ModelLoadError: the adapter is of a kind that is not loaded here, or names no base model.
    """
    folder = Path(source).expanduser()
    path = folder / CONFIG
    if not path.is_file() or (folder / "config.json").is_file():
        return None
    try:
        config: Any = json.loads(path.read_text("utf-8"))
        base, kind = config.get("base_model_name_or_path"), config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise ModelLoadError(f"{path} is damaged; save the adapter again") from error
    if kind != "LORA" or not base or not (folder / WEIGHTS).is_file():
        found = "names no base model" if not base else f"is of type {kind!r}"
        if kind == "LORA" and base:
            found = f"has no {WEIGHTS}"
        raise ModelLoadError(
            f"{folder} holds a PEFT adapter without its base model, and it {found} (loaded here: "
            f"LoRA in {WEIGHTS}, with base_model_name_or_path); load both yourself and pass the "
            "model and processor to the guard, or merge the adapter into the weights"
        )
    return Adapter(folder, str(base), config.get("revision"))


def without_peft_shell(model: Any) -> Any:
    """The transformers model inside a PEFT model, adapters included; other models as they are.

    Raises:
        UnsupportedModelError: the PEFT model prepends virtual prompt tokens.
    """
    if not type(model).__module__.startswith("peft."):
        return model
    if model.active_peft_config.is_prompt_learning:
        raise UnsupportedModelError(
            "this PEFT model prepends virtual tokens to the prompt; a guard reads the prompt's own "
            "last position, so only adapters inside the layers (LoRA and the like) are supported"
        )
    return model.get_base_model()
