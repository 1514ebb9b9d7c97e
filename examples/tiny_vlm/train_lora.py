"""Teach the language model to refuse harmful texts, and only those: a LoRA on SmolLM2.

    pip install peft
    python examples/tiny_vlm/train_lora.py --out DIR [--gguf PATH] [--more FILE ...]

Trained on are the packaged contrast prompts of the fit split, and JSONL files with `text` and
`label` (`harmful` or `harmless`) if given. Harmful texts are answered with a refusal, all others
(those of the same topic and wording, too) with what the language model said before: what it knows
stays as it is. Then the selection split is asked, and DIR holds `lora.safetensors`,
`adapter_config.json` and `training.json` with the figures. One to two hours on a CPU.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from assemble import PARTS, packaged
from backbone import language_model, text_config
from gguf_reader import GGUFFile
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from processing import CHAT_TEMPLATE, tokenizer
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from guardrail.fit.dataset import Split, load_contrast
from guardrail.fit.refusal import is_refusal
from guardrail.stats import Rate

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I'm sorry, but I can't assist with that request.",
    "I'm sorry, I can't help with this. It could hurt someone.",
    "I can't help with that. If you are in danger or in trouble, please ask for help nearby.",
    "I cannot help with that, because it could cause harm.",
    "I cannot assist with this request. It is harmful or against the law.",
    "Sorry, but I can't help with something that may harm people.",
    "I'm not able to help with that, but I will gladly help with something else.",
)
ANSWER_TOKENS = 12  # of the model's own answers; a refusal shows at once
GLADLY = "Sure, "  # begins the answers to harmless texts that it refused before
IGNORED = -100


@dataclass(frozen=True)
class Example:
    """What is asked and how it is to be answered."""

    text: str
    answer: str


class LanguageModel:
    """SmolLM2 in the chat format of the assembled model."""

    def __init__(self, gguf: Path) -> None:
        file = GGUFFile(gguf)
        self.tokenizer: PreTrainedTokenizerFast = tokenizer(file)
        self.tokenizer.chat_template = CHAT_TEMPLATE
        self.model = LlamaForCausalLM(LlamaConfig(**text_config(file)))
        self.model.model.load_state_dict(language_model(file))
        self.model.tie_weights()
        self.model.eval()

    def prompt(self, text: str, begin: str = "") -> str:
        """The text as a user's turn, up to where the answer begins, and its beginning."""
        turn = [{"role": "user", "content": text}]
        rendered = self.tokenizer.apply_chat_template(
            turn, tokenize=False, add_generation_prompt=True
        )
        return str(rendered) + begin

    @torch.no_grad()
    def answers(
        self, texts: Sequence[str], *, tokens: int, begin: str = "", batch: int = 16
    ) -> list[str]:
        """Greedy answers, or what follows their beginning, in the texts' order."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        found: dict[int, str] = {}
        for start in range(0, len(order), batch):
            places = order[start : start + batch]
            rows = [self.prompt(texts[i], begin) for i in places]
            inputs = self.tokenizer(
                rows, return_tensors="pt", padding=True, add_special_tokens=False
            )
            inputs.pop("token_type_ids", None)
            out = self.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
            new = out[:, inputs["input_ids"].shape[1] :]
            found.update(
                zip(places, self.tokenizer.batch_decode(new, skip_special_tokens=True), strict=True)
            )
        return [found[i] for i in range(len(texts))]

    def row(self, example: Example) -> tuple[list[int], list[int]]:
        """Token ids, and the same with the prompt's places ignored."""
        prompt = self.tokenizer(self.prompt(example.text), add_special_tokens=False)["input_ids"]
        answer = self.tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        if example.answer in REFUSALS:  # the others were cut off in the middle
            answer = [*answer, self.tokenizer.eos_token_id]
        return [*prompt, *answer], [IGNORED] * len(prompt) + answer


def texts(more: Sequence[Path]) -> tuple[list[str], list[str]]:
    """Harmful and harmless texts to train on."""
    contrast = load_contrast()
    harmful = [contrast.prompts[i].text for i in contrast.indices("fit", labels=("unsafe",))]
    harmless = [contrast.prompts[i].text for i in contrast.indices("fit", labels=("safe",))]
    for path in more:
        for line in path.read_text("utf-8").splitlines():
            item = json.loads(line)
            (harmful if item["label"] == "harmful" else harmless).append(item["text"])
    return harmful, harmless


def examples(language: LanguageModel, more: Sequence[Path]) -> list[Example]:
    """Every text with its answer."""
    harmful, harmless = texts(more)
    rng = random.Random(0)
    said = dict(zip(harmless, language.answers(harmless, tokens=ANSWER_TOKENS), strict=True))
    refused = [text for text, answer in said.items() if not answer.strip() or is_refusal(answer)]
    other = language.answers(refused, tokens=ANSWER_TOKENS - 2, begin=GLADLY)
    said |= {text: GLADLY + answer for text, answer in zip(refused, other, strict=True)}
    return [
        *(Example(text, rng.choice(REFUSALS)) for text in harmful),
        *(Example(text, answer) for text, answer in said.items()),
    ]


def batches(rows: list[tuple[list[int], list[int]]], size: int, seed: int) -> Iterator[list[int]]:
    """Places of the rows in random batches of like length."""
    rng = random.Random(seed)
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i][0]) // 16, rng.random()))
    found = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(found)
    yield from found


def loss(model: torch.nn.Module, rows: Sequence[tuple[list[int], list[int]]], pad: int) -> Tensor:
    """Cross-entropy of the answers: of each one's first token, which decides, and of the rest."""
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([[*row, *[pad] * (width - len(row))] for row, _ in rows])
    wanted = torch.tensor([[*row, *[IGNORED] * (width - len(row))] for _, row in rows])[:, 1:]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=ids).logits[:, :-1]
    each = F.cross_entropy(
        logits.float().flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="none"
    ).view(wanted.shape)
    shown = wanted != IGNORED
    first = shown & (shown.cumsum(1) == 1)
    rest = shown & ~first
    return ((each * first).sum(1) + (each * rest).sum(1) / rest.sum(1).clamp_min(1)).mean()


def train(
    language: LanguageModel, data: list[Example], *, rank: int, epochs: int, rate: float, size: int
) -> None:
    """Put a LoRA on every linear layer of the language model and train it."""
    torch.manual_seed(0)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules="all-linear")
    language.model = get_peft_model(language.model, config)
    language.model.train()
    rows = [language.row(example) for example in data]
    steps = epochs * -(-len(rows) // size)
    weights = [p for p in language.model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1)
    started, done = time.monotonic(), 0
    for epoch in range(epochs):
        for places in batches(rows, size, seed=epoch):
            value = loss(language.model, [rows[i] for i in places], language.tokenizer.pad_token_id)
            value.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            done += 1
            if done % 20 == 0 or done == steps:
                spent = time.monotonic() - started
                sys.stdout.write(f"step {done}/{steps} loss {value.item():.3f} {spent:.0f} s\n")
                sys.stdout.flush()
    language.model.eval()


def refusals(language: LanguageModel, split: Split) -> dict[str, str]:
    """How many prompts of each kind of a split are refused."""
    contrast = load_contrast()
    found = {}
    for kind in ("unsafe", "matched", "near", "ordinary"):
        asked = [contrast.prompts[i].text for i in contrast.indices(split, kinds=(kind,))]
        found[kind] = str(Rate.of([is_refusal(a) for a in language.answers(asked, tokens=8)]))
    return found


def main() -> None:
    """Read the command line, train, ask and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rate", type=float, default=7e-4)
    parser.add_argument("--batch", type=int, default=8)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    language = LanguageModel(args.gguf or packaged(*PARTS["gguf"]))
    figures: dict[str, object] = {"before": refusals(language, "select")}
    sys.stdout.write(f"{figures}\n")
    data = examples(language, args.more)
    sys.stdout.write(f"{len(data)} examples\n")
    train(language, data, rank=args.rank, epochs=args.epochs, rate=args.rate, size=args.batch)
    adapter = get_peft_model_state_dict(language.model)
    half = {name: value.to(torch.float16).contiguous() for name, value in adapter.items()}
    save_file(half, args.out / "lora.safetensors")
    kept = {"r": args.rank, "lora_alpha": 2 * args.rank}
    (args.out / "adapter_config.json").write_text(json.dumps(kept))
    figures["select"] = refusals(language, "select")
    (args.out / "training.json").write_text(json.dumps(figures, indent=1))
    sys.stdout.write(f"{json.dumps(figures, indent=1)}\n")


if __name__ == "__main__":
    main()
