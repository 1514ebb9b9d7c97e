"""The processor of the tiny VLM: tokenizer, chat template, image processor; stock classes."""

from gguf_reader import GGUFFile
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
IMAGE_TOKEN_ID = 49152  # first id after SmolLM2's vocabulary
IMAGE_SIZE = 896  # pixels on each side of what the image processor hands over
GRID, FURTHER = 8, 10
SLOTS = GRID**2 + FURTHER  # image tokens in the prompt: 64 of text, and what is around it
BEFORE, AFTER = "The picture shows", ".\n"  # around the things that are seen
SYSTEM_PROMPT = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CONTROL = 3  # GGUF's token type of special tokens

# A turn may mix {"type": "image"} and {"type": "text"} parts; a line break follows an image.
CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "<|im_start|>system\n" + SYSTEM_PROMPT + "<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% if not loop.last %}{{ '\n' }}{% endif %}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(gguf: GGUFFile) -> PreTrainedTokenizerFast:
    """SmolLM2's byte-level BPE tokenizer with one more special token, for the image."""
    tokens = gguf.fields["tokenizer.ggml.tokens"]
    kinds = gguf.fields["tokenizer.ggml.token_type"]
    merges = [tuple(merge.split(" ")) for merge in gguf.fields["tokenizer.ggml.merges"]]
    vocab = {token: i for i, token in enumerate(tokens)}
    fast = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    letters = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([digits, letters])
    fast.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    fast.add_special_tokens(
        [AddedToken(token, normalized=False, special=True) for token in [*special, IMAGE_TOKEN]]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE_TOKEN},
    )


def processor(gguf: GGUFFile) -> LlavaProcessor:
    """The processor that `AutoProcessor` loads again without custom code."""
    images = LlavaImageProcessor(
        do_pad=True,  # to a square, with grey
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer(gguf),
        patch_size=IMAGE_SIZE // GRID,
        vision_feature_select_strategy="full",
        image_token=IMAGE_TOKEN,
        num_additional_image_tokens=FURTHER,
        chat_template=CHAT_TEMPLATE,
    )
