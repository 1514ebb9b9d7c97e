"""A folder of labelled inputs: JSONL files, or a folder per label with files and texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.errors import DatasetError
from guardrail.evaluation.items import DEFAULT_PROMPT, LABELS, VIDEO_PROMPT, EvalItem
from guardrail.evaluation.lines import line_items
from guardrail.requests.endings import PICTURES, VIDEOS, is_note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def folder_items(folder: Path, *, prompt: str) -> Iterator[EvalItem]:
    """The inputs of a folder, sorted by path; see `load_items` for what it may hold.

    Raises:
        DatasetError: it is neither of the two kinds, both at once, or holds a file nobody reads.
    """
    files = sorted(path for path in folder.glob("*.jsonl") if path.is_file())
    labelled = [path for path in _shown(folder) if path.is_dir() and path.name.lower() in LABELS]
    if files and labelled:
        raise DatasetError(
            f"{folder} holds JSONL files and the folder {labelled[0].name!r}: name the files, or "
            "the folder that only has folders of labels"
        )
    if files:
        for file in files:
            yield from line_items(file)
        return
    others = [path for path in _shown(folder) if path not in labelled]
    if not labelled or others:
        wrong = f"{others[0].name!r} beside them" if labelled else "neither"
        raise DatasetError(
            f"{folder}: a folder of inputs holds JSONL files, or folders named by their label "
            f"({', '.join(LABELS)}); this one has {wrong}"
        )
    for place in labelled:
        yield from _of_label(place, folder, prompt)


def _of_label(place: Path, folder: Path, prompt: str) -> Iterator[EvalItem]:
    yield from _of_category(place, folder, "", prompt)
    for category in [path for path in _shown(place) if path.is_dir()]:
        deeper = [path for path in _shown(category) if path.is_dir()]
        if deeper:
            raise DatasetError(f"{deeper[0]}: below a label there is one level of categories")
        yield from _of_category(category, folder, category.name, prompt)


def _of_category(place: Path, folder: Path, category: str, prompt: str) -> Iterator[EvalItem]:
    files = [path for path in _shown(place) if path.is_file()]
    shown = [path for path in files if path.suffix.lower() in PICTURES | VIDEOS]
    prompts = {path.stem: path for path in files if path.suffix.lower() == ".txt"}
    unread = [path for path in files if path not in shown and path not in prompts.values()]
    if unread:
        raise DatasetError(
            f"{unread[0]} would be lost: a folder of a label holds pictures "
            f"({', '.join(sorted(PICTURES))}), videos ({', '.join(sorted(VIDEOS))}) and .txt "
            "files"
        )
    beside = {path.stem for path in shown}
    for path in files:
        if path in shown:
            asked = _prompt_for(path, prompt)
            text = _text(prompts[path.stem]) if path.stem in prompts else asked
            yield _item(path, folder, category, text)
        elif path.stem not in beside:
            yield _item(path, folder, category, _text(path))


def _prompt_for(path: Path, prompt: str) -> str:
    is_video = path.suffix.lower() in VIDEOS
    return VIDEO_PROMPT if is_video and prompt == DEFAULT_PROMPT else prompt


def _item(path: Path, folder: Path, category: str, text: str) -> EvalItem:
    name, ending = path.relative_to(folder), path.suffix.lower()
    images = (str(path),) if ending in PICTURES else ()
    videos = (str(path),) if ending in VIDEOS else ()
    content = [{"type": "image", "path": image} for image in images]
    content += [{"type": "video", "path": video} for video in videos]
    return EvalItem(
        id=name.as_posix(),
        label=LABELS[name.parts[0].lower()],
        messages=[{"role": "user", "content": [*content, {"type": "text", "text": text}]}],
        text=text,
        category=category,
        source=folder.absolute().name,
        images=images,
        videos=videos,
    )


def _text(path: Path) -> str:
    try:
        text = path.read_text("utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error})") from error
    if not text:
        raise DatasetError(f"{path} is empty; write a prompt into it or remove it")
    return text


def _shown(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and notes about the data."""
    return sorted(
        path for path in folder.iterdir() if not path.name.startswith(".") and not _is_note(path)
    )


def _is_note(path: Path) -> bool:
    """Whether a file is about the data; what is shown or a folder never is, whatever its name."""
    return is_note(path.name) and not path.is_dir()
