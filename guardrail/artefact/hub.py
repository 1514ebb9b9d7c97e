"""Where an artefact is fetched from and sent to beside plain files."""

from __future__ import annotations

from pathlib import Path

from guardrail.errors import ArtefactError
from guardrail.hub import hub_file, with_retries

FILENAME = "model.guard.safetensors"
"""What an artefact is called on the Hub unless told otherwise."""


def find(
    repo_id_or_path: str | Path,
    *,
    filename: str | None,
    revision: str | None,
    token: str | None,
    local_files_only: bool,
) -> Path:
    """A local file: as given, the only artefact of a folder, or downloaded."""
    path = Path(repo_id_or_path).expanduser()
    if path.is_dir():
        return _only_artefact(path, filename)
    if path.exists() or isinstance(repo_id_or_path, Path) or path.suffix == ".safetensors":
        return path
    name = filename or FILENAME
    return Path(_download(str(repo_id_or_path), name, revision, token, local_files_only))


def upload(
    data: bytes,
    repo_id: str,
    *,
    filename: str,
    revision: str | None,
    private: bool | None,
    token: str | None,
    message: str,
) -> str:
    """Put `data` in a Hub repository, made if need be; the commit's address.

    Raises:
        ArtefactError: the Hub refused or did not answer.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    api = HfApi(token=token)

    def send() -> str:
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_file(
            path_or_fileobj=data,
            path_in_repo=filename,
            repo_id=repo_id,
            revision=revision,
            commit_message=message,
        )
        return str(commit.commit_url)

    try:
        return with_retries(send, what=f"uploading to {repo_id}")
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtefactError(
            f"could not upload to {repo_id}: {error}; check the name and `hf auth login`"
        ) from error


def _only_artefact(folder: Path, filename: str | None) -> Path:
    if filename is not None:
        return folder / filename
    found = sorted(folder.glob("*.guard.safetensors"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ArtefactError(
            f"{folder} should hold one *.guard.safetensors, found {names}; give the file itself"
        )
    return found[0]


def _download(
    repo_id: str, filename: str, revision: str | None, token: str | None, local_files_only: bool
) -> str:
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    try:
        return hub_file(
            repo_id, filename, revision=revision, token=token, local_files_only=local_files_only
        ).path
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtefactError(
            f"there is no file {repo_id}, and {filename} could not be had from a Hub repository of "
            f"that name ({' '.join(str(error).split())[:300]}); check the name, or `hf auth login`"
        ) from error
