"""The file of an artefact: safetensors with a JSON header, on a disk or on the Hub.

Everything is checked before anything is believed. The digest tells a damaged or edited file from a
whole one. It is no signature: who can write the file can write a fitting digest, so artefacts come
from where the model comes from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.artefact.header import FORMAT_VERSION
from guardrail.errors import ArtefactError, ArtefactFormatError
from guardrail.hub import hub_file, with_retries

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

FILENAME = "model.guard.safetensors"
"""What an artefact is called on the Hub unless told otherwise."""

MAX_FILE = 64_000_000
MAX_HEADER = 4_000_000
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def tensor_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, shapes and values (float32, little-endian)."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name}|{tuple(value.shape)}|".encode())
        total.update(value.numpy().astype("<f4").tobytes())
    return total.hexdigest()


def to_bytes(tensors: dict[str, Tensor], header: bytes) -> bytes:
    """A whole artefact file."""
    from safetensors.torch import save

    from guardrail import __version__

    metadata = {
        "guardrail_format": str(FORMAT_VERSION),
        "written_by": __version__,
        "header": header.decode(),
    }
    data = save(tensors, metadata | {"digest": _digest(metadata, tensors)})
    size = int.from_bytes(data[:8], "little")
    if size > MAX_HEADER or len(data) > MAX_FILE:
        raise ArtefactFormatError(
            f"the artefact would take {len(data)} bytes, {size} of them header; at most {MAX_FILE} "
            f"and {MAX_HEADER} can be read back. Keep fewer calibration scores or figures"
        )
    return data


def read(path: Path) -> tuple[dict[str, Tensor], bytes]:
    """Tensors and header of a file that is whole, unedited and of a known format.

    Raises:
        ArtefactError: there is no such file, or it may not be read.
        ArtefactFormatError: it is no artefact, damaged, edited, too large or of a later format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    data = _bounded(path)
    metadata = _metadata(data, path)
    _require_known_format(metadata, path)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise _broken(path, f"its tensors cannot be read ({error})") from error
    foreign = sorted({str(t.dtype) for t in tensors.values()} - {"torch.float32"})
    if foreign:
        raise _broken(path, f"it holds {', '.join(foreign)} tensors; only float32 is allowed")
    if metadata["digest"] != _digest(metadata, tensors):
        raise _broken(path, "its digest does not fit its content: the file was edited or damaged")
    return tensors, metadata["header"].encode("utf-8", "surrogatepass")


def write_atomically(path: Path, data: bytes, *, replace: bool = True) -> None:
    """Put `data` at `path` in one step: a reader, or a crash, sees the old file or the new one.

    With `replace=False` a file that is there stays, whoever wrote it.
    """
    path = Path(os.path.realpath(path))  # through a link, so that the link stays one
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with os.fdopen(os.open(temporary, _NEW, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            move(temporary, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)  # unlike a rename, it never replaces
            _sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def temporary_beside(path: Path) -> Path:
    """A new name for what is to become `path` when it is whole; it is hidden and ends in .tmp."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def move(path: Path, to: Path) -> None:
    """Give a whole file another name in its folder, in one step that survives a power cut."""
    os.replace(path, to)
    _sync_folder(to.parent)


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where folders can be synced at all."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over everything in the file but the digest itself."""
    covered = {name: value for name, value in metadata.items() if name != "digest"}
    text = json.dumps([covered, tensor_digest(tensors)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _broken(path: Path, why: str) -> ArtefactFormatError:
    return ArtefactFormatError(
        f"{path} cannot be used: {why}. Get the file again or run `guardrail fit`"
    )


def _bounded(path: Path) -> bytes:
    """The file's bytes, if it is an ordinary file of a believable size."""
    if not path.is_file():
        raise ArtefactError(f"there is no artefact file {path}; make one with `guardrail fit`")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise ArtefactError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_FILE:
        raise _broken(path, f"it is larger than {MAX_FILE} bytes, so it is no artefact")
    return data


def _metadata(data: bytes, path: Path) -> dict[str, str]:
    """The safetensors metadata; sizes are checked before anything is parsed."""
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise _broken(path, "it is truncated, or no safetensors file")
    if size > MAX_HEADER:
        raise _broken(path, f"its header takes {size} bytes, more than {MAX_HEADER}")
    outer = _json(data[8 : 8 + size], path)
    found = outer.get("__metadata__") if isinstance(outer, dict) else None
    wanted = ("guardrail_format", "header", "digest")
    if not isinstance(found, dict) or not all(isinstance(found.get(n), str) for n in wanted):
        raise _broken(path, "it is a safetensors file, but no artefact of this package")
    return found


def _json(data: bytes, path: Path) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _broken(path, f"its header is no JSON ({error})") from error


def _require_known_format(metadata: dict[str, str], path: Path) -> None:
    version = metadata["guardrail_format"]
    if version == str(FORMAT_VERSION):
        return
    if not version.isdecimal() or not int(version[:9]):
        raise _broken(path, f"it names the unknown format {version[:20]!r}")
    if int(version[:9]) < FORMAT_VERSION:
        raise ArtefactFormatError(
            f"{path} has format {version[:9]}, of an earlier release, which read less of a prompt; "
            "its scores and thresholds mean something else: run `guardrail fit` to make a new one"
        )
    writer = str(metadata.get("written_by", "a later release"))[:40]
    raise ArtefactFormatError(
        f"{path} has format {version[:9]}, this release reads up to {FORMAT_VERSION}; it was "
        f"written by guardrail-vlm {writer}: pip install 'guardrail-vlm>={writer}'"
    )


def find(
    repo_id_or_path: str | Path,
    *,
    filename: str | None,
    revision: str | None,
    token: str | None,
    local_files_only: bool,
) -> Path:
    """A local file: as given, the only artefact of a folder, or downloaded.

    Raises:
        ArtefactError: the folder does not hold one artefact, or the Hub has no such file.
    """
    path = Path(repo_id_or_path).expanduser()
    if path.is_dir():
        return _only_artefact(path, filename)
    if path.exists() or isinstance(repo_id_or_path, Path) or path.suffix == ".safetensors":
        return path
    from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError

    repo_id, name = str(repo_id_or_path), filename or FILENAME
    try:
        found = hub_file(
            repo_id, name, revision=revision, token=token, local_files_only=local_files_only
        )
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        raise ArtefactError(
            f"there is no file {repo_id}, and {name} could not be had from a Hub repository of "
            f"that name ({' '.join(str(error).split())[:300]}); check the name, or `hf auth login`"
        ) from error
    return Path(found.path)


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
