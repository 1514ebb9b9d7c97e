"""What works with the packages of the core alone, and what names the extra that it wants."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

# A model on the disk with its artefact; `missing(job)` is the extra that a job asks for.
_BEGIN = """
import json, sys
from pathlib import Path
sys.modules.update(dict.fromkeys(sys.argv[2].split()))  # how Python marks what is not there
from PIL import Image
from guardrail import Artefact, Guard
from guardrail.errors import MissingExtraError
from guardrail.testing import tiny_artefact, tiny_model

def missing(job, *values, **options):
    try:
        job(*values, **options)
    except MissingExtraError as error:
        return error.extra

folder = Path(sys.argv[1])
model, processor = tiny_model()
model.save_pretrained(folder / "model")
processor.save_pretrained(folder / "model")
tiny_artefact(model, processor, tau_steer=1e6, tau_flag=1e6).save(folder / "artefact.safetensors")
artefact = Artefact.load(folder / "artefact.safetensors")
guard = Guard.from_pretrained(folder / "model", artefact, device="cpu")
picture = {"type": "image", "image": Image.new("RGB", (30, 30))}
asked = [{"role": "user", "content": [picture, {"type": "text", "text": "hello"}]}]
found = {
    "action": guard.check(asked).action,
    "answered": bool(guard.generate(asked, max_new_tokens=2).text),
    "counted": guard.monitor.snapshot().n,
}
"""
_JOBS = """
from guardrail.drift.run import check_drift
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.run import evaluate
from guardrail.fit.calibrate import calibrate
from guardrail.fit.run import fit
from guardrail.model.load import load_model
from guardrail.monitor import compare

item = EvalItem(id="a", label="harmful", messages=asked, text="hello")
work = folder / "work"
before = guard.monitor.snapshot()
found["missing"] = {
    "fit": missing(fit, guard.loaded, work_dir=work),
    "calibrate": missing(calibrate, guard, ["hello"] * 200),
    "evaluate": missing(evaluate, guard, [item], work_dir=work),
    "drift": missing(check_drift, artefact, guard.loaded, measure=True, work_dir=work),
    "compare": missing(compare, before, artefact, least=1),
    "spread": missing(load_model, folder / "model", device_map="auto"),
}
found["written"] = work.exists()
found["asked meanwhile"] = guard.monitor.snapshot().n - before.n
"""
_END = "guard.close(); print(json.dumps(found))"


def _found(folder: Path, *blocked: str) -> dict[str, Any]:
    """What a fresh interpreter finds that lacks some packages."""
    command = [sys.executable, "-c", _BEGIN + _JOBS + _END, str(folder), " ".join(blocked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_pictures_are_guarded_by_the_core_alone_and_what_wants_more_names_its_extra(tmp_path):
    found = _found(tmp_path, "accelerate", "scipy", "sklearn", "torchvision")
    assert (found["action"], found["answered"], found["counted"]) == ("pass", True, 2)
    fitting = dict.fromkeys(("fit", "calibrate", "evaluate", "drift", "compare"), "fit")
    assert found["missing"] == fitting | {"spread": "offload"}
    assert (found["written"], found["asked meanwhile"]) == (False, 0)
