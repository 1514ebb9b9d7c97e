"""An artefact file is whole and unedited, or it is refused with a reason."""

from __future__ import annotations

import json
import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.artefact.artefact import Artefact, sampling_notes, sampling_record
from guardrail.artefact.file import FILENAME, MAX_FILE, MAX_HEADER, write_atomically
from guardrail.artefact.header import (
    Calibration,
    Fingerprint,
    Header,
    LayerRow,
    Line,
    Readout,
    Recentring,
    Steering,
    Windows,
)
from guardrail.errors import (
    ArtefactError,
    ArtefactFormatError,
    CalibrationError,
    ConfigurationError,
)
from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds, VideoSampling
from guardrail.stats import Rate, conformal_threshold
from guardrail.testing import tiny_artefact
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).parents[1]
FINGERPRINT = Fingerprint(
    architecture="Toy",
    config_digest="c",
    weights_digest="w",
    tokenizer_digest="t",
    processor_digest="p",
    dtype="float32",
)


def calibration(n: int = 199, *, steer: float = 0.5, flag: float = 1.0) -> Calibration:
    scores = tuple(i / n for i in range(n))
    return Calibration(
        scores=scores, thresholds=Thresholds(steer=steer, flag=flag), source="toy", n=n
    )


def header(**changes: Any) -> Header:
    fields: dict[str, Any] = {
        "fingerprint": FINGERPRINT,
        "readout": Readout(estimator="lda", layers=(1, 2), figures={"auroc": 0.97}),
        "steering": Steering(
            layer=2, gain=2.0, a_max=3.0, region_max=2.5, induced_refusal=Rate(hits=30, n=40)
        ),
        "layers": (LayerRow(layer=0, usable=False), LayerRow(layer=1, usable=True, norm=3.5)),
        "calibration": {Modality.TEXT: calibration()},
        "refusal_prefixes": ("I'm sorry", "Désolé"),
    }
    return Header(**fields | changes)


def tensors(layers: int = 4, width: int = 8, read: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(layers, width, generator=generator)
    direction[1:] /= direction[1:].norm(dim=1, keepdim=True)
    direction[0] = 0  # an unusable layer
    return {
        "direction": direction,
        "mu_safe": torch.randn(layers, width, generator=generator),
        "mu_unsafe": torch.randn(layers, width, generator=generator),
        "readout_weight": torch.randn(read, width, generator=generator),
        "readout_zero": torch.randn(read, generator=generator),
        "readout_gap": torch.ones(read),
    }


@pytest.fixture
def artefact() -> Artefact:
    return Artefact(header(), tensors())


@pytest.fixture
def path(artefact: Artefact, tmp_path: Path) -> Path:
    return artefact.save(tmp_path / "toy.guard.safetensors")


def test_saving_and_loading_gives_the_same_artefact(artefact: Artefact, path: Path) -> None:
    again = Artefact.load(path)
    assert again.header == artefact.header
    assert again.header.steering.induced_refusal == Rate(hits=30, n=40)  # type: ignore[union-attr]
    assert set(again.tensors) == set(artefact.tensors)
    assert all(torch.equal(again.tensors[n], t) for n, t in artefact.tensors.items())


def test_the_id_depends_on_the_content_alone(artefact: Artefact) -> None:
    assert artefact.artefact_id.startswith("guard-")
    assert len(artefact.artefact_id) == 22
    later = Artefact(header(created="2031-01-01T00:00:00+00:00"), tensors())
    assert later.artefact_id == artefact.artefact_id
    assert artefact.revised(warnings=("x",)).artefact_id != artefact.artefact_id
    moved = tensors()
    moved["mu_safe"][0, 0] += 1e-3
    assert Artefact(header(), moved).artefact_id != artefact.artefact_id


def test_a_revision_names_its_parent_and_leaves_the_original(artefact: Artefact) -> None:
    child = artefact.revised(calibration={Modality.TEXT: calibration(99)})
    assert child.header.parent == artefact.artefact_id
    assert child.header.calibration[Modality.TEXT].n == 99
    assert artefact.header.calibration[Modality.TEXT].n == 199


def test_an_edit_may_lie_before_the_readout(artefact: Artefact, tmp_path: Path) -> None:
    moved = artefact.revised(readout=Readout(estimator="lda", layers=(1, 3)))
    again = Artefact.load(moved.save(tmp_path / "early.guard.safetensors"))
    assert again.header.steering is not None
    assert again.header.steering.layer == 2 < again.header.readout.layers[-1] == 3


def test_a_header_with_a_foreign_id_is_refused(artefact: Artefact) -> None:
    with pytest.raises(ArtefactFormatError, match="use `revised`"):
        Artefact(artefact.header.model_copy(update={"warnings": ("new",)}), artefact.tensors)


def test_half_precision_tensors_are_stored_as_float32() -> None:
    given = tensors() | {"mu_safe": tensors()["mu_safe"].bfloat16()}
    assert Artefact(header(), given).tensors["mu_safe"].dtype == torch.float32


def with_video(**changes: Any) -> Artefact:
    """The toy artefact, fitted with videos."""
    row = Recentring(
        score=Line(intercept=0.3, slope=0.8),
        steering=Line(intercept=0.1, slope=0.9),
        n=40,
        safe=0.02,
        unsafe=-0.03,
        slope=0.97,
        separation=0.75,
    )
    return Artefact(header(recentring={"video": row}, **changes), tensors())


def test_a_content_has_the_same_id_in_every_release_that_reads_its_format() -> None:
    plain = {name: torch.ones_like(tensor) for name, tensor in tensors().items()}
    plain["direction"] = torch.eye(8)[:4]  # no random numbers, which another machine may draw anew
    assert Artefact(header(), plain).artefact_id == "guard-518d47193a09cf29"


def test_an_artefact_with_videos_says_so_and_keeps_their_line(tmp_path: Path) -> None:
    assert not Artefact(header(), tensors()).reads_videos
    again = Artefact.load(with_video().save(tmp_path / "video.guard.safetensors"))
    assert again.reads_videos
    assert again.header.recentring == with_video().header.recentring
    assert again.header.recentring["video"].score == Line(intercept=0.3, slope=0.8)


WINDOWS = Windows(layers=(0, 3), heads=2, width=16, first=4, zero=-0.5, gap=3.0)


def window_tensors(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    sizes = {"query": (2, 2, 8), "value": (2, 2, 8), "bias": (2,)} | shapes
    generator = torch.Generator().manual_seed(1)
    return {f"window_{n}": torch.randn(size, generator=generator) for n, size in sizes.items()}


def test_windows_are_saved_and_loaded(tmp_path: Path) -> None:
    made = Artefact(header(windows=WINDOWS), tensors() | window_tensors())
    again = Artefact.load(made.save(tmp_path / "windows.guard.safetensors"))
    assert again.header.windows == WINDOWS
    for name, tensor in window_tensors().items():
        assert torch.equal(again.tensors[name], tensor)
    assert again.summary()["windows"]["width"] == 16
    assert Artefact(header(), tensors()).summary()["windows"] is None


@pytest.mark.parametrize(
    ("changed", "given", "words"),
    [
        ({}, {}, "missing: window_bias, window_query, window_value"),
        ({"windows": None}, window_tensors(), "not known here: window_bias, window_query"),
        ({}, window_tensors(query=(2, 3, 8)), r"window_query has shape \(2, 3, 8\), wanted \(2, 2"),
        ({}, window_tensors(value=(1, 2, 8)), "window_value has shape"),
        ({}, window_tensors(bias=(2, 2)), r"window_bias has shape \(2, 2\), wanted \(2,\)"),
        (
            {"windows": WINDOWS.model_copy(update={"layers": (0, 4)})},
            window_tensors(),
            r"\[4\] of 4",
        ),
    ],
)
def test_windows_that_do_not_fit_the_header_are_refused(
    changed: dict[str, Any], given: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(ArtefactFormatError, match=words):
        Artefact(header(**({"windows": WINDOWS} | changed)), tensors() | given)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"mu_safe": None}, "missing: mu_safe"),
        ({"surprise": torch.zeros(1)}, "not known here: surprise"),
        ({"mu_safe": torch.zeros(4, 7)}, r"mu_safe has shape \(4, 7\), wanted \(4, 8\)"),
        ({"readout_gap": torch.ones(3)}, r"readout_gap has shape \(3,\), wanted \(2,\)"),
        ({"readout_gap": torch.tensor([1.0, 0.0])}, "readout_gap must be positive"),
        ({"mu_unsafe": torch.full((4, 8), torch.nan)}, "mu_unsafe holds values that are not fin"),
        ({"direction": torch.ones(4, 8)}, "must have length 1"),
        ({"direction": torch.zeros(4, 8)}, "no direction at the steering layer 2"),
        ({"direction": torch.zeros(8)}, "no `direction` of shape"),
    ],
)
def test_tensors_that_do_not_fit_are_named(change: dict[str, Any], words: str) -> None:
    given = {n: t for n, t in (tensors() | change).items() if t is not None}
    with pytest.raises(ArtefactFormatError, match=words):
        Artefact(header(), given)


@pytest.mark.parametrize(
    "change",
    [
        {"readout": Readout(estimator="lda", layers=(1, 4)), "steering": None},
        {"readout": Readout(estimator="lda", layers=(-1, 2))},
        {"steering": Steering(layer=4, gain=1, a_max=1, region_max=1)},
        {"layers": (LayerRow(layer=9, usable=True),)},
    ],
)
def test_layers_out_of_range_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArtefactFormatError, match=r"layers \[-?\d\] of 4"):
        Artefact(header(**change), tensors())


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Readout(estimator="x", layers=(2, 1)), "ascend"),
        (lambda: Readout(estimator="x", layers=()), "at least 1"),
        (lambda: LayerRow(layer=1, usable=True, norm=float("nan")), "finite"),
        (lambda: header(extra={"x": float("nan")}), "finite"),
        (lambda: calibration(steer=0.1, flag=float("inf")), "finite"),
        (lambda: header(surprise=1), "surprise"),
        (lambda: Line(intercept=0.0, slope=0.0), "greater than 0"),
        (lambda: Windows(layers=(1,), heads=1, width=4, first=1, zero=0, gap=0), "greater than 0"),
        (lambda: Windows(layers=(1,), heads=1, width=0, first=1, zero=0, gap=1), "greater than 0"),
        (
            lambda: Calibration(
                scores=(2.0, 1.0), thresholds=Thresholds(steer=0, flag=1), source="x", n=2
            ),
            "sorted",
        ),
        (
            lambda: Calibration(
                scores=(1.0,), thresholds=Thresholds(steer=0, flag=1), source="x", n=2
            ),
            "n is 2",
        ),
    ],
)
def test_a_header_that_cannot_hold_is_refused(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_every_flipped_byte_is_refused(path: Path) -> None:
    whole = path.read_bytes()
    for place in range(0, len(whole), 41):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ArtefactFormatError):
            Artefact.load(path)


@pytest.mark.parametrize("keep", [0, 5, 8, 100, -1])
def test_a_truncated_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ArtefactFormatError, match="cannot be used"):
        Artefact.load(path)


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite the file's JSON as someone without this package could."""
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    outer = json.loads(whole[8 : 8 + size])
    change(outer["__metadata__"])
    text = json.dumps(outer).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + size :])


def test_an_edited_threshold_is_refused(path: Path) -> None:
    def raise_thresholds(metadata: dict[str, Any]) -> None:
        inner = json.loads(metadata["header"])
        inner["calibration"]["text"]["thresholds"]["flag"] = 99.0
        metadata["header"] = json.dumps(inner)

    edited(path, raise_thresholds)
    with pytest.raises(ArtefactFormatError, match="edited or damaged"):
        Artefact.load(path)


def test_an_earlier_format_is_refused_and_says_to_fit_again(path: Path) -> None:
    """Its scores are of the last position alone: no threshold would hold."""
    edited(path, lambda m: m.update(guardrail_format="1", header="{}"))
    with pytest.raises(ArtefactFormatError, match=r"format 1, of an earlier.*run `guardrail fit`"):
        Artefact.load(path)


def test_a_later_format_names_the_release_to_install(path: Path) -> None:
    edited(path, lambda m: m.update(guardrail_format="3", written_by="3.1.4", novel="field"))
    with pytest.raises(ArtefactFormatError, match=r"pip install 'guardrail-vlm>=3\.1\.4'"):
        Artefact.load(path)


@pytest.mark.parametrize("version", ["0", "-1", "one", "", "²"])
def test_a_format_that_never_was_is_refused(path: Path, version: str) -> None:
    edited(path, lambda m: m.update(guardrail_format=version))
    with pytest.raises(ArtefactFormatError, match="unknown format"):
        Artefact.load(path)


def test_any_other_safetensors_file_is_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", {"format": "pt"})
    with pytest.raises(ArtefactFormatError, match="no artefact of this package"):
        Artefact.load(tmp_path / "x.safetensors")


def test_sizes_are_bounded_before_anything_is_parsed(tmp_path: Path) -> None:
    large = tmp_path / "large.guard.safetensors"
    with large.open("wb") as file:
        file.truncate(MAX_FILE + 1)
    with pytest.raises(ArtefactFormatError, match=f"larger than {MAX_FILE}"):
        Artefact.load(large)
    size = MAX_HEADER + 1
    large.write_bytes(size.to_bytes(8, "little") + b" " * (size + 8))
    with pytest.raises(ArtefactFormatError, match=f"more than {MAX_HEADER}"):
        Artefact.load(large)


def test_deeply_nested_json_is_refused(tmp_path: Path) -> None:
    text = b"[" * 200_000
    deep = tmp_path / "deep.guard.safetensors"
    deep.write_bytes(len(text).to_bytes(8, "little") + text)
    with pytest.raises(ArtefactFormatError, match="no JSON"):
        Artefact.load(deep)


def test_a_header_too_large_to_be_read_back_is_not_written(tmp_path: Path) -> None:
    big = Artefact(header(extra={"x": "y" * MAX_HEADER}), tensors())
    with pytest.raises(ArtefactFormatError, match="Keep fewer"):
        big.save(tmp_path / "big.guard.safetensors")
    assert not list(tmp_path.iterdir())


def test_tensors_too_large_to_be_read_back_are_not_written(
    artefact: Artefact, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("guardrail.artefact.file.MAX_FILE", path.stat().st_size)
    artefact.save(path)  # the largest that can be read back
    longer = {
        name: torch.cat([artefact.tensors[name]] * 2)
        for name in ("direction", "mu_safe", "mu_unsafe")
    }
    with pytest.raises(ArtefactFormatError, match="Keep fewer"):
        artefact.revised(tensors=artefact.tensors | longer).save(path)
    assert Artefact.load(path).artefact_id == artefact.artefact_id
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="make one with `guardrail fit`"):
        Artefact.load(tmp_path / "none.guard.safetensors")
    with pytest.raises(ArtefactError, match="no artefact file"):
        Artefact.load(tmp_path)


def test_a_7b_models_artefact_takes_less_than_2_mb(tmp_path: Path) -> None:
    rows = tuple(
        LayerRow(layer=i, usable=True, norm=1.23456789, consistency=0.1, separability=0.9)
        for i in range(32)
    )
    wide = Artefact(
        header(
            readout=Readout(estimator="lda", layers=(10, 15, 20)),
            steering=Steering(layer=20, gain=1, a_max=1, region_max=1),
            layers=rows,
            calibration={m: calibration(2000) for m in (Modality.TEXT, Modality.IMAGE)},
        ),
        tensors(32, 4096, 3),
    )
    assert wide.save(tmp_path / "x.guard.safetensors").stat().st_size < 2_000_000


def test_a_save_replaces_the_old_file_and_leaves_nothing_else(
    artefact: Artefact, path: Path
) -> None:
    child = artefact.revised(warnings=("new",))
    child.save(path)
    assert Artefact.load(path).artefact_id == child.artefact_id
    assert list(path.parent.iterdir()) == [path]


def test_a_save_makes_missing_folders_and_follows_links(artefact: Artefact, tmp_path: Path) -> None:
    real = artefact.save(tmp_path / "a" / "b" / "real.guard.safetensors")
    link = tmp_path / "link.guard.safetensors"
    link.symlink_to(real)
    child = artefact.revised(warnings=("new",))
    child.save(link)
    assert link.is_symlink()
    assert Artefact.load(real).artefact_id == child.artefact_id


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_error_leaves_the_old_file_whole(
    artefact: Artefact, path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(ArtefactError, match=r"No space left.*nothing was changed"):
        artefact.revised(warnings=("new",)).save(path)
    assert Artefact.load(path).artefact_id == artefact.artefact_id
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("syncs", [True, False])
def test_a_save_leaves_no_descriptor_open_where_folders_can_be_synced_and_where_not(
    artefact: Artefact, path: Path, monkeypatch: pytest.MonkeyPatch, syncs: bool
) -> None:
    opened: list[int] = []
    real = os.open

    def counted(*args: Any) -> int:
        opened.append(real(*args))
        return opened[-1]

    def sync(descriptor: int) -> None:
        if not syncs and stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "open", counted)
    monkeypatch.setattr(os, "fsync", sync)
    artefact.save(path)
    assert len(opened) == 2  # the file and its folder
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)


KILLED = """
import os, sys, time
from guardrail.artefact import Artefact

def stuck(*_):
    print("written", flush=True)
    time.sleep(60)

os.replace = stuck
artefact = Artefact.load(sys.argv[1])
artefact.revised(warnings=("new",)).save(sys.argv[1])
"""


def test_a_kill_between_write_and_rename_leaves_the_old_file_whole(
    artefact: Artefact, path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"written\n"
        process.send_signal(signal.SIGKILL)
    assert len(list(path.parent.iterdir())) == 2  # the unfinished file is left, under its own name
    assert Artefact.load(path).artefact_id == artefact.artefact_id
    assert Artefact.from_pretrained(path.parent).artefact_id == artefact.artefact_id


def test_a_folder_must_hold_one_artefact_or_be_told_which(artefact: Artefact, path: Path) -> None:
    assert Artefact.from_pretrained(str(path)).artefact_id == artefact.artefact_id
    assert Artefact.from_pretrained(path.parent).artefact_id == artefact.artefact_id
    artefact.save(path.parent / "second.guard.safetensors")
    with pytest.raises(ArtefactError, match=r"found second\.guard\.safetensors, toy\.guard"):
        Artefact.from_pretrained(path.parent)
    chosen = Artefact.from_pretrained(path.parent, filename=path.name)
    assert chosen.artefact_id == artefact.artefact_id


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A Hub of one folder; what it was asked is kept."""
    asked: dict[str, Any] = {}
    store = tmp_path / "hub"
    store.mkdir()

    class FakeApi:
        def __init__(self, token: str | None = None) -> None:
            asked["token"] = token

        def create_repo(self, repo_id: str, **options: Any) -> None:
            asked["created"] = (repo_id, options)

        def upload_file(self, *, path_or_fileobj: bytes, path_in_repo: str, **options: Any) -> Any:
            asked["uploaded"] = options
            (store / path_in_repo).write_bytes(path_or_fileobj)
            return SimpleNamespace(commit_url="https://hub.invalid/commit/1")

    def download(repo_id: str, filename: str, **options: Any) -> str:
        from huggingface_hub.errors import EntryNotFoundError

        asked["downloaded"] = (repo_id, filename, options)
        if not (store / filename).exists():
            raise EntryNotFoundError(f"no {filename}")
        return str(store / filename)

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=lambda _: None))
    return asked


def test_what_is_pushed_to_the_hub_comes_back(artefact: Artefact, hub: dict[str, Any]) -> None:
    url = artefact.push_to_hub("owner/guards", private=True, revision="dev", token="t")
    assert url == "https://hub.invalid/commit/1"
    assert hub["created"] == ("owner/guards", {"private": True, "exist_ok": True})
    assert hub["uploaded"]["revision"] == "dev"
    assert artefact.artefact_id in hub["uploaded"]["commit_message"]
    again = Artefact.from_pretrained("owner/guards", revision="dev", token="t")
    assert again.header == artefact.header
    repo, name, options = hub["downloaded"]
    assert (repo, name) == ("owner/guards", FILENAME)
    assert (options["revision"], options["token"]) == ("dev", "t")


def test_a_repository_without_artefact_is_explained(hub: dict[str, Any]) -> None:
    with pytest.raises(ArtefactError, match="no file owner/guards, and other"):
        Artefact.from_pretrained("owner/guards", filename="other.guard.safetensors")


def test_a_plain_from_pretrained_asks_the_hub_and_not_about_what_is_here(
    artefact: Artefact, path: Path, hub_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    artefact.save("owner/kept")  # a file that is called as a repository could be
    for name in (path, str(path), path.parent, str(path.parent), "owner/kept"):
        assert Artefact.from_pretrained(name).artefact_id == artefact.artefact_id
    with pytest.raises(ArtefactError, match="there is no artefact file"):
        Artefact.from_pretrained(str(path.parent / "other.safetensors"))
    assert hub_server.asked == []
    hub_server.repositories["owner/guards"] = path.parent
    made = Artefact.from_pretrained("owner/guards", filename=path.name)
    assert made.artefact_id == artefact.artefact_id
    assert hub_server.asked


def test_a_hub_that_does_not_answer_is_explained(hub_server: Any) -> None:
    hub_server.failing = 1000
    with pytest.raises(ArtefactError, match=r"no file owner/guards.*check the connection"):
        Artefact.from_pretrained("owner/guards")
    assert len(hub_server.asked) == 4


def test_a_refused_upload_is_explained(
    artefact: Artefact,
    hub: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    http_error: Callable[..., Exception],
) -> None:
    import huggingface_hub

    def refuse(*_: Any, **__: Any) -> None:
        raise http_error(403)

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(ArtefactError, match=r"could not upload to owner/guards.*hf auth login"):
        artefact.push_to_hub("owner/guards")


def test_thresholds_fixed_in_the_policy_come_first(artefact: Artefact) -> None:
    fixed = Thresholds(steer=7, flag=8)
    policy = Policy(thresholds={Modality.TEXT: fixed}, steer_rate=0.1, flag_rate=0.05)
    assert artefact.thresholds(Modality.TEXT, policy) == fixed


def test_rates_pick_conformal_quantiles_of_the_benign_scores(artefact: Artefact) -> None:
    policy = Policy(steer_rate=0.1, flag_rate=0.02)
    scores = [i / 199 for i in range(199)]
    found = artefact.thresholds(Modality.TEXT, policy)
    assert found.steer == conformal_threshold(scores, 0.1) == scores[179]  # the 180th of 199
    assert found.flag == scores[195]


def test_without_rates_the_stored_thresholds_hold(artefact: Artefact) -> None:
    assert artefact.thresholds(Modality.TEXT, Policy()) == Thresholds(steer=0.5, flag=1.0)


def test_a_rate_too_small_for_the_scores_is_refused(artefact: Artefact) -> None:
    with pytest.raises(CalibrationError, match=r"cannot support.*calibrate on more inputs"):
        artefact.thresholds(Modality.TEXT, Policy(flag_rate=0.001))


def test_rates_that_cross_are_refused(artefact: Artefact) -> None:
    with pytest.raises(ConfigurationError, match="set both steer_rate and flag_rate"):
        artefact.thresholds(Modality.TEXT, Policy(steer_rate=0.01, flag_rate=0.5))


def test_images_use_their_own_calibration_or_the_text_one(artefact: Artefact) -> None:
    policy = Policy()
    assert artefact.calibration_for(Modality.IMAGE)[0] == Modality.TEXT
    assert artefact.thresholds(Modality.IMAGE, policy).flag == 1.0
    both = {Modality.TEXT: calibration(), Modality.IMAGE: calibration(steer=2, flag=3)}
    assert artefact.revised(calibration=both).thresholds(Modality.IMAGE, policy).flag == 3
    only_images = artefact.revised(calibration={Modality.IMAGE: calibration()})
    with pytest.raises(CalibrationError, match="no calibration for text requests"):
        only_images.thresholds(Modality.TEXT, policy)


def test_a_fallback_is_told_once_for_all_guards_of_an_artefact(
    artefact: Artefact, caplog: pytest.LogCaptureFixture
) -> None:
    own = artefact.revised(calibration={Modality.TEXT: calibration(steer=0.25)})
    with caplog.at_level("INFO", "guardrail"):
        for _ in range(3):
            own.thresholds(Modality.IMAGE, Policy())
    told = f"{own.artefact_id}: no image calibration, using text"
    assert [record.getMessage() for record in caplog.records] == [told]


def test_the_summary_is_plain_json(artefact: Artefact) -> None:
    summary = json.loads(json.dumps(artefact.summary()))
    assert summary["artefact_id"] == artefact.artefact_id
    assert (summary["layers"], summary["d_model"]) == (4, 8)
    assert summary["steering"]["induced_refusal"] == {"hits": 30, "n": 40}
    assert summary["calibration"]["text"]["flag"] == 1.0
    assert summary["calibration"]["image"] == summary["calibration"]["text"] | {"from": "text"}


def test_the_summary_of_an_artefact_without_calibration_names_no_thresholds() -> None:
    """As one is whose thresholds no prompts could renew: people may still look at it."""
    summary = Artefact(header(calibration={}), tensors()).summary()
    assert summary["calibration"] == {}
    assert summary["layers"] == 4


def test_the_summary_tells_of_videos_where_they_are_read(artefact: Artefact) -> None:
    assert "video" not in artefact.summary()["calibration"]
    assert list(with_video().summary()["recentring"]) == ["video"]
    assert with_video().summary()["recentring"]["video"]["score"]["slope"] == 0.8
    assert with_video().summary()["calibration"]["video"]["from"] == "text"
    own = {modality: calibration(steer=i, flag=i) for i, modality in enumerate(Modality)}
    found = with_video(calibration=own).summary()["calibration"]
    assert {name: row["flag"] for name, row in found.items()} == {"text": 0, "image": 1, "video": 2}


def test_videos_use_their_own_calibration_or_that_of_images_or_texts() -> None:
    policy, made = Policy(), {Modality.TEXT: calibration()}
    assert with_video(calibration=made).calibration_for(Modality.VIDEO)[0] == Modality.TEXT
    made[Modality.IMAGE] = calibration(steer=2, flag=3)
    assert with_video(calibration=made).thresholds(Modality.VIDEO, policy).flag == 3
    made[Modality.VIDEO] = calibration(steer=4, flag=5)
    assert with_video(calibration=made).thresholds(Modality.VIDEO, policy).flag == 5


def test_importing_the_artefact_module_loads_no_torch() -> None:
    code = "import sys, guardrail.artefact.artefact; sys.exit('torch' in sys.modules)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=env, check=False).returncode == 0


USUAL = VideoSampling().window


@pytest.fixture(scope="module")
def fitted(llava: Any) -> Artefact:
    return tiny_artefact(llava.model, llava.processor)


def policy(**sampling: Any) -> Policy:
    return Policy(video=VideoSampling(**sampling))


def calibrated(fitted: Artefact, under: Policy) -> Artefact:
    rows = fitted.header.calibration
    return fitted.revised(
        calibration={**rows, Modality.VIDEO: rows[Modality.TEXT]},
        extra={"calibration": {"video": {"seen": 9, **sampling_record(under)}}},
    )


def test_the_sampling_of_the_fit_is_no_cause_for_a_note(fitted: Artefact) -> None:
    assert list(sampling_notes(fitted, Policy())) == []
    assert list(sampling_notes(fitted, policy(fps=1))) == []  # re-centring knows windows alone


def test_another_window_than_that_of_re_centring_is_told(fitted: Artefact) -> None:
    (note,) = sampling_notes(fitted, policy(window=3))
    assert "windows of 3 frames" in note
    assert f"measured with {USUAL}" in note
    told = fitted.revised(data={"video_window": 3})
    assert list(sampling_notes(told, policy(window=3))) == []
    (note,) = sampling_notes(told, Policy())
    assert "measured with 3" in note


def test_a_calibration_holds_for_its_own_sampling_alone(fitted: Artefact) -> None:
    made = calibrated(fitted, policy(window=3, fps=1))
    assert list(sampling_notes(made, policy(window=3, fps=1))) == []
    (note,) = sampling_notes(made, policy(window=3))
    assert "fps 2.0 (1.0 then)" in note
    assert "window" not in note


def test_who_fixes_thresholds_or_reads_no_videos_is_told_nothing(
    fitted: Artefact, llava: Any
) -> None:
    fixed = {Modality.VIDEO: Thresholds(steer=1.0, flag=2.0)}
    assert list(sampling_notes(fitted, Policy(video={"window": 3}, thresholds=fixed))) == []
    without = tiny_artefact(llava.model, llava.processor, video=False)
    assert list(sampling_notes(without, policy(window=3))) == []


def test_a_guard_tells_it_once_and_only_who_asks_about_videos(
    fitted: Artefact, llava: Any, caplog: pytest.LogCaptureFixture
) -> None:
    frames = [Image.new("RGB", (40, 40), "red")] * 2
    video = [{"role": "user", "content": [{"type": "video", "video": frames}]}]
    with (
        caplog.at_level(logging.WARNING, "guardrail"),
        Guard((llava.model, llava.processor), fitted, policy=policy(window=3)) as guard,
    ):
        guard.check("text")
        assert not caplog.messages
        guard.check_batch([video, video])
    assert [m for m in caplog.messages if "windows of 3 frames" in m] == caplog.messages
    assert len(caplog.messages) == 1


def test_a_file_that_is_there_stays_where_it_is_not_to_be_replaced(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        write_atomically(tmp_path / "file", data, replace=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"first"
    write_atomically(tmp_path / "file", b"third")
    assert (tmp_path / "file").read_bytes() == b"third"
