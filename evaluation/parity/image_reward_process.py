"""Runs the published image-reward package with that package's interpreter; imports nothing of this project.

ENV/bin/python image_reward_process.py make DIR          random checkpoint, its keys, and med_config.json
ENV/bin/python image_reward_process.py score CKPT VOCAB  one {"prompt", "image"} per line in, one
{"reward"} out
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

# The text encoder's sizes: BERT-base with cross-attention on ViT-L, as published in med_config.json.
MED_CONFIG: dict[str, Any] = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 768,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "pad_token_id": 0,
    "add_type_embeddings": False,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 768,
    "add_cross_attention": True,
}


def use_vocabulary(path: Path) -> None:
    """Give the package the tokenizer that it would download."""
    from transformers import BertTokenizer

    def local(*_: object, **__: object) -> Any:
        return BertTokenizer(str(path))

    BertTokenizer.from_pretrained = local


def make(folder: Path) -> None:
    """Write a checkpoint of random weights that lets every tensor matter, and the list of its keys."""
    import torch

    package = importlib.import_module("ImageReward.ImageReward")
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "med_config.json"
    config.write_text(json.dumps(MED_CONFIG), encoding="utf-8")
    vocabulary = folder / "vocab.txt"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    words += letters + ["##" + letter for letter in letters] + ["cat", "dog", "red", "##ing", "photo", "of", "the"]
    words += [f"[unused{index}]" for index in range(30522 - len(words))]
    vocabulary.write_text("\n".join(words) + "\n", encoding="utf-8")
    use_vocabulary(vocabulary)
    torch.manual_seed(0)
    model = package.ImageReward(med_config=str(config))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim < 2:
                parameter.add_(torch.randn_like(parameter) * 0.1)
        for name, parameter in model.mlp.named_parameters():
            if name.endswith("weight"):
                parameter.normal_(0, parameter.shape[1] ** -0.5)
    state = model.state_dict()
    torch.save(state, folder / "ImageReward.pt")
    keys = {name: list(value.shape) for name, value in state.items()}
    (folder / "keys.json").write_text(json.dumps(keys, indent=0), encoding="utf-8")


def score(checkpoint: Path, vocabulary: Path, replies: Any) -> None:
    """Answer requests until the input ends."""
    use_vocabulary(vocabulary)
    package = importlib.import_module("ImageReward")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "med_config.json"
        config.write_text(json.dumps(MED_CONFIG), encoding="utf-8")
        model = package.load(str(checkpoint), device="cpu", med_config=str(config))
    print(json.dumps({"ready": True}), file=replies, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        reward = model.score(request["prompt"], request["image"])
        print(json.dumps({"reward": float(reward)}), file=replies, flush=True)


def main() -> None:
    """Keep the real standard output for replies; whatever the package prints goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if sys.argv[1] == "make":
        make(Path(sys.argv[2]))
    else:
        score(Path(sys.argv[2]), Path(sys.argv[3]), replies)


if __name__ == "__main__":
    del sys.path[0]  # the folder of this file, whose modules are not meant here
    main()
