"""The whole fit: prompts and a model in, an artefact out. No picture but what it draws itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError
from guardrail.extras import require_extra
from guardrail.fit.calibrate import calibration, target_rates
from guardrail.fit.collect import Collector, Progress
from guardrail.fit.dataset import load_contrast
from guardrail.fit.outcome import Outcome, artefact_of
from guardrail.fit.prompts import unfit_for_video
from guardrail.fit.readings import Readings, read_all
from guardrail.fit.refusal import REFUSAL_PREFIXES
from guardrail.fit.select import Candidate, choose, compare, is_safe, readout_layers
from guardrail.fit.steering import search
from guardrail.model.fingerprint import fingerprint
from guardrail.stats import needed_scores
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration, Fingerprint, Rates
    from guardrail.fit.prompts import Form
    from guardrail.fit.readings import FormResiduals
    from guardrail.fit.select import LinearReadout
    from guardrail.model.load import LoadedModel

CALIBRATED_ON: dict[Modality, Form] = {
    Modality.TEXT: "plain",
    Modality.IMAGE: "drawn",
    Modality.VIDEO: "filmed",
}
CONTRAST_SOURCE = "safe contrast prompts"


def fit(
    loaded: LoadedModel,
    *,
    data: str | Path | None = None,
    extend: bool = True,
    steer_rate: float = 0.05,
    flag_rate: float = 0.01,
    refusal_prefixes: Sequence[str] | None = None,
    batch_size: int = 16,
    per_kind: int | None = 112,
    video: bool | None = None,
    videos: int = 0,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> Artefact:
    """Find, choose and calibrate the refusal direction of a model.

    Args:
        loaded: the model, with its processor.
        data: contrast prompts of one's own (JSONL); None uses the packaged ones alone.
        extend: add `data` to the packaged prompts instead of replacing them.
        steer_rate: target share of benign inputs that are steered or flagged.
        flag_rate: target share of benign inputs that are flagged.
        refusal_prefixes: how this model begins a refusal; None uses common English ones.
        batch_size: prompts in one forward pass.
        per_kind: prompts of each kind that the directions are fitted on (half as many select
            among them); None reads all. More is better, and slower.
        video: measure what a video adds, without which no video can be scored. It takes 8 clips
            of one window each (`VideoSampling`). None: if the model can be shown one.
        videos: calibrate the thresholds of videos on so many safe prompts, drawn on frames of clips
            of one window, at least 1 / flag_rate - 1 of them. With 0, videos are held to the
            thresholds of pictures.
        work_dir: keep residuals there as they are read, so that an interrupted fit resumes.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        ConfigurationError: `video` or `videos` ask for what the model cannot be shown.
        DatasetError: the prompts cannot be used.
        MissingExtraError: the extra `fit` is not installed.
        NoUsableDirectionError: no layer separates unsafe from safe prompts.
        CalibrationError: too few prompts for the target rates.
    """
    require_extra("fit")
    rates = target_rates(steer_rate, flag_rate)
    contrast = load_contrast(data, extend=extend)
    identity = fingerprint(loaded)
    collect = Collector(
        loaded,
        batch_size=batch_size,
        work_dir=work_dir,
        key=identity.model_dump_json(),
        progress=progress,
    )
    unfit = why_without_videos(collect, rates, video=video, videos=videos)
    readings = read_all(collect, contrast, rates, per_kind, video=unfit is None, videos=videos)
    return finish(
        collect,
        readings,
        candidates_of(readings),
        identity=identity,
        rates=rates,
        prefixes=tuple(refusal_prefixes or REFUSAL_PREFIXES),
        without_video=unfit if video is None and loaded.is_multimodal else None,
    )


def why_without_videos(
    collect: Collector, rates: Rates, *, video: bool | None, videos: int
) -> str | None:
    """Why a fit reads no video, None if it does.

    Args:
        collect: of the model to fit.
        rates: the target rates.
        video: whether it is to; None if it can.
        videos: how many drawn videos are to calibrate the thresholds.

    Raises:
        ConfigurationError: what is asked for contradicts itself, or cannot be done.
    """
    if videos and video is False:
        raise ConfigurationError(f"{videos} videos cannot be read with video=False (--no-video)")
    needed = needed_scores(min(rates.steer, rates.flag))
    if videos < 0 or 0 < videos < needed:
        raise ConfigurationError(
            f"{videos} drawn videos cannot support a target of {min(rates.steer, rates.flag):g}: "
            f"ask for at least {needed}, or for 0"
        )
    unfit = "it was fitted without them" if video is False else unfit_for_video(collect)
    if unfit is not None and (video or videos):
        raise ConfigurationError(f"videos cannot be read: {unfit}; fit without them")
    return unfit


def candidates_of(readings: Readings) -> list[Candidate]:
    """Every readout a fit may choose, best first."""
    return compare(readings.forms, readout_layers(len(readings.layers), readings.usable))


def finish(
    collect: Collector,
    readings: Readings,
    candidates: Sequence[Candidate],
    *,
    identity: Fingerprint,
    rates: Rates,
    prefixes: tuple[str, ...],
    without_video: str | None = None,
) -> Artefact:
    """Decide everything on readings already made; only the steering asks the model again.

    Raises:
        NoUsableDirectionError: no candidate separates unsafe from safe prompts.
        CalibrationError: too few prompts for the target rates.
    """
    chosen = choose(candidates)
    calibrated = calibrations(readings, chosen.readout, rates)
    found = search(collect, readings, chosen.readout, calibrated[Modality.TEXT], prefixes)
    return artefact_of(
        Outcome(
            fingerprint=identity,
            readings=readings,
            chosen=chosen,
            candidates=candidates,
            calibration=calibrated,
            steering=found,
            prefixes=prefixes,
            without_video=without_video,
        )
    )


def calibrations(
    readings: Readings, readout: LinearReadout, rates: Rates
) -> dict[Modality, Calibration]:
    """Thresholds of text from bare safe prompts, of pictures and videos from drawn ones."""
    return {
        modality: form_calibration(readings.forms[form], form, readout, rates)
        for modality, form in CALIBRATED_ON.items()
        if form in readings.forms
    }


def form_calibration(
    found: FormResiduals, form: Form, readout: LinearReadout, rates: Rates
) -> Calibration:
    """Thresholds from the safe prompts of one form.

    Raises:
        CalibrationError: too few prompts for the target rates.
    """
    scores = readout.scores(found.rows("calibrate", is_safe)).tolist()
    return calibration(scores, rates, source=f"{CONTRAST_SOURCE}, {form}")
