"""What is drawn of a video: the score after each frame, and of a long one each window's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.report.figures import COLOURS, figure, legend, plot_area, png_data, svg
from guardrail.report.heat import MIDDLE_SCORE, video_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from markupsafe import Markup

    from guardrail.evaluation.explanation import Explanation, Video, WindowScore

_SIDE = 112  # pixels of a frame's small copy
_MOST = 16  # frames that are shown; all are in the figure


def video_parts(explanation: Explanation) -> list[dict[str, Any]]:
    """Each video's name, note, figure and small frames with their times and scores."""
    return [
        {
            "name": video_name(number, video),
            "note": video.note,
            "figure": _frame_scores(number, video),
            "frames": [
                {"picture": png_data(f.image, _SIDE), "time": f.time_s, "score": f.score}
                for f in _thinned(video)
            ],
        }
        for number, video in enumerate(explanation.videos, 1)
    ]


def _thinned(video: Video) -> Sequence[Any]:
    frames = video.frames
    if len(frames) <= _MOST:
        return frames
    return [frames[i * len(frames) // _MOST] for i in range(_MOST)]


def _frame_scores(number: int, video: Video) -> Markup | None:
    """The score after each frame against its time; None where no frame is known."""
    known = [(f.time_s, f.score) for f in video.frames if f.score is not None]
    if not known:
        return None
    drawn = figure(640, 190)
    axes = plot_area(drawn, x=f"s in video {number}", y="score after the frame", grid="y")
    axes.axhline(MIDDLE_SCORE, color=COLOURS["muted"], linewidth=0.8)
    axes.plot(*zip(*known, strict=True), "o-", color=COLOURS["accent"], markersize=5)
    highest = max(known, key=lambda pair: pair[1])
    told = f"{len(known)} frames; the highest score is {highest[1]:.2f}, at {highest[0]:.1f} s"
    return svg(drawn, f"Scores of video {number}, frame by frame", told)


def window_curve(explanation: Explanation) -> Markup | None:
    """Every window's score along time, with the thresholds; None of a request without any."""
    windows = [window for window in explanation.windows if window.video is not None]
    if not windows:
        return None
    drawn = figure(640, 240)
    axes = plot_area(drawn, x="s in the video", y="score of the window", grid="y")
    styles = ("series-1", "series-2", "series-3")
    for video in sorted({window.video for window in windows if window.video is not None}):
        mine = [window for window in windows if window.video == video]
        axes.plot(*_steps(mine), color=COLOURS[styles[video % 3]], label=f"video {video + 1}")
    verdict = explanation.verdict
    scores = [window.score for window in windows]
    near = max(1.0, max(scores) - min(scores))
    for name, value, line in (("steer", verdict.tau_steer, "--"), ("flag", verdict.tau_flag, "-")):
        if min(scores) - near <= value <= max(scores) + near:
            axes.axhline(value, color=COLOURS["ink"], linewidth=1, linestyle=line, label=name)
    legend(axes, loc="best")
    highest = max(explanation.windows, key=lambda window: window.score)
    told = (
        f"{len(windows)} windows; the highest score is {highest.score:.2f}, at "
        f"{highest.start_s:.1f} to {highest.end_s:.1f} s"
    )
    return svg(drawn, "Scores along the video, window by window", told)


def _steps(windows: Sequence[WindowScore]) -> tuple[list[float], list[float]]:
    """A level line from each window's first frame to its last."""
    times, scores = [], []
    for window in windows:
        times += [window.start_s, window.end_s]
        scores += [window.score, window.score]
    return times, scores
