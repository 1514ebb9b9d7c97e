"""The tokenizer and the chat template that all tiny models share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from transformers import PreTrainedTokenizerFast

_hf: Any = transformers
CONTEXT = 2048
PAD, START, END, BEGIN = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|begin|>"

# Words that get their own tokens, so that prompts are short and some tokens span a word boundary.
_WORDS = (
    " the a what is this picture how do I make tell me about write say you can sorry help with that"
    " user assistant system tool describe image please and of to in red blue green cat dog"
)

_ROLES = "['system', 'user', 'assistant', 'tool']"
_TEMPLATE = (
    "BEGIN"
    "{%- if tools %}{{- '<|im_start|>system\\nTools:\\n' }}"
    "{%- for tool in tools %}{{- tool | tojson ~ '\\n' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in " + _ROLES + " %}"
    "{{- raise_exception('unknown role ' ~ message['role']) }}{%- endif %}"
    "{{- '<|im_start|>' ~ message['role'] }}"
    "{%- if message['name'] %}{{- ' ' ~ message['name'] }}{%- endif %}{{- '\\n' }}"
    "CONTENT"
    "{%- for call in message['tool_calls'] or [] %}"
    "{{- '<tool_call>\\n' ~ (call['function'] | tojson) ~ '\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_PARTS = (
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'text' %}{{- part['text'] }}"
    "MEDIA"
    "{%- else %}{{- raise_exception('unknown part ' ~ part['type']) }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
)


def tokenizer(
    named: Mapping[str, str] | None = None,
    image: str | None = None,
    video: str | None = None,
    *,
    begin: bool | None = None,
    own: str | None = None,
) -> PreTrainedTokenizerFast:
    """Byte-level BPE over all 256 bytes, so that any text encodes and nothing is unknown.

    Args:
        named: Special tokens by the names under which the processor looks for them; names that end
            in `_token`, since saving keeps no others.
        image: What the chat template writes for a picture (Jinja string escapes apply); None for
            a text-only template, whose contents are strings.
        video: The same for a video; None where the model takes none.
        begin: Whether the template opens with a beginning-of-text token; None for a tokenizer that
            has no such token, False for a processor that adds the token itself.
        own: The family's own tokenizer class, where a saved model comes back with that class
            whatever was saved; a plain tokenizer would come back as another one.
    """
    vocab, merges = _vocabulary()
    named = named or {}
    begins = {} if begin is None else {"bos_token": BEGIN}
    special = [PAD, START, END, *begins.values(), *named.values()]
    core: dict[str, Any] = {"vocab": vocab, "merges": merges, "unk_token": PAD}
    if own is None:
        core = {"tokenizer_object": _bytes(vocab, merges, special)}
    made: PreTrainedTokenizerFast = getattr(_hf, own or "PreTrainedTokenizerFast")(
        **core,
        **begins,
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens={"turn_token": START, **named},
        chat_template=_template(image, video, begin=bool(begin)),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
    return made


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """All bytes, and the beginnings of the common words."""
    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        head = "Ġ"  # the byte-level sign for a leading blank
        for letter in word:
            if head + letter not in vocab:
                vocab[head + letter] = len(vocab)
                merges.append((head, letter))
            head += letter
    return vocab, merges


def _bytes(vocab: dict[str, int], merges: list[tuple[str, str]], special: list[str]) -> Tokenizer:
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True) for token in special])
    return core


def _template(image: str | None, video: str | None, *, begin: bool) -> str:
    media = "".join(
        f"{{%- elif part['type'] == '{kind}' %}}{{{{- '{placeholder}' }}}}"
        for kind, placeholder in (("image", image), ("video", video))
        if placeholder is not None
    )
    content = _PARTS.replace("MEDIA", media) if media else "{{- message['content'] }}"
    opening = "{{- bos_token }}" if begin else ""
    return _TEMPLATE.replace("BEGIN", opening).replace("CONTENT", content)
