"""Everything fitted for one checkpoint, in one file: directions, thresholds and their evidence."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import ValidationError

from guardrail.artefact import file as artefact_file
from guardrail.artefact import hub as artefact_hub
from guardrail.artefact.check import VIDEO_READOUT, check_tensors
from guardrail.artefact.header import (
    Calibration,
    Fingerprint,
    Header,
    LayerRow,
    Offset,
    Rates,
    Readout,
    Steering,
    first_problem,
    identity,
)
from guardrail.artefact.hub import FILENAME
from guardrail.artefact.summary import summary_of
from guardrail.errors import (
    ArtefactError,
    ArtefactFormatError,
    CalibrationError,
    ConfigurationError,
)
from guardrail.policy import Thresholds
from guardrail.stats import conformal_threshold
from guardrail.types import Modality

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.policy import Policy

__all__ = [
    "FILENAME",
    "Artefact",
    "Calibration",
    "Fingerprint",
    "Header",
    "LayerRow",
    "Offset",
    "Rates",
    "Readout",
    "Steering",
]

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
    `readout_gap`, `readout_offset_image`, `readout_offset_images` (k,); and, if the header has
    steering, `steer_offset_image` and `steer_offset_images` (). One that was fitted with videos
    also has `readout_offset_video` (k,) and, with steering, `steer_offset_video` ().

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
        """Whether it was fitted with videos: without their offset no video can be scored."""
        return VIDEO_READOUT in self.tensors

    def revised(self, *, tensors: dict[str, Tensor] | None = None, **changes: Any) -> Artefact:
        """A new artefact with other header fields or tensors, whose `parent` is this one."""
        fields = {name: getattr(self.header, name) for name in Header.model_fields}
        fields |= {"parent": self.artefact_id, **changes, "artefact_id": "", "created": ""}
        try:
            header = Header.model_validate(fields)
        except ValidationError as error:
            raise ArtefactFormatError(first_problem(error, "the revised artefact")) from error
        return Artefact(header, self.tensors if tensors is None else tensors)

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
        return artefact_hub.upload(
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
        path = artefact_hub.find(
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
        steer = _at_rate(calibration, policy.steer_rate, stored.steer)
        flag = _at_rate(calibration, policy.flag_rate, stored.flag)
        if steer > flag:
            raise ConfigurationError(
                f"for {modality} requests the steering threshold ({steer:.3f}) would exceed the "
                f"flag threshold ({flag:.3f}); set both steer_rate and flag_rate, flag_rate lower"
            )
        return Thresholds(steer=steer, flag=flag)

    def summary(self) -> dict[str, Any]:
        """What people want to know first, as plain values ready for JSON."""
        return summary_of(self)


@lru_cache(maxsize=64)  # once, however many guards are made of the artefact
def _tell_fallback(artefact_id: str, modality: Modality, used: Modality) -> None:
    _log.info("%s: no %s calibration, using %s", artefact_id, modality, used)


def _at_rate(calibration: Calibration, rate: float | None, stored: float) -> float:
    if rate is None:
        return stored
    try:
        return conformal_threshold(calibration.scores, rate)
    except ValueError as error:
        raise CalibrationError(f"{error}; calibrate on more inputs or raise the rate") from error
