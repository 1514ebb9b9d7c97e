"""The whole fit: prompts and a model in, an artefact out. No picture but what it draws itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from guardrail.errors import ConfigurationError
from guardrail.extras import require_extra
from guardrail.fit.calibrate import calibration, require_enough, target_rates
from guardrail.fit.collect import Collector, Progress
from guardrail.fit.dataset import load_contrast
from guardrail.fit.joint import JointReadout, fit_windows
from guardrail.fit.outcome import Outcome, artefact_of
from guardrail.fit.prompts import unfit_for_video
from guardrail.fit.readings import Readings, read_all, text_samples
from guardrail.fit.recentring import lines
from guardrail.fit.refusal import REFUSAL_PREFIXES
from guardrail.fit.select import MEANS, Candidate, choose, compare, is_safe, readout_layers
from guardrail.fit.steering import search
from guardrail.model.fingerprint import fingerprint
from guardrail.model.history import history_gaps
from guardrail.stats import needed_scores
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration, Fingerprint, Rates
    from guardrail.fit.dataset import ContrastSet
    from guardrail.fit.readings import FormResiduals
    from guardrail.fit.select import LinearReadout
    from guardrail.model.load import LoadedModel

CALIBRATED_ON = {
    Modality.TEXT: ("plain", "worded"),
    Modality.IMAGE: ("drawn", "pictured"),
    Modality.VIDEO: ("filmed",),
}
"""The groups of prompts whose safe ones set the thresholds: the larger of each one's own."""
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
    per_kind: int | None = 64,
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
            among them); None reads all, which takes longer. Below 64, prompts in other forms are
            fewer in proportion.
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
    _require_enough_texts(collect, contrast, rates, per_kind)
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


def _require_enough_texts(
    collect: Collector, contrast: ContrastSet, rates: Rates, per_kind: int | None
) -> None:
    """Refuse rates that the prompts cannot support before the model is asked for hours."""
    asked = text_samples(collect, contrast, per_kind)
    prompts = [contrast.prompts[s.index] for some in asked.values() for s in some]
    held = sum(p.in_split == "calibrate" and is_safe(p.kind) for p in prompts)
    require_enough(held, rates, source=f"{CONTRAST_SOURCE}, {'+'.join(asked)}")


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
    readout = recentred_readout(chosen.readout, readings)
    windows, figures = fit_windows(
        readings.forms, readout, readings.token_layers, progress=collect.progress
    )
    turns = set(readout.layers) <= set(readings.whole_layers)
    joint = JointReadout(readout, windows, turns)
    calibrated = calibrations(readings, joint, rates)
    found = search(collect, readings, joint, calibrated, prefixes)
    return artefact_of(
        Outcome(
            fingerprint=identity,
            readings=readings,
            chosen=replace(chosen, readout=readout),
            joint=joint,
            window_figures=figures,
            candidates=candidates,
            calibration=calibrated,
            steering=found,
            prefixes=prefixes,
            without_video=without_video,
            history=tuple(history_gaps(collect.encoder)),
        )
    )


def recentred_readout(readout: LinearReadout, readings: Readings) -> LinearReadout:
    """The readout with what is taken back of its scores beside pictures, if it reads means alone.

    Other estimators are fitted with prompts beside pictures as a further form.
    """
    if readout.estimator != MEANS or not readings.beside:
        return replace(readout, recentring={})
    return replace(readout, recentring=lines(readings.beside, readout.scores))


def calibrations(
    readings: Readings,
    joint: JointReadout,
    rates: Rates,
    wanted: Sequence[Modality] = tuple(CALIBRATED_ON),
) -> dict[Modality, Calibration]:
    """Thresholds of the joint score, by modality.

    Those of text are of safe prompts in all forms, those of pictures of drawn ones, or of ones
    beside a picture where these score higher, those of videos of drawn ones.
    """
    made = {}
    for modality in wanted:
        groups = CALIBRATED_ON[modality]
        found = {g: safe_scores(readings.forms[g], joint) for g in groups if g in readings.forms}
        if modality is Modality.TEXT and found:
            found = {"+".join(found): [s for scores in found.values() for s in scores]}
        enough = {g: s for g, s in found.items() if len(s) >= needed_scores(rates.flag)} or found
        rows = [
            calibration(scores, rates, source=f"{CONTRAST_SOURCE}, {group}")
            for group, scores in enough.items()
        ]
        if rows:
            made[modality] = max(rows, key=lambda row: row.thresholds.steer)
    return made


def groups_of(modality: Modality, found: Calibration | None) -> tuple[str, ...]:
    """The groups of prompts that set a modality's thresholds, or would without a user's own."""
    source = "" if found is None else found.source.removeprefix(f"{CONTRAST_SOURCE}, ")
    if found is None or source == found.source:
        return CALIBRATED_ON[modality]
    return tuple(source.split("+"))


def safe_scores(found: FormResiduals, joint: JointReadout) -> list[float]:
    """Joint scores of the safe prompts of a group's calibration split."""
    held = found.of("calibrate", is_safe)
    scores: list[float] = joint.scores(held).tolist() if held.samples else []
    return scores
