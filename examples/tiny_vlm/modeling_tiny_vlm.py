"""A LLaVA model whose eye was never trained for it: things and words become input embeddings.

    pixels -> EfficientNet-Lite2 -> ImageNet's classes -> mixtures of their names' embeddings
    pixels -> PP-OCRv4 -> text -> tokens -> their embeddings

Both go into the image's slots, things first.  Everything else is `LlavaForConditionalGeneration`.
`model.read(pixel_values)` returns the text, `model.classes(pixel_values)` what is seen.
"""

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import (
    AutoModel,
    Cache,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaPreTrainedModel,
)
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.llava.modeling_llava import LlavaModel

from .step_network import StepNetwork
from .text_reader import TextReader

LONGEST = 1.4  # longer pictures are cut to a square in the middle, others squeezed into one
THINGS = 5  # the whole and its four quarters
PADDING = -1 / 255  # the processor's grey, 127 of 255 on [-1, 1]


def without_padding(image: Tensor) -> Tensor:
    """The picture without the processor's grey bands, (3, H, W) -> (3, h, w)."""
    inside = (image - PADDING).abs().amax(0) > 1e-3
    rows, columns = inside.any(1).nonzero(), inside.any(0).nonzero()
    if not len(rows):
        return image
    return image[:, int(rows[0]) : int(rows[-1]) + 1, int(columns[0]) : int(columns[-1]) + 1]


def _pictures(pixel_values: Tensor) -> list[Tensor]:
    return [without_padding(image) for image in pixel_values.float()]


class Eye(nn.Module):
    """ImageNet's classes in a picture, from EfficientNet-Lite2.

    Its settings are `config.eye`: the network, and `size`, its picture's side in pixels.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        self.size: int = config.eye["size"]
        self.features = StepNetwork(**config.eye["features"])
        self.classifier = nn.Linear(*config.eye["classifier"])

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        """Class logits of the whole and of each quarter, (3, H, W) in [-1, 1] -> (5, classes)."""
        height, width = image.shape[1:]
        if max(height, width) > LONGEST * min(height, width):
            side = min(height, width)
            top, left = (height - side) // 2, (width - side) // 2
            image = image[:, top : top + side, left : left + side]
        size = (self.size, self.size)
        seen = F.interpolate(image[None], size, mode="bicubic", antialias=True)
        seen = (seen.clamp(-1, 1) * 127.5 + 0.5) / 128  # TensorFlow's scale: (pixel - 127) / 128
        features = self.features(seen)
        quarters = F.adaptive_avg_pool2d(features, 2).flatten(2)[0].T
        return self.classifier(torch.cat([features.mean((2, 3)), quarters]))


class Words(nn.Module):
    """What the eye and the reader saw, as the language model's input embeddings.

    Its settings are `config.words`: the reader's networks and the sizes of what is stored.  The
    tokenizer travels with the weights, as bytes.
    """

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        words = config.words
        self.slots: int = config.image_seq_length
        self.reader = TextReader(words["reader"])
        shape = (words["classes"], config.text_config.hidden_size)
        self.register_buffer("class_embeddings", torch.zeros(shape))
        self.register_buffer("length", torch.ones(()))  # of a usual token's embedding
        self.register_buffer("before", torch.zeros(words["before"], dtype=torch.long))
        self.register_buffer("after", torch.zeros(words["after"], dtype=torch.long))
        size = words["tokenizer_bytes"]
        self.register_buffer("tokenizer_json", torch.zeros(size, dtype=torch.uint8))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The language model's tokenizer.

        Loaded in half precision, what is kept in float32 takes its whole numbers along.
        """
        letters = self.tokenizer_json.cpu().to(torch.uint8)
        return Tokenizer.from_str(letters.numpy().tobytes().decode())

    def things(self, logits: Tensor) -> Tensor:
        """The classes' names mixed by their probability, (n, classes) -> (n, d_model).

        All of them are, so what a slot holds is continuous in the pixels.
        """
        mixtures = logits.softmax(-1) @ self.class_embeddings
        return mixtures * (self.length / mixtures.norm(dim=-1, keepdim=True))

    def tokens(self, text: str) -> Tensor:
        """The text's tokens, as many as fit: (n,)."""
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        room = self.slots - len(self.before) - len(self.after) - THINGS
        return torch.tensor(ids[:room], dtype=torch.long)


class TinyVLMModel(LlavaModel):
    """`LlavaModel` with an `Eye` for a tower and `Words` in the projector's place."""

    _keep_in_fp32_modules_strict = ("vision_tower", "multi_modal_projector")

    def __init__(self, config: LlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.vision_tower = Eye(config)
        self.multi_modal_projector = Words(config)
        self.language_model = AutoModel.from_config(config.text_config)
        self.post_init()

    @torch.no_grad()
    def read(self, pixel_values: Tensor) -> list[str]:
        """The text in each image, (n, 3, H, W) -> n strings, "" for an image without text."""
        return [self.multi_modal_projector.reader(image) for image in _pictures(pixel_values)]

    @torch.no_grad()
    def classes(self, pixel_values: Tensor) -> Tensor:
        """What is seen in each image, (n, 3, H, W) -> (n, classes) logits."""
        return torch.stack([self.vision_tower(image)[0] for image in _pictures(pixel_values)])

    @torch.no_grad()
    def get_image_features(self, pixel_values: Tensor, **_: object) -> BaseModelOutputWithPooling:
        """The embeddings of what is in each image, (n, 3, H, W) -> n of (slots, d_model).

        Slots that nothing is in are zero, which no token's embedding is.
        """
        words, embed = self.multi_modal_projector, self.get_input_embeddings()
        found = []
        for image in _pictures(pixel_values):
            things = words.things(self.vision_tower(image)).to(embed.weight)
            text = words.tokens(words.reader(image)).to(embed.weight.device)
            before, after = words.before.long(), words.after.long()
            row = torch.cat([embed(before), things, embed(after), embed(text)])
            found.append(F.pad(row, (0, 0, 0, words.slots - len(row))))
        return BaseModelOutputWithPooling(last_hidden_state=torch.stack(found), pooler_output=found)

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        mm_encoder_outputs: dict[str, BaseModelOutputWithPooling] | None = None,
        **kwargs: Any,
    ) -> Any:
        """`LlavaModel.forward` for which empty slots do not exist.

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
        """Which positions so far are empty slots: (rows, past + length) bool."""
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


class TinyVLMForConditionalGeneration(LlavaForConditionalGeneration):
    """`LlavaForConditionalGeneration` on a `TinyVLMModel`."""

    _keep_in_fp32_modules_strict = ("vision_tower", "multi_modal_projector")

    def __init__(self, config: LlavaConfig) -> None:
        LlavaPreTrainedModel.__init__(self, config)
        self.model = TinyVLMModel(config)
        hidden, vocabulary = config.text_config.hidden_size, config.text_config.vocab_size
        self.lm_head = nn.Linear(hidden, vocabulary, bias=False)
        self.post_init()

    def read(self, pixel_values: Tensor) -> list[str]:
        """The text in each image, (n, 3, H, W) -> n strings, "" for an image without text."""
        return self.model.read(pixel_values)

    def classes(self, pixel_values: Tensor) -> Tensor:
        """What is seen in each image, (n, 3, H, W) -> (n, classes) logits."""
        return self.model.classes(pixel_values)
