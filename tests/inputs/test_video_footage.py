from __future__ import annotations

import io
import os
from typing import Any

import numpy as np
import pytest
from PIL import Image

from guardrail.errors import InputError, LimitExceededError, VideoDecodeError
from guardrail.inputs.video_footage import Encoded, Frames, LocalFile
from guardrail.policy import Limits

LIMITS = Limits()


def animation(name: str, durations: list[int], **options: Any) -> bytes:
    frames = [Image.new("RGB", (8, 6), (40 * i, 0, 0)) for i in range(len(durations))]
    buffer = io.BytesIO()
    more: dict[str, Any] = {"append_images": frames[1:], "duration": durations, **options}
    frames[0].save(buffer, name, save_all=True, **more)
    return buffer.getvalue()


def reds(shots: Any) -> list[int]:
    return [shot.picture().getpixel((0, 0))[0] for shot in shots]


@pytest.mark.parametrize("name", ["GIF", "PNG", "WEBP"])
def test_an_animation_is_played_at_its_own_times(name):
    options = {"lossless": True} if name == "WEBP" else {}
    data = animation(name, [100, 500, 250], **options)
    shots = list(Encoded(data).shots(LIMITS, "it"))
    assert reds(shots) == [0, 40, 80]
    assert [shot.time for shot in shots] == pytest.approx([0, 0.1, 0.6])


def test_frames_without_a_time_are_shown_as_browsers_show_them():
    shots = list(Encoded(animation("GIF", [0, 10, 10])).shots(LIMITS, "it"))
    assert [shot.time for shot in shots] == pytest.approx([0, 0.1, 0.2])


def test_a_transparent_animation_is_on_white():
    frames = [Image.new("RGBA", (4, 4), (255, 0, 0, 255 * i)) for i in (0, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=100)
    one, two = (s.picture() for s in Encoded(buffer.getvalue()).shots(LIMITS, "it"))
    assert (one.getpixel((0, 0)), two.getpixel((0, 0))) == ((255, 255, 255), (255, 0, 0))


def test_the_frames_of_an_animation_are_bounded():
    with pytest.raises(LimitExceededError, match="frames 3"):
        list(Encoded(animation("GIF", [100] * 3)).shots(Limits(frames=2), "it"))


def test_a_file_on_disk_is_read_like_its_bytes(tmp_path, film, number_of):
    path = tmp_path / "v.mp4"
    path.write_bytes(data := film(6))
    file = LocalFile.at(path, LIMITS, "it")
    assert [number_of(s.picture()) for s in file.shots(LIMITS, "it")] == list(range(6))
    assert file.digest(LIMITS, "it") == Encoded(data).digest(LIMITS, "it")


def test_a_file_that_changed_is_refused(tmp_path, film):
    path = tmp_path / "v.mp4"
    path.write_bytes(film(6))
    file = LocalFile.at(path, LIMITS, "it")
    path.write_bytes(film(7))
    for use in (file.digest, lambda *a: list(file.shots(*a))):
        with pytest.raises(VideoDecodeError, match="has changed"):
            use(LIMITS, "it")


def test_only_regular_files_of_the_allowed_size_are_opened(tmp_path, film):
    os.mkfifo(pipe := tmp_path / "pipe")
    with pytest.raises(VideoDecodeError, match="no regular file"):
        LocalFile.at(pipe, LIMITS, "it")
    with pytest.raises(VideoDecodeError, match="cannot open"):
        LocalFile.at(tmp_path / "none.mp4", LIMITS, "it")
    (path := tmp_path / "v.mp4").write_bytes(film(6))
    with pytest.raises(LimitExceededError) as caught:
        LocalFile.at(path, Limits(video_bytes=100), "it")
    assert caught.value.limit == "video_bytes"


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="descriptors are listed on Linux")
def test_the_file_is_closed_when_its_reader_stops(tmp_path, film):
    path = tmp_path / "v.mp4"
    path.write_bytes(film(30))
    opened = len(os.listdir("/proc/self/fd"))
    shots = LocalFile.at(path, LIMITS, "it").shots(LIMITS, "it")
    next(shots)
    assert len(os.listdir("/proc/self/fd")) == opened + 1
    shots.close()
    assert len(os.listdir("/proc/self/fd")) == opened


def test_given_frames_are_decoded_one_by_one():
    buffer = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 255, 0)).save(buffer, "PNG")
    frames = (Image.new("L", (4, 4), 7), np.full((4, 4, 3), 9, np.uint8), buffer.getvalue())
    shots = Frames(frames, (0.0, 1.0, 5.0)).shots(LIMITS, "it")
    seen = [(s.time, s.picture().getpixel((0, 0))) for s in shots]
    assert seen == [(0.0, (7, 7, 7)), (1.0, (9, 9, 9)), (5.0, (255, 255, 255))]
    broken = Frames((frames[0], b"\x89PNG\r\n\x1a\n broken"), (0.0, 1.0)).shots(LIMITS, "it")
    next(broken)
    with pytest.raises(InputError, match=r"it\[1\]"):
        next(broken)


def test_the_digest_of_frames_tells_pixels_sizes_and_times():
    def digest(*frames: Any, times: tuple[float, ...] = (0.0, 1.0)) -> str:
        return Frames(frames, times).digest(LIMITS, "it")

    tall, wide = np.zeros((2, 8, 3), np.uint8), np.zeros((8, 2, 3), np.uint8)
    found = {digest(tall, wide), digest(wide, tall), digest(tall, wide, times=(0.0, 2.0))}
    assert len(found) == 3
    assert digest(tall, wide) == digest(Image.fromarray(tall), wide)


def test_a_log_of_a_request_holds_no_video(film, numbered):
    data = film(12)
    assert len(repr(Encoded(data))) < 50
    assert len(repr(Frames((data,) * 99, (0.0,) * 99))) < 50
