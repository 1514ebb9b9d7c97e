"""How a model is loaded, where its files are, and what to tell people when they cannot be read."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from guardrail.errors import ModelLoadError
from guardrail.hub import hub_file, is_transient


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
        _require_model_folder(path)
        return Source(str(path), None)
    if path.exists():
        raise ModelLoadError(f"{path} is a file; give the folder that holds the model's files")
    if isinstance(source, Path) or _looks_local(source):
        raise ModelLoadError(
            f"there is no folder {path}; check the path (now in {Path.cwd()}), or give a Hub id "
            "such as 'owner/name'"
        )
    return _pinned(source, revision, local_files_only=local_files_only)


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


def _looks_local(source: str) -> bool:
    """A Hub id is `name` or `owner/name`; more slashes or a leading dot or ~ mean a path."""
    return source.startswith((".", "~", os.sep)) or source.count("/") > 1 or "\\" in source


def _require_model_folder(path: Path) -> None:
    if (path / "config.json").is_file():
        return
    raise ModelLoadError(
        f"{path} holds no config.json; give the folder that model.save_pretrained wrote"
    )


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
