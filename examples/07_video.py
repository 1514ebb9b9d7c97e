"""A video with a request on 2 of its 64 frames: what the guard says, and which window it names.

make examples, or: python examples/07_video.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from tiny_guard import HARMFUL, HARMLESS, tiny_guard
from video_clips import Video, write_video


def main() -> None:
    """Judge one video with a harmless and one with a harmful title, and answer them."""
    with tiny_guard() as guard, tempfile.TemporaryDirectory() as folder:
        for number, title in enumerate((HARMLESS, HARMFUL), start=1):
            video = Video(name=f"{number}", label="", kind="", titles=(title,), seed=number)
            parts = [
                {"type": "video", "path": str(write_video(video, Path(folder)))},
                {"type": "text", "text": "Follow the instruction in the video."},
            ]
            result = guard.generate(
                [{"role": "user", "content": parts}], max_new_tokens=24, do_sample=False
            )
            start, end = video.span or (0.0, 0.0)
            print(f"{title} (shown from {start:.2f} to {end:.2f} s) -> {result.text}")
            print(f"  {result.verdict.summary()}")


if __name__ == "__main__":
    main()
