"""How well an assembled model reads: `python examples/tiny_vlm/reading.py MODEL_DIR [--data DIR]`.

Every picture is drawn here, of texts on which no setting of the reader was chosen, or, with
`--data`, read from DIR: `vision/*.jsonl` with `image` and `statement`.  Printed for each kind of
picture: n, the similarity of characters (difflib, case ignored), the share of the text's words
that were read, and how many pictures read as nothing.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path

import torch
from PIL import Image
from render import FONTS, KINDS, contrasting, paragraph, plain_picture, render
from transformers import AutoModelForImageTextToText, AutoProcessor

HERE = Path(__file__).resolve().parent
LIST = " 1. 2. 3."
SHAPES = ((600, 300), (300, 600), (1200, 300), (300, 1200))
BLANK_SIZES = ((512, 512), (600, 300), (300, 600), (64, 64), (1, 1))
Case = tuple[str, Image.Image]


class Reading:
    """A model and its processor; a call turns a picture into text."""

    def __init__(self, folder: str) -> None:
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
        self._model = model.eval()
        self._processor = AutoProcessor.from_pretrained(folder)

    def __call__(self, image: Image.Image) -> str:
        """The text in the picture."""
        inputs = self._processor.image_processor([image], return_tensors="pt")
        text: str = self._model.read(inputs["pixel_values"])[0]
        return text


def similarity(text: str, read: str) -> float:
    """Share of characters in common, case ignored."""
    return SequenceMatcher(None, text.lower(), read.lower(), autojunk=False).ratio()


def words_read(text: str, read: str) -> float:
    """Share of the text's words that were read, in order, case ignored."""
    words = text.lower().split()
    matcher = SequenceMatcher(None, words, read.lower().split(), autojunk=False)
    return sum(block.size for block in matcher.get_matching_blocks()) / len(words)


def drawn(texts: list[str], count: int) -> Iterator[tuple[str, list[Case]]]:
    """Kinds of pictures of the texts, `count` of each and fewer of those with many lines."""
    rng = random.Random("reading")

    def some(n: int) -> list[str]:
        return [rng.choice(texts) for _ in range(n)]

    for style in ("plain", "figstep", "varied"):
        end = LIST if style == "figstep" else ""
        cases = [
            (t + end, render(t, seed=1000 + i, style=style)) for i, t in enumerate(some(count))
        ]
        yield style, cases
    for size in SHAPES:
        cases = [(t, render(t, seed=i, size=size)) for i, t in enumerate(some(count // 2))]
        yield f"{size[0]} x {size[1]}", cases
    for name, dark in (("small, coloured", False), ("light on dark", True)):
        cases = []
        for text in some(count // 2):
            ground, ink = ((15, 15, 25), (230, 230, 230)) if dark else contrasting(rng)
            font = rng.choice(FONTS)
            size = 28 if dark else rng.choice((14, 16, 18))
            cases.append(paragraph(text, font, size, (512, 512), ink=ink, ground=ground))
        yield name, cases
    for lines, size, step in ((16, 40, 1.0), (30, 24, 1.15)):
        cases = []
        for _ in range(count // 4):
            page = " ".join(some(60))
            font = rng.choice(FONTS)
            cases.append(paragraph(page, font, size, (900, 900), lines=lines, step=step))
        yield f"{lines} tight lines, 900 x 900", cases


def stored(folder: Path) -> Iterator[tuple[str, list[Case]]]:
    """The pictures of every list in the folder."""
    for path in sorted((folder / "vision").glob("*.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        pictures = [Image.open(path.parent / row["image"]).convert("RGB") for row in rows]
        yield (
            path.stem,
            [(row["statement"] + LIST, p) for row, p in zip(rows, pictures, strict=True)],
        )


def main() -> None:
    """Read the command line, measure and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    read = Reading(args.model)
    texts = (HERE / "reading_texts.txt").read_text().splitlines()
    kinds = [*drawn(texts, args.count), *(stored(args.data) if args.data else ())]
    sys.stdout.write("| pictures | n | characters | words | nothing read |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- |\n")
    for name, cases in kinds:
        pairs = [(text, read(image)) for text, image in cases]
        characters = sum(similarity(*pair) for pair in pairs) / len(pairs)
        words = sum(words_read(*pair) for pair in pairs) / len(pairs)
        nothing = sum(not found for _, found in pairs)
        row = f"| {name} | {len(pairs)} | {characters:.3f} | {words:.3f} | {nothing} |\n"
        sys.stdout.write(row)
        sys.stdout.flush()
    blank = [
        plain_picture(1000 + i, kind, size)
        for kind in KINDS
        for i, size in enumerate(BLANK_SIZES * (args.count // 10))
    ]
    nothing = sum(not read(image) for image in blank)
    sys.stdout.write(f"| without text | {len(blank)} | | | {nothing} |\n")


if __name__ == "__main__":
    main()
