"""Everything fitted for one checkpoint, in one file: directions, thresholds and their evidence."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from guardrail.artefact import file as artefact_file
from guardrail.artefact.file import FILENAME
from guardrail.artefact.header import Answers, Calibration, Header, Windows, first_problem, identity
from guardrail.errors import (
    ArtefactError,
    ArtefactFormatError,
    CalibrationError,
    ConfigurationError,
)
from guardrail.policy import Thresholds, VideoSampling
from guardrail.stats import conformal_threshold
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor

    from guardrail.policy import Policy

_PER_LAYER = ("direction", "mu_safe", "mu_unsafe")
_PER_READOUT = ("readout_zero", "readout_gap")

ANSWERS = "answers: "
"""How the warning begins that says why answers cannot be watched."""
WINDOW = "video_window"
"""Where `header.data` tells of how many frames the clips were that re-centring was measured on."""
SAMPLING = "sampling"
"""Where `header.extra`'s facts of a calibration tell how its videos were sampled."""
_USUAL = VideoSampling().window  # of artefacts that do not tell

# A richer modality without a calibration of its own uses the next one: scores are re-centred.
_FALLBACK = {
    Modality.TEXT: (Modality.TEXT,),
    Modality.IMAGE: (Modality.IMAGE, Modality.TEXT),
    Modality.VIDEO: (Modality.VIDEO, Modality.IMAGE, Modality.TEXT),
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Artefact:
    """A checked header and its tensors (float32, CPU), for L layers of width d, k read layers.

    Tensors: `direction`, `mu_safe`, `mu_unsafe` (L, d); `readout_weight` (k, d); `readout_zero`,
    `readout_gap` (k,); and, if the header has windows over w layers, `window_query` and
    `window_value` (w, heads, d) and `window_bias` (w,); those of answers are `answer_query` and so
    on.

    A header without an `artefact_id` gets one from the content; one that has an id must fit it.

    Raises:
        ArtefactFormatError: header and tensors do not fit together.
    """

    header: Header
    tensors: dict[str, Tensor]

    def __post_init__(self) -> None:
        """Check all, and name the artefact by its content."""
        tensors = check_tensors(self.header, self.tensors)
        name = identity(self.header, artefact_file.tensor_digest(tensors))
        if self.header.artefact_id not in ("", name):
            raise ArtefactFormatError(
                f"the content has the id {name}, the header says {self.header.artefact_id}; "
                "use `revised` to change an artefact"
            )
        made = self.header.created or datetime.now(UTC).isoformat(timespec="seconds")
        named = self.header.model_copy(update={"artefact_id": name, "created": made})
        object.__setattr__(self, "header", named)
        object.__setattr__(self, "tensors", tensors)

    @property
    def artefact_id(self) -> str:
        """`guard-` and 16 hex digits over tensors and header."""
        return self.header.artefact_id

    @property
    def reads_videos(self) -> bool:
        """Whether it was fitted with videos, without which none can be scored."""
        return "video" in self.header.recentring

    def shape_differences(self, layer_count: int, d_model: int) -> dict[str, tuple[str, str]]:
        """Where a model has no place for these vectors, as (fitted, running); nothing allows it."""
        then, now = self.tensors["direction"].shape, (layer_count, d_model)
        pairs = zip(("layer_count", "d_model"), then, now, strict=True)
        return {name: (str(a), str(b)) for name, a, b in pairs if a != b}

    def revised(self, *, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Artefact:
        """A new artefact with other header fields or tensors, whose `parent` is this one."""
        fields = {name: getattr(self.header, name) for name in Header.model_fields}
        fields |= {"parent": self.artefact_id, **changes, "artefact_id": "", "created": ""}
        try:
            header = Header.model_validate(fields)
        except ValidationError as error:
            raise ArtefactFormatError(first_problem(error, "the revised artefact")) from error
        return Artefact(header, self.tensors if tensors is None else tensors)

    def without_answers(self, why: str, **changes: Any) -> Artefact:
        """`revised` without the readout of answers, and with a warning in its place."""
        kept = {n: value for n, value in self.tensors.items() if not n.startswith("answer_")}
        said = (w for w in self.header.warnings if not w.startswith(ANSWERS))
        warnings = (*said, f"{ANSWERS}{why}")
        return self.revised(tensors=kept, answers=None, warnings=warnings, **changes)

    def save(self, path: str | Path) -> Path:
        """Write the file in one step; whatever fails, an old file there stays whole."""
        path = Path(path).expanduser()
        data = artefact_file.to_bytes(self.tensors, self.header.canonical())
        try:
            artefact_file.write_atomically(path, data)
        except OSError as error:
            raise ArtefactError(f"could not save {path}: {error}; nothing was changed") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file, refusing one that is damaged, edited or of a later format."""
        path = Path(path).expanduser()
        tensors, header = artefact_file.read(path)
        try:
            return cls(Header.model_validate_json(header), tensors)
        except ValidationError as error:
            raise ArtefactFormatError(first_problem(error, str(path))) from error

    def push_to_hub(
        self,
        repo_id: str,
        *,
        filename: str = FILENAME,
        revision: str | None = None,
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Upload to a Hub repository, made if need be; the commit's address."""
        return artefact_file.upload(
            artefact_file.to_bytes(self.tensors, self.header.canonical()),
            repo_id,
            filename=filename,
            revision=revision,
            private=private,
            token=token,
            message=f"Add {self.artefact_id}",
        )

    @classmethod
    def from_pretrained(
        cls,
        repo_id_or_path: str | Path,
        *,
        filename: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """Load a file, the one artefact in a folder, or `filename` of a Hub repository."""
        path = artefact_file.find(
            repo_id_or_path,
            filename=filename,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        return cls.load(path)

    def calibration_for(self, modality: Modality) -> tuple[Modality, Calibration]:
        """The calibration used for `modality` and whose it is: a richer one falls back to text.

        Raises:
            CalibrationError: the artefact has none that fits.
        """
        for candidate in _FALLBACK[modality]:
            if candidate in self.header.calibration:
                return candidate, self.header.calibration[candidate]
        raise CalibrationError(
            f"{self.artefact_id} has no calibration for {modality} requests; run "
            "`guardrail calibrate`, or fix `thresholds` in the policy"
        )

    def thresholds(self, modality: Modality, policy: Policy) -> Thresholds:
        """The policy's fixed thresholds, or those its rates ask for, or the stored ones.

        Without scores of its own kind, an image request is held to the text calibration, and a
        video request to that of images.

        Raises:
            CalibrationError: too few benign scores for a rate.
            ConfigurationError: the rates give a flag threshold below the steering one.
        """
        if modality in policy.thresholds:
            return policy.thresholds[modality]
        used, calibration = self.calibration_for(modality)
        if used != modality:
            _tell_fallback(self.artefact_id, modality, used)
        stored = calibration.thresholds
        steer = _at_rate(calibration.scores, policy.steer_rate, stored.steer)
        flag = _at_rate(calibration.scores, policy.flag_rate, stored.flag)
        if steer > flag:
            raise ConfigurationError(
                f"for {modality} requests the steering threshold ({steer:.3f}) would exceed the "
                f"flag threshold ({flag:.3f}); set both steer_rate and flag_rate, flag_rate lower"
            )
        return Thresholds(steer=steer, flag=flag)

    def require_answers(self) -> Answers:
        """How answers are read.

        Raises:
            ConfigurationError: the artefact cannot judge answers.
        """
        answers = self.header.answers
        if answers is None:
            why = next((w for w in self.header.warnings if w.startswith(ANSWERS)), None)
            raise ConfigurationError(
                f"{self.artefact_id} cannot watch answers ({why or 'it was fitted without them'}); "
                "fit them (`guardrail fit --answers`, `guardrail.fit.answers.with_answers`), or "
                "leave `watch` out of the policy"
            )
        return answers

    def answer_threshold(self, policy: Policy) -> float:
        """The policy's fixed threshold of answers, or that of its rate, or the stored one.

        Raises:
            ConfigurationError: the artefact cannot judge answers.
            CalibrationError: too few benign answers for the rate.
        """
        answers = self.require_answers()
        if policy.answer_threshold is not None:
            return policy.answer_threshold
        return _at_rate(answers.scores, policy.answer_rate, answers.threshold)

    def summary(self) -> dict[str, Any]:
        """Identity, model, detection, steering, re-centring and calibrations, ready for JSON."""
        header = self.header
        layers, width = self.tensors["direction"].shape
        return {
            "artefact_id": self.artefact_id,
            "created": header.created,
            "parent": header.parent,
            "architecture": header.fingerprint.architecture,
            "revision": header.fingerprint.revision,
            "layers": layers,
            "d_model": width,
            "readout": header.readout.model_dump(mode="json"),
            "steering": header.steering and header.steering.model_dump(mode="json"),
            "windows": header.windows and header.windows.model_dump(mode="json"),
            "answers": header.answers
            and header.answers.model_dump(mode="json", exclude={"scores"}),
            "recentring": {kind: row.model_dump() for kind, row in header.recentring.items()},
            "calibration": dict(_calibrations(self)),
            "data": header.data,
            "packages": header.packages,
            "warnings": list(header.warnings),
        }


@lru_cache(maxsize=64)  # once, however many guards are made of the artefact
def _tell_fallback(artefact_id: str, modality: Modality, used: Modality) -> None:
    _log.info("%s: no %s calibration, using %s", artefact_id, modality, used)


def _at_rate(scores: Sequence[float], rate: float | None, stored: float) -> float:
    if rate is None:
        return stored
    try:
        return conformal_threshold(scores, rate)
    except ValueError as error:
        raise CalibrationError(f"{error}; calibrate on more inputs or raise the rate") from error


def check_tensors(header: Header, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as contiguous float32 on the CPU, all there, of the right shape and finite.

    Raises:
        ArtefactFormatError: naming the tensor or layer that does not fit.
    """
    import torch

    expected = _expected_shapes(header, tensors.get("direction"))
    if set(tensors) != set(expected):
        missing = ", ".join(sorted(set(expected) - set(tensors))) or "none"
        unknown = ", ".join(sorted(set(tensors) - set(expected))) or "none"
        raise ArtefactFormatError(f"tensors missing: {missing}; not known here: {unknown}")
    plain = {}
    for name, shape in expected.items():
        value = tensors[name].detach().to("cpu", torch.float32).contiguous()
        if tuple(value.shape) != shape:
            raise ArtefactFormatError(f"{name} has shape {tuple(value.shape)}, wanted {shape}")
        if not bool(torch.isfinite(value).all()):
            raise ArtefactFormatError(f"{name} holds values that are not finite")
        plain[name] = value
    _check_layers(header, plain)
    return plain


def _expected_shapes(header: Header, direction: Tensor | None) -> dict[str, tuple[int, ...]]:
    if direction is None or direction.dim() != 2 or direction.numel() == 0:
        raise ArtefactFormatError("there is no `direction` of shape (layers, d_model)")
    layers, width = direction.shape
    read = len(header.readout.layers)
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(_PER_LAYER, (layers, width))
    shapes |= {"readout_weight": (read, width), **dict.fromkeys(_PER_READOUT, (read,))}
    for name, windows in _windows(header).items():
        heads = (len(windows.layers), windows.heads, width)
        shapes |= {f"{name}_query": heads, f"{name}_value": heads, f"{name}_bias": heads[:1]}
    return shapes


def _windows(header: Header) -> dict[str, Windows]:
    """The readouts of windows, by how their tensors' names begin."""
    answers = None if header.answers is None else header.answers.windows
    found = {"window": header.windows, "answer": answers}
    return {name: windows for name, windows in found.items() if windows is not None}


def _check_layers(header: Header, tensors: Mapping[str, Tensor]) -> None:
    """Layer indices exist, gaps are positive, directions have length 1 (or 0: unusable)."""
    count = len(tensors["direction"])
    steered = [header.steering.layer] if header.steering else []
    windows = (layer for read in _windows(header).values() for layer in read.layers)
    named = [*header.readout.layers, *windows, *steered, *(row.layer for row in header.layers)]
    outside = sorted({layer for layer in named if not 0 <= layer < count})
    if outside:
        raise ArtefactFormatError(f"the header names layers {outside} of {count}")
    if not bool((tensors["readout_gap"] > 0).all()):
        raise ArtefactFormatError("readout_gap must be positive: scores are divided by it")
    lengths = tensors["direction"].double().norm(dim=1)
    unit, zero = (lengths - 1).abs() < 1e-3, lengths < 1e-6
    if not bool((unit | zero).all()):
        raise ArtefactFormatError("every row of `direction` must have length 1, or 0 if unusable")
    if steered and not bool(unit[steered[0]]):
        raise ArtefactFormatError(f"there is no direction at the steering layer {steered[0]}")


def sampling_record(policy: Policy) -> dict[str, JsonValue]:
    """What a calibration on videos is to remember of how they were sampled."""
    return {SAMPLING: policy.video.model_dump(mode="json")}


def sampling_notes(artefact: Artefact, policy: Policy) -> Iterator[str]:
    """What the policy's sampling of videos does to thresholds that were set under another one.

    Thresholds that the policy fixes itself are its own business.
    """
    if not artefact.reads_videos or Modality.VIDEO in policy.thresholds:
        return
    now = policy.video.model_dump(mode="json")
    then = _calibrated(artefact)
    if then is not None:
        changed = [f"{k} {v} ({then[k]} then)" for k, v in now.items() if then.get(k, v) != v]
        if changed:
            yield (
                "the thresholds of videos were set on ones that were sampled otherwise: "
                f"{', '.join(changed)}; their rates hold here once `guardrail calibrate` has set "
                "them on videos sampled like these"
            )
        return
    frames = artefact.header.data.get(WINDOW, _USUAL)
    if frames != policy.video.window:
        yield (
            f"videos are judged in windows of {policy.video.window} frames, and what a video adds "
            f"to the score was measured with {frames}; thresholds hold here once `guardrail "
            "calibrate` has set them on benign videos in such windows"
        )


def _calibrated(artefact: Artefact) -> dict[str, Any] | None:
    """How the videos were sampled that set the thresholds; None if none did, or nothing is told."""
    if Modality.VIDEO not in artefact.header.calibration:
        return None
    match artefact.header.extra.get("calibration"):
        case {Modality.VIDEO.value: {"sampling": dict(sampling)}}:
            return sampling
    return None


def _calibrations(artefact: Artefact) -> Iterator[tuple[str, dict[str, Any]]]:
    """The thresholds of each modality as stored, and whose calibration each comes from."""
    for modality in Modality:
        if modality is Modality.VIDEO and not artefact.reads_videos:
            continue
        with contextlib.suppress(CalibrationError):
            used, row = artefact.calibration_for(modality)
            kept = row.model_dump(mode="json", exclude={"scores", "intervals", "thresholds"})
            yield modality.value, {"from": used.value, **kept, **row.thresholds.model_dump()}
