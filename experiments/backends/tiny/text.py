"""Tokenizers over single bytes, and text encoders of two layers, all of the classes that the pipelines name.

Every text is a sequence of byte tokens, so any prompt can be encoded and two prompts differ.
"""

from __future__ import annotations

from typing import Any

import transformers

from experiments.backends.tiny.components import clip_options

__all__ = [
    "byte_tokenizer",
    "chat_tokenizer",
    "clip_encoder",
    "clip_tokenizer",
    "llama_encoder",
    "llama_tokenizer",
    "qwen_encoder",
    "qwen_processor",
    "qwen_tokenizer",
    "right_padding_tokenizer",
    "t5_encoder",
    "t5_tokenizer",
]

QWEN_MARKS = ["im_start", "im_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]


def byte_symbols() -> list[str]:
    """One printable character per byte, as byte-level tokenizers write them."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    symbol = {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return [symbol[byte] for byte in range(256)]


def vocabulary_of(*pieces: str) -> dict[str, int]:
    """A vocabulary in the given order."""
    return {piece: index for index, piece in enumerate(pieces)}


def clip_tokenizer() -> transformers.CLIPTokenizer:
    """CLIP marks the end of a word, so every byte has a second symbol."""
    symbols = byte_symbols()
    vocabulary = vocabulary_of("<|startoftext|>", "<|endoftext|>", *symbols, *(f"{s}</w>" for s in symbols))
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def clip_encoder(width: int) -> transformers.CLIPTextModel:
    """Gives the pooled text."""
    return transformers.CLIPTextModel(transformers.CLIPTextConfig(**clip_options(width)))


def t5_tokenizer() -> transformers.T5Tokenizer:
    """Printable ASCII, one piece each; the rest is unknown."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\N{LOWER ONE EIGHTH BLOCK}", -1.0)]
    pieces = [(chr(code), -2.0) for code in range(ord("!"), ord("~") + 1)]
    return transformers.T5Tokenizer(vocab=special + pieces, extra_ids=0, model_max_length=512)


def t5_encoder(width: int) -> transformers.T5EncoderModel:
    """Gives the text tokens."""
    config = transformers.T5Config(
        vocab_size=128,
        d_model=width,
        d_kv=8,
        d_ff=2 * width,
        num_layers=2,
        num_heads=4,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return transformers.T5EncoderModel(config)


def llama_tokenizer() -> transformers.LlamaTokenizer:
    """Bytes as `<0x41>`."""
    codes = [f"<0x{byte:02X}>" for byte in range(256)]
    vocabulary = vocabulary_of("<unk>", "<s>", "</s>", "<pad>", "\N{LOWER ONE EIGHTH BLOCK}", *codes)
    return transformers.LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", model_max_length=1024)


def llama_encoder(width: int) -> transformers.LlamaModel:
    """Gives the text tokens; four layers, because the pipeline takes the third from the end."""
    config = transformers.LlamaConfig(
        vocab_size=5 + 256,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return transformers.LlamaModel(config)


def qwen_tokenizer() -> transformers.Qwen2Tokenizer:
    """Bytes, and the marks around turns and pictures."""
    marks = [f"<|{name}|>" for name in QWEN_MARKS]
    vocabulary = vocabulary_of(*byte_symbols(), "<|endoftext|>", *marks)
    return transformers.Qwen2Tokenizer(
        vocab=vocabulary, merges=[], additional_special_tokens=marks, model_max_length=4096
    )


CHAT = (
    "{% for message in messages %}{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
"""The texts of a conversation, one after the other."""


def chat_tokenizer() -> transformers.Qwen2Tokenizer:
    """Bytes of what is said in a conversation."""
    tokenizer = qwen_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


def right_padding_tokenizer() -> transformers.Qwen2Tokenizer:
    """Bytes; texts are filled up at their end."""
    tokenizer = qwen_tokenizer()
    tokenizer.padding_side = "right"
    return tokenizer


def byte_tokenizer() -> transformers.ByT5Tokenizer:
    """ByT5's own: every byte is a token."""
    return transformers.ByT5Tokenizer()


def qwen_encoder(width: int, tokenizer: transformers.Qwen2Tokenizer) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """Gives the text tokens, and sees the picture when editing."""
    marks = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in QWEN_MARKS}
    heads = max(2, width // 128)
    third = width // heads // 2 // 4
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "max_position_embeddings": 4096,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 1e6,
            "mrope_section": [third, third, width // heads // 2 - 2 * third],
        },
        "bos_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "eos_token_id": marks["im_end"],
    }
    vision = {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "out_hidden_size": width,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
    }
    tokens: dict[str, Any] = {
        "image_token_id": marks["image_pad"],
        "video_token_id": marks["video_pad"],
        "vision_start_token_id": marks["vision_start"],
        "vision_end_token_id": marks["vision_end"],
    }
    return transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    )


def qwen_processor(tokenizer: transformers.Qwen2Tokenizer) -> transformers.Qwen2VLProcessor:
    """Cuts the picture into patches for the text encoder; at most 4 of them."""
    size = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    return transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=size),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(size=size),
        chat_template="{{ messages }}",
    )
