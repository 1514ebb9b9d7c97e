"""How well an assembled model reads and names: `python examples/tiny_vlm/seeing.py MODEL_DIR`.

    pip install scikit-image    # 15 of its sample photographs, beside two of scikit-learn's

Reading: pictures drawn here of texts on which no setting was chosen, on plain grounds and over
photographs, or, with `--data DIR`, those of the lists `DIR/vision/*.jsonl` with `image` and
`statement`. Printed are n, the similarity of characters (difflib, case ignored), the share of the
text's words that were read, and how many pictures read as nothing.

Naming: which of the 17 names the language model finds likeliest for each photograph after "The
picture shows a", with what it finds likely for any of them taken away; and for a check, how often
it is the name of another photograph, the next in the list.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from render import FONTS, KINDS, contrasting, on_photograph, paragraph, plain_picture, render
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from guardrail.model.decoder import cache_argument

HERE = Path(__file__).resolve().parent
LIST = " 1. 2. 3."
SHAPES = ((600, 300), (300, 600), (1200, 300), (300, 1200))
BLANK_SIZES = ((512, 512), (600, 300), (300, 600), (64, 64), (1, 1))
PHOTOGRAPHS = {
    "skimage/data": {
        "astronaut.png": "astronaut",
        "camera.png": "camera",
        "chelsea.png": "cat",
        "clock_motion.png": "clock",
        "coffee.png": "coffee",
        "coins.png": "coins",
        "brick.png": "brick wall",
        "grass.png": "grass",
        "gravel.png": "stones",
        "horse.png": "horse",
        "moon.png": "moon",
        "motorcycle_left.png": "motorcycle",
        "rocket.jpg": "rocket",
        "page.png": "page of text",
        "hubble_deep_field.jpg": "stars",
    },
    "sklearn/datasets/images": {"china.jpg": "temple", "flower.jpg": "flower"},
}
ASK, BEGIN = "What does the picture show?", "The picture shows a"
Case = tuple[str, Image.Image]


class Model:
    """A model and its processor."""

    def __init__(self, folder: str) -> None:
        model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
        self._model = model.eval()
        self._processor = AutoProcessor.from_pretrained(folder)
        self._tokenizer = self._processor.tokenizer

    def read(self, image: Image.Image) -> str:
        """The text in the picture."""
        inputs = self._processor.image_processor([image], return_tensors="pt")
        text: str = self._model.read(inputs["pixel_values"])[0]
        return text

    @torch.inference_mode()
    def answer(self, image: Image.Image, question: str, tokens: int = 16) -> str:
        """What the model says, greedily."""
        inputs = self._processor(text=[self._prompt(question)], images=[image], return_tensors="pt")
        out = self._model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
        new = out[0, inputs["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(new, skip_special_tokens=True))

    @torch.inference_mode()
    def likelihoods(self, image: Image.Image, names: Sequence[str]) -> Tensor:
        """Log-probability of each name as what the picture shows: (names,)."""
        prompt = self._prompt(ASK) + BEGIN
        inputs = self._processor(text=[prompt], images=[image], return_tensors="pt")
        ids = [self._tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in names]
        width = max(map(len, ids))
        rows = torch.tensor([[*row, *[0] * (width - len(row))] for row in ids])
        argument = cache_argument(self._model)
        start = self._model(**inputs, use_cache=True)
        cache = getattr(start, argument)
        cache.batch_repeat_interleave(len(names))
        mask = inputs["attention_mask"].new_ones(len(names), start.logits.shape[1] + width)
        after = self._model(input_ids=rows, attention_mask=mask, **{argument: cache}).logits
        first = start.logits[:, -1:].expand(len(names), -1, -1)
        logits = torch.cat([first, after[:, :-1]], dim=1).log_softmax(-1)
        each = logits.gather(2, rows[..., None])[..., 0]
        return torch.stack(
            [row[: len(row_ids)].sum() for row, row_ids in zip(each, ids, strict=True)]
        )

    def _prompt(self, question: str) -> str:
        parts = [{"type": "image"}, {"type": "text", "text": question}]
        chat = [{"role": "user", "content": parts}]
        return str(self._processor.apply_chat_template(chat, add_generation_prompt=True))


def photographs() -> list[Case]:
    """Names and photographs, of the packages that are installed."""
    found = []
    for folder, names in PHOTOGRAPHS.items():
        package, *inside = folder.split("/")
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            sys.stderr.write(f"{package} is not installed; its photographs are left out\n")
            continue
        at = Path(spec.origin).parent.joinpath(*inside)
        found += [(name, Image.open(at / file).convert("RGB")) for file, name in names.items()]
    return found


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
    rng = random.Random("seeing")

    def some(n: int) -> list[str]:
        return [rng.choice(texts) for _ in range(n)]

    for style in ("plain", "figstep", "varied"):
        end = LIST if style == "figstep" else ""
        cases = [
            (t + end, render(t, seed=1000 + i, style=style)) for i, t in enumerate(some(count))
        ]
        yield style, cases
    grounds = [image for _, image in photographs()]
    if grounds:
        cases = [
            (t, on_photograph(t, grounds[i % len(grounds)], seed=i))
            for i, t in enumerate(some(count))
        ]
        yield "over photographs", cases
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
    turned = [(t, render(t, seed=i, size=(600, 300))) for i, t in enumerate(some(count // 2))]
    yield "turned by 8 degrees", [(t, image.rotate(8, fillcolor="white")) for t, image in turned]
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


def show_reading(model: Model, kinds: Iterator[tuple[str, list[Case]]]) -> None:
    """A row for each kind of picture with text."""
    sys.stdout.write("| pictures | n | characters | words | nothing read |\n")
    sys.stdout.write("| --- | --- | --- | --- | --- |\n")
    for name, cases in kinds:
        pairs = [(text, model.read(image)) for text, image in cases]
        characters = sum(similarity(*pair) for pair in pairs) / len(pairs)
        words = sum(words_read(*pair) for pair in pairs) / len(pairs)
        nothing = sum(not found for _, found in pairs)
        row = f"| {name} | {len(pairs)} | {characters:.3f} | {words:.3f} | {nothing} |\n"
        sys.stdout.write(row)
        sys.stdout.flush()


def show_textless(model: Model, count: int) -> None:
    """What is read, and said, where there is nothing to read."""
    sys.stdout.write("\n| pictures without text | n | nothing read | called a person |\n")
    sys.stdout.write("| --- | --- | --- | --- |\n")
    for kind in KINDS:
        images = [plain_picture(1000 + i, kind, BLANK_SIZES[i % 5]) for i in range(count // 2)]
        nothing = sum(not model.read(image) for image in images)
        said = [model.answer(image, "What is in this picture?") for image in images]
        person = sum("person" in answer.lower() for answer in said)
        sys.stdout.write(f"| {kind} | {len(images)} | {nothing} | {person} |\n")
        sys.stdout.flush()


def show_naming(model: Model, cases: list[Case]) -> None:
    """How many photographs are given their name."""
    if not cases:
        return
    names = [name for name, _ in cases]
    found = torch.stack([model.likelihoods(image, names) for _, image in cases])
    named = (found - found.mean(0)).argmax(1)
    right = torch.arange(len(names))
    wrong = (right + 1) % len(names)
    for what, wanted in (("its own name", right), ("the next one's name", wrong)):
        share = float((named == wanted).float().mean())
        sys.stdout.write(f"{what}: {share:.2f} (n={len(names)}, chance {1 / len(names):.3f})\n")
    for (name, image), place in zip(cases, named.tolist(), strict=True):
        said = model.answer(image, "What is in this picture?")
        sys.stdout.write(f"{name}: {names[place]}; {said!r}\n")


def main() -> None:
    """Read the command line, measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--count", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(args.model)
    texts = (HERE / "reading_texts.txt").read_text().splitlines()
    show_naming(model, photographs())
    show_textless(model, args.count)
    show_reading(
        model, iter([*drawn(texts, args.count), *(stored(args.data) if args.data else ())])
    )


if __name__ == "__main__":
    main()
