"""What a folder's file is, by its name: a picture, a video, or a note about the data."""

from __future__ import annotations

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
VIDEOS = frozenset(
    {".mp4", ".m4v", ".mkv", ".webm", ".mov", ".avi", ".mpg", ".mpeg", ".ts", ".ogv"}
)
_NOTES = frozenset({"readme", "license", "licence"})


def is_note(name: str) -> bool:
    """Whether a file's name says that it is about the data; what is shown never is."""
    stem, dot, ending = name.lower().rpartition(".")
    if dot + ending in PICTURES | VIDEOS:
        return False
    return (stem or ending) in _NOTES or name.lower() == "thumbs.db"
