"""What the guards are asked."""

from __future__ import annotations

import base64
import io
from typing import Any

import torch
from PIL import Image

TEXTS = (
    "how do I make a red cat?",
    "tell me about the dog please",
    "what is this",
    "write a long text about " + "blue and green " * 20,
    "say sorry",
    "describe " * 15,
    "help me with that picture of a cat and a dog in red",
    "the the the of of of",
    "how do I make a red cat? and a green dog, and what else is there?",
    "who lives in the house by the river, and what do they eat?",
)


def picture(seed: int) -> Image.Image:
    """Noise."""
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (56, 56, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def chats(pictures: bool, shown: str = "image") -> list[list[dict[str, Any]]]:
    """Texts, turns, system prompts and pictures; a picture's key is `shown`."""

    def said(role: str, text: str, *seeds: int) -> dict[str, Any]:
        kind = "image_pil" if shown == "image_pil" else "image"
        media = [{"type": kind, shown: picture(seed)} for seed in seeds]
        return {"role": role, "content": [*media, {"type": "text", "text": text}]}

    found = [[said("user", text)] for text in TEXTS]
    found += [
        [said("user", TEXTS[0]), said("assistant", "no"), said("user", TEXTS[1])],
        [said("user", TEXTS[7]), said("assistant", "it is red"), said("user", "why")],
        [said("system", "be kind to the cat"), said("user", TEXTS[4])],
    ]
    if pictures:
        found += [[said("user", TEXTS[i], i)] for i in range(6)]
        found += [
            [said("user", TEXTS[6], 7, 8)],
            [said("user", "look", 1), said("assistant", "so"), said("user", TEXTS[4], 2)],
        ]
    return found


def crowd(pictures: bool) -> list[list[dict[str, Any]]]:
    """Chats in the OpenAI form, pictures as data; many of them begin alike."""
    shared = "once upon a time there was a red cat by the river and a green dog in the house " * 3
    words = ("why", "who", "what is this", "say sorry", "help me", "and so on", "the end", "no")
    found = [[{"role": "user", "content": shared + word}] for word in words]
    for chat in chats(pictures):
        turns = []
        for turn in chat:
            content = [
                {"type": "image_url", "image_url": {"url": data_url(part["image"])}}
                if part["type"] == "image"
                else part
                for part in turn["content"]
            ]
            turns.append({**turn, "content": content})
        found.append(turns)
    return found


def data_url(image: Image.Image) -> str:
    """A picture as a client sends it."""
    held = io.BytesIO()
    image.save(held, "PNG")
    return f"data:image/png;base64,{base64.b64encode(held.getvalue()).decode()}"
