"""The small CLIP: a tokenizer whose every word of the world is one token, a text tower and a vision tower."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from zoo.data import HELD_OUT, TRAIN, floats, pool
from zoo.loop import Task, fit

TOKENS = 24


def build_tokenizer(captions: list[str], target: Path) -> CLIPTokenizer:
    """Byte-pair merges learned on the captions; rare words still split into letters, as in any CLIP."""
    inner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'\"-")
    trainer = trainers.BpeTrainer(vocab_size=1000, end_of_word_suffix="</w>", initial_alphabet=letters, show_progress=False)
    inner.train_from_iterator([*captions, "".join(letters), " ".join(letters)], trainer)
    merges = [tuple(pair) for pair in json.loads(inner.to_str())["model"]["merges"]]
    words = [*letters, *(letter + "</w>" for letter in letters), *dict.fromkeys(a + b for a, b in merges)]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys([*words, "<|startoftext|>", "<|endoftext|>"]))}
    folder = target / "tokenizer"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    tokenizer = CLIPTokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"), model_max_length=TOKENS)
    tokenizer.save_pretrained(folder)
    return tokenizer


def build(tokenizer: CLIPTokenizer) -> CLIPModel:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "projection_dim": 64}
    text = {**shared, **ends, "vocab_size": len(tokenizer), "max_position_embeddings": TOKENS, "num_hidden_layers": 3}
    vision = {**shared, "image_size": 64, "patch_size": 8, "num_hidden_layers": 4}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    config._attn_implementation = "eager"
    return CLIPModel(config)


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    ids: Tensor = tokenizer(captions, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
    return ids


def train(minutes: float, work: Path, target: Path, n: int = 40_000, batch: int = 128) -> None:
    """Symmetric contrastive training; each image meets its caption among `batch` others."""
    torch.manual_seed(0)
    data, held = pool(n, TRAIN, work), pool(1000, HELD_OUT, work)
    tokenizer = build_tokenizer(data.captions, target)
    ids = torch.stack([tokens(tokenizer, data.captions), tokens(tokenizer, data.full)])
    held_ids = tokens(tokenizer, held.captions)
    model = build(tokenizer)

    def loss(draw: torch.Generator) -> Tensor:
        rows = torch.randint(len(ids[0]), (batch,), generator=draw)
        full = torch.randint(2, (1,), generator=draw).item()
        with torch.autocast("cpu", torch.bfloat16):
            out = model(input_ids=ids[int(full)][rows], pixel_values=floats(data.images[rows]))
        logits, target_row = out.logits_per_image.float(), torch.arange(batch)
        same = ids[int(full)][rows]
        twins = (same[:, None] == same[None]).all(-1) & ~torch.eye(batch, dtype=torch.bool)
        logits = logits.masked_fill(twins, -1e4)  # an equal caption is no wrong answer
        return (F.cross_entropy(logits, target_row) + F.cross_entropy(logits.T, target_row)) / 2

    def validate(module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            out = module(input_ids=held_ids, pixel_values=floats(held.images))
        groups = torch.stack([out.logits_per_image[i : i + 100, i : i + 100] for i in range(0, 1000, 100)])
        return {"one_of_100": float((groups.argmax(-1) == torch.arange(100)).float().mean())}

    final = fit(Task("clip", model, loss, validate, learning_rate=1e-3, weight_decay=0.05), minutes, work)
    assert isinstance(final, CLIPModel)
    final.half().save_pretrained(target / "clip")
    size = {"height": 64, "width": 64}
    halves = [0.5, 0.5, 0.5]
    processor = CLIPImageProcessorPil(size=size, crop_size=size, image_mean=halves, image_std=halves, do_center_crop=False)
    processor.save_pretrained(target / "clip")
