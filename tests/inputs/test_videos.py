from __future__ import annotations

import base64
import io
import os
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from guardrail.errors import (
    InputError,
    LimitExceededError,
    UnsupportedContentError,
    UrlNotAllowedError,
    VideoDecodeError,
)
from guardrail.inputs.messages import to_request
from guardrail.inputs.videos import Frames, LocalFile, VideoBytes
from guardrail.policy import Limits, Policy, VideoSampling
from guardrail.types import Modality, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

EVERY = VideoSampling(fps=8, max_fps=8, scenes=False, window=4)


def policy(sampling: VideoSampling = EVERY, **more: Any) -> Policy:
    limits = {k: more.pop(k) for k in list(more) if k in Limits.model_fields}
    return Policy(video=sampling, limits=Limits(**limits), **more)


def read(part: dict[str, Any], rules: Policy | None = None) -> Any:
    chat = [{"role": "user", "content": [part, {"type": "text", "text": "?"}]}]
    return to_request(chat, policy=rules or policy())


def video(part: dict[str, Any], rules: Policy | None = None) -> Any:
    return read(part, rules).videos[0]


@pytest.fixture
def data(film: Any) -> bytes:
    return film(3)


def url(data: bytes, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def forms(data: bytes, path: Path) -> list[dict[str, Any]]:
    b64 = base64.b64encode(data).decode()
    return [
        {"type": "video", "video": data},
        {"type": "video", "video": bytearray(data)},
        {"type": "video", "video": io.BytesIO(data)},
        {"type": "video", "video": path},
        {"type": "video", "video": str(path)},
        {"type": "video", "video": b64},
        {"type": "video", "video": url(data)},
        {"type": "video", "path": str(path)},
        {"type": "video", "url": path.as_uri()},
        {"type": "video", "base64": b64, "mime_type": "video/mp4"},
        {"type": "video", "data": b64, "source_type": "base64", "mime_type": "video/mp4"},
        {"type": "video_url", "video_url": {"url": url(data)}},
        {"type": "video_url", "video_url": {"url": url(data), "detail": "low"}},
        {"type": "video_url", "video_url": url(data)},
        {"type": "input_video", "video_url": url(data)},
    ]


def test_every_form_is_the_same_video(data, tmp_path, number_of):
    path = tmp_path / "v"
    path.write_bytes(data)
    for part in forms(data, path):
        found = video(part)
        assert isinstance(found, VideoPart), part
        assert [number_of(frame) for frame in found.clip.frames] == [0, 1, 2], part
        assert found.clip.times == pytest.approx((0, 1 / 8, 2 / 8)), part


def test_a_request_with_a_video_says_so(data):
    request = read({"type": "video", "video": data})
    assert (request.modality, request.offset_kind) == (Modality.VIDEO, "video")
    assert request.shape == (0, (3,))


def test_frames_are_taken_whole_at_their_own_rate(numbered, number_of, tmp_path):
    Image.fromarray(numbered(2)).save(tmp_path / "f.png")
    frames = [numbered(0), Image.fromarray(numbered(1)), str(tmp_path / "f.png")]
    slow = VideoSampling(fps=0.1, window=8)  # files would be thinned
    for fps, times in ((None, (0, 1, 2)), (4, (0, 0.25, 0.5)), (0.5, (0, 2, 4))):
        part = {"type": "video", "video": frames, "fps": fps}
        found = video(part, policy(slow))
        assert [number_of(f) for f in found.clip.frames] == [0, 1, 2]
        assert found.clip.times == pytest.approx(times)
    block = np.stack([numbered(i) for i in range(5)])
    assert [number_of(f) for f in video({"type": "video", "video": block}, policy(slow)).clip.frames
            ] == list(range(5))  # fmt: skip


def test_many_frames_are_a_stream_with_full_windows(numbered, number_of):
    found = video({"type": "video", "video": [numbered(i) for i in range(10)]})
    assert isinstance(found, VideoStream)
    assert [[number_of(f) for f in clip.frames] for clip in found.windows] == [
        [0, 1, 2, 3], [4, 5, 6, 7], [6, 7, 8, 9]
    ]  # fmt: skip


def test_a_file_object_stands_where_it_stood_and_text_files_are_refused(data, tmp_path):
    file = io.BytesIO(b"head" + data)
    file.seek(4)
    video({"type": "video", "video": file})
    assert file.tell() == 4
    with pytest.raises(UnsupportedContentError, match="binary mode"):
        read({"type": "video", "video": io.StringIO("x")})
    reader, writer = os.pipe()
    with os.fdopen(writer, "wb") as out, os.fdopen(reader, "rb") as pipe:
        out.write(data)
        out.close()
        with pytest.raises(UnsupportedContentError, match="set back"):
            read({"type": "video", "video": pipe})


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"video": b"ffconcat version 1.0\nfile /etc/passwd"}, "no video of a known format"),
        ({"video": b""}, "no video of a known format"),
        ({"video": b"\xff\xd8\xff a JPEG"}, "no video of a known format"),
        ({"video": "concat:a.mp4|b.mp4"}, "cannot open"),
        ({"video": "rtsp://camera/1"}, "URL scheme 'rtsp'"),
        ({"video": "https://example.org/v.mp4"}, "'example.org' is not allowed"),
        ({"video": "data:video/mp4;base64,AAAA"}, "holds no known format"),
        ({"video": "data:text/plain,x"}, "media type 'text/plain'"),
        ({"base64": "####"}, "no valid base64"),
        ({"video": 7}, "is a int; accepted: bytes"),
        ({"video": {"url": "x"}}, "is a dict"),
        ({"video": []}, "no frame"),
        ({"video": np.array(5)}, "is a ndarray; accepted: bytes"),
        ({"video": [np.broadcast_to(np.uint8(0), (9_000, 9_000, 3))]}, "image_pixels 81000000"),
        ({"video": [[0, 1]]}, "is a list"),
        ({"video": np.zeros((2, 4, 4, 3))}, "array of float64"),
        ({"video": np.zeros((2, 3, 4, 4), np.uint8)}, r"\(3, 4, 4\)"),
        ({}, "exactly one of video, url, path"),
        ({"video": b"x", "path": "y"}, "it has video, path"),
        ({"video": b"x", "file_id": "f-1"}, "'file_id'"),
        ({"video": b"x", "max_pixels": 1}, "'max_pixels'"),
        ({"video": b"x", "fps": 2.0}, "`video.fps`"),
        ({"video": b"x", "mime_type": 7}, "media type must be a str"),
    ],
)
def test_what_cannot_be_read_is_an_error_that_says_why(part, says):
    with pytest.raises(InputError, match=says):
        read({"type": "video", **part})


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), 1e9, "2", True])
def test_a_rate_must_be_a_possible_number(fps):
    frames = [np.zeros((4, 4, 3), np.uint8)] * 2
    with pytest.raises(UnsupportedContentError, match="fps must be a number"):
        read({"type": "video", "video": frames, "fps": fps})


def test_videos_are_counted_before_one_is_read():
    parts = [{"type": "video", "video": b"broken"}] * 3
    with pytest.raises(LimitExceededError) as caught:
        to_request([{"role": "user", "content": parts}], policy=policy(videos=2))
    assert caught.value.limit == "videos"


def test_sizes_are_checked_before_anything_is_read(data, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(data)
    for part in forms(data, path):
        with pytest.raises(LimitExceededError) as caught:
            read(part, policy(video_bytes=len(data) - 1))
        assert caught.value.limit == "video_bytes", part


def test_the_pixels_of_clips_count_and_those_of_streams_do_not(film):
    pixels = 64 * 48 * 4
    short, long = {"type": "video", "video": film(4)}, {"type": "video", "video": film(8)}
    rules = policy(total_pixels=pixels)
    read(short, rules)
    read(long, rules)
    with pytest.raises(LimitExceededError) as caught:
        to_request([{"role": "user", "content": [short, short]}], policy=rules)
    assert caught.value.limit == "total_pixels"
    to_request([{"role": "user", "content": [long, long, short]}], policy=rules)


def test_listed_frames_are_counted_and_weighed(numbered):
    frames = [numbered(i) for i in range(6)]
    with pytest.raises(LimitExceededError, match="video_frames 6"):
        read({"type": "video", "video": frames}, policy(video_frames=5))
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 90).save(buffer, "PNG")
    heavy = [buffer.getvalue()] * 3
    with pytest.raises(LimitExceededError, match="video_bytes"):
        read({"type": "video", "video": heavy}, policy(video_bytes=2 * len(heavy[0])))


def test_the_disk_is_read_only_where_the_policy_says_so(data, tmp_path):
    path = tmp_path / "v.mp4"
    path.write_bytes(data)
    closed = policy(local_files=False)
    for source in (path, str(path), path.as_uri(), [str(path)]):
        with pytest.raises(UnsupportedContentError, match="no local files"):
            read({"type": "video", "video": source}, closed)
    assert isinstance(video({"type": "video", "video": data}, closed), VideoPart)


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.body)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(data: bytes) -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answers) as http:
        http.body = data  # type: ignore[attr-defined]
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{http.server_port}/v.mp4"
        http.shutdown()
        thread.join()


def test_a_video_is_fetched_from_an_allowed_host_within_its_own_limit(server, data, number_of):
    allowed = {"allowed_hosts": frozenset({"127.0.0.1"})}
    for part in ({"type": "video", "url": server}, {"type": "video_url", "video_url": server}):
        found = video(part, policy(**allowed, image_bytes=10))
        assert [number_of(f) for f in found.clip.frames] == [0, 1, 2]
        with pytest.raises(LimitExceededError, match="video_bytes"):
            read(part, policy(**allowed, video_bytes=len(data) - 1))
        with pytest.raises(UrlNotAllowedError):
            read(part)


def test_a_video_that_says_it_is_too_long_is_refused_before_a_frame_is_judged(film):
    with pytest.raises(InputError, match=r"video_seconds 8\.0, the policy allows 3"):
        video({"type": "video", "video": film(64, container="avi")}, policy(video_seconds=3.0))


def test_a_broken_end_is_found_when_it_is_judged(film):
    whole = film(64, container="avi")
    found = video({"type": "video", "video": whole}, policy(video_frames=6))
    clips = iter(found.windows)
    next(clips)
    with pytest.raises(InputError, match="video_frames"):
        list(clips)
    with pytest.raises(VideoDecodeError):
        read({"type": "video", "video": film(8)[:200]})


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
    shots = list(VideoBytes(data).shots(LIMITS, "it"))
    assert reds(shots) == [0, 40, 80]
    assert [shot.time for shot in shots] == pytest.approx([0, 0.1, 0.6])


def test_frames_without_a_time_are_shown_as_browsers_show_them():
    shots = list(VideoBytes(animation("GIF", [0, 10, 10])).shots(LIMITS, "it"))
    assert [shot.time for shot in shots] == pytest.approx([0, 0.1, 0.2])


def test_a_transparent_animation_is_on_white():
    frames = [Image.new("RGBA", (4, 4), (255, 0, 0, 255 * i)) for i in (0, 1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, "PNG", save_all=True, append_images=frames[1:], duration=100)
    one, two = (s.picture() for s in VideoBytes(buffer.getvalue()).shots(LIMITS, "it"))
    assert (one.getpixel((0, 0)), two.getpixel((0, 0))) == ((255, 255, 255), (255, 0, 0))


def test_the_frames_of_an_animation_are_bounded():
    with pytest.raises(LimitExceededError, match="frames 3"):
        list(VideoBytes(animation("GIF", [100] * 3)).shots(Limits(frames=2), "it"))


def test_a_file_on_disk_is_read_like_its_bytes(tmp_path, film, number_of):
    path = tmp_path / "v.mp4"
    path.write_bytes(data := film(6))
    file = LocalFile.at(path, LIMITS, "it")
    assert [number_of(s.picture()) for s in file.shots(LIMITS, "it")] == list(range(6))
    assert file.digest(LIMITS, "it") == VideoBytes(data).digest(LIMITS, "it")


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
    assert len(repr(VideoBytes(data))) < 50
    assert len(repr(Frames((data,) * 99, (0.0,) * 99))) < 50
