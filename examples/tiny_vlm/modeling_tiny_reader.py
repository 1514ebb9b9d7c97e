"""A LLaVA model whose projector reads: words in an image become the language model's embeddings.

    pixels -> lines of text laid out again -> SigLIP tower -> CTC characters
           -> beam search with a lexicon -> text -> tokens
           -> the language model's input embeddings, in the image's slots

Everything else is `LlavaForConditionalGeneration`.  `model.read(pixel_values)` returns the text.
"""

import re
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import Cache, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel

from .ctc_decoder import ALPHABET, SPACE, CTCDecoder, confidence, lexicon
from .text_lines import ROWS, views

LOOSE_MARK = re.compile(r"\s+([.,?!:])(?![.,?!:])|\s+$")  # marks that slid to the next line
Reading = tuple[str, float]


class Reader(nn.Module):
    """Reads what the tower saw.

    Its settings are `config.reader`: `x_heights`, the letter sizes that are tried;
    `min_confidence`, below which an image has no text.  The tokenizer travels with the weights, as
    bytes.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.x_heights: list[float] = config.reader["x_heights"]
        self.min_confidence: float = config.reader["min_confidence"]
        self.slots: int = config.image_seq_length
        self.head = nn.Linear(config.vision_config.hidden_size, 3 * (len(ALPHABET) + 1))
        size = config.reader["tokenizer_bytes"]
        self.register_buffer("tokenizer_json", torch.zeros(size, dtype=torch.uint8))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The language model's tokenizer."""
        return Tokenizer.from_str(self.tokenizer_json.cpu().numpy().tobytes().decode())

    @cached_property
    def decoder(self) -> CTCDecoder:
        """The beam search, with the words of the language model's vocabulary as its lexicon."""
        return CTCDecoder(lexicon(self.tokenizer.get_vocab()))

    def forward(self, features: Tensor) -> Tensor:
        """Log-probabilities, (pages, patches, width) -> (pages, 3 * patches, characters)."""
        scores = self.head(features).float().unflatten(-1, (3, -1)).flatten(1, 2)
        return scores.log_softmax(-1)

    def line_texts(self, frames: Tensor, owners: list[int]) -> list[Reading]:
        """Text and score of each line, (pages, 3 * patches, characters) -> list.

        The tower puts a line's last mark into the next row, so the last line has one row more.
        """
        rows = frames.unflatten(1, (ROWS, -1)).flatten(0, 1)
        end = F.one_hot(torch.tensor([SPACE]), rows.shape[-1]).float().log().clamp_min(-20)
        parts: list[list[Tensor]] = [[] for _ in range(max(owners) + 1)]
        for row, owner in zip(rows, [*owners, owners[-1]], strict=False):
            parts[owner] += [row, end]
        return [self.decoder(torch.cat(line)) if line else ("", 0.0) for line in parts]

    def decode(self, frames: list[Tensor], owners: list[list[int]]) -> str:
        """The most likely text of the views of one image; "" when none shows text.

        Each line is read in the view that suits it best.
        """
        read = [
            self.line_texts(view.cpu(), rows)
            for view, rows in zip(frames, owners, strict=True)
            if confidence(view.flatten(0, 1)) >= self.min_confidence
        ]
        best = [max(line, key=lambda reading: reading[1]) for line in zip(*read, strict=True)]
        text = LOOSE_MARK.sub(r"\1", " ".join(text for text, _ in best))
        return text[:1].upper() + text[1:]

    def tokens(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Each text's tokens in an image's slots, cut to fit, and which slots are left empty.

        n texts -> (n, slots) token ids, (n, slots) bool.
        """
        ids = torch.zeros(len(texts), self.slots, dtype=torch.long)
        empty = torch.ones_like(ids, dtype=torch.bool)
        for row, free, text in zip(ids, empty, texts, strict=True):
            found = self.tokenizer.encode(text, add_special_tokens=False).ids[: self.slots]
            row[: len(found)] = torch.tensor(found, dtype=torch.long)
            free[: len(found)] = False
        return ids, empty


class TinyReaderModel(LlavaModel):
    """`LlavaModel` with a `Reader` in the projector's place."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.multi_modal_projector = Reader(config)
        self.post_init()

    @torch.no_grad()
    def read(self, pixel_values: Tensor) -> list[str]:
        """The text in each image, (n, 3, H, W) -> n strings, "" for an image without text."""
        reader = self.multi_modal_projector
        texts = []
        for image in pixel_values.float():
            found = views(image, reader.x_heights)
            if not found:
                texts.append("")
                continue
            pages = torch.cat([view.pages for view in found]).to(reader.head.weight)
            frames = reader(self.vision_tower(pages).last_hidden_state)
            parts = frames.split([len(view.pages) for view in found])
            texts.append(reader.decode(list(parts), [view.owners for view in found]))
        return texts

    def get_image_features(self, pixel_values: Tensor, **_: object) -> BaseModelOutputWithPooling:
        """The embeddings of the text in each image, (n, 3, H, W) -> n of (slots, d_model).

        Slots without text are zero, which no token's embedding is.
        """
        tokens, empty = self.multi_modal_projector.tokens(self.read(pixel_values))
        found = self.get_input_embeddings()(tokens.to(pixel_values.device))
        found = found.masked_fill(empty.to(found.device)[..., None], 0.0)
        return BaseModelOutputWithPooling(last_hidden_state=found, pooler_output=list(found))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        """`LlavaModel.forward` for which slots without text do not exist.

        They are hidden from attention and take no position.  Which ones they are travels with the
        call's own cache, so later steps hide them too and nothing stays in the model.  A prompt
        with images needs `input_ids` and a dynamic cache; anything else is refused.
        """
        if pixel_values is not None:
            mm_encoder_outputs = {"image": self.get_image_features(pixel_values)}
        image = (mm_encoder_outputs or {}).get("image")
        given = kwargs.get("cache", kwargs.get("past_key_values"))  # renamed in transformers 5.24
        hidden = self._hidden(input_ids, image, given)
        if hidden is not None and bool(hidden.any()):
            attention_mask, position_ids = _without(hidden, attention_mask, input_ids.shape[1])
        output = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            mm_encoder_outputs=mm_encoder_outputs,
            **kwargs,
        )
        cache = output.cache if hasattr(output, "cache") else output.past_key_values
        if cache is not None and hidden is not None:
            cache.hidden_slots = hidden
        return output

    def _hidden(
        self,
        input_ids: Tensor | None,
        image: BaseModelOutputWithPooling | None,
        cache: Cache | None,
    ) -> Tensor | None:
        """Which positions so far are slots without text: (rows, past + length) bool."""
        before = getattr(cache, "hidden_slots", None)
        if input_ids is None:
            if image is not None or (before is not None and bool(before.any())):
                raise ValueError("a prompt with images needs input_ids; got inputs_embeds")
            return None
        now = torch.zeros_like(input_ids, dtype=torch.bool)
        if image is not None:
            empty = (torch.cat(list(image.pooler_output)) == 0).all(-1)
            now = now.masked_scatter(input_ids == self.config.image_token_id, empty)
        past = 0 if cache is None else int(cache.get_seq_length())
        before = now.new_zeros(len(now), 0) if before is None else before[:, :past]
        if len(before) != len(now):  # the cache's rows were repeated since
            before = before.repeat_interleave(len(now) // len(before), dim=0)
        return torch.cat([F.pad(before, (0, past - before.shape[1])), now], dim=1)


def _without(hidden: Tensor, attention_mask: Any, length: int) -> tuple[Tensor, Tensor]:
    """Attention mask and positions of the last `length` places when `hidden` ones are left out."""
    mask = torch.ones_like(hidden, dtype=torch.long) if attention_mask is None else attention_mask
    if not isinstance(mask, Tensor) or mask.shape != hidden.shape:
        raise ValueError(
            f"a prompt with images needs an attention mask of shape {tuple(hidden.shape)}; "
            "use the default, dynamic cache"
        )
    mask = mask.masked_fill(hidden, 0)
    return mask, (mask.cumsum(-1) - 1).clamp_min(0)[:, -length:]


class TinyReaderForConditionalGeneration(LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` on a `TinyReaderModel`."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__(config)
        self.model = TinyReaderModel(config)
        self.post_init()

    def read(self, pixel_values: Tensor) -> list[str]:
        """The text in each image, (n, 3, H, W) -> n strings, "" for an image without text."""
        return self.model.read(pixel_values)
