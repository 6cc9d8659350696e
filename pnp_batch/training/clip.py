"""Stage 2: a tokenizer learnt from the captions, and a small CLIP whose texts steer the UNet."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from pnp_batch.training import data
from pnp_batch.training.loop import Run, Settings

TOKENS = 24
WIDTH = 128
Pair = tuple[str, str]


def byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in OpenAI's byte-pair encoding, printable first."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + k) for k in range(len(others))]


def join(word: tuple[str, ...], pair: Pair) -> tuple[str, ...]:
    """``word`` with every occurrence of ``pair`` made one symbol."""
    joined: list[str] = []
    rest = list(word)
    while rest:
        if tuple(rest[:2]) == pair:
            joined.append(rest.pop(0) + rest.pop(0))
        else:
            joined.append(rest.pop(0))
    return tuple(joined)


def learn_merges(captions: list[str]) -> list[Pair]:
    """Byte-pair merges until every word of the captions is one symbol (Sennrich et al. 2016)."""
    counts = Counter(word.strip(",") for text in captions for word in text.lower().split())
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges: list[Pair] = []
    while True:
        pairs: Counter[Pair] = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        merges.append(best)
        words = {word: join(symbols, best) for word, symbols in words.items()}


def new_tokenizer(captions: list[str]) -> CLIPTokenizer:
    """A CLIP tokenizer of 24 tokens whose vocabulary holds all bytes and the captions' words."""
    letters, merges = byte_letters(), learn_merges(captions)
    symbols = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges)]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: k for k, symbol in enumerate(dict.fromkeys(symbols))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def tokenize(tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """Token ids, shape (n, 24)."""
    ids: Tensor = tokenizer(
        texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    """An untrained CLIP: text tower of 3 layers, vision tower of 4 layers on 8 x 8 patches."""
    torch.manual_seed(0)
    end = tokenizer.eos_token_id
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 3 * WIDTH,
        "num_attention_heads": 4,
        "projection_dim": WIDTH,
    }
    text = CLIPTextConfig(
        **shape,
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        max_position_embeddings=TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end,
        pad_token_id=end,
    )
    vision = CLIPVisionConfig(**shape, num_hidden_layers=4, image_size=64, patch_size=8)
    config = CLIPConfig(
        text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH
    )
    return CLIPModel(config)


class ClipTask:
    """The contrastive loss of CLIP (Radford et al. 2021); equal captions are no negatives."""

    def __init__(self, directory: Path, batch: int = 96, device: str = "cpu") -> None:
        """Reads the pictures drawn into ``directory`` and tokenizes their captions."""
        self.device, self.size = torch.device(device), batch
        self.pictures = data.load(directory)
        self.held_out = data.load(directory, held_out=True)
        self.tokenizer = new_tokenizer(data.every_caption())
        self.ids = tokenize(self.tokenizer, self.pictures.captions)
        self.module: nn.Module = new_clip(self.tokenizer).to(self.device)

    def loss(self, generator: torch.Generator, progress: float) -> tuple[Tensor, dict[str, float]]:
        """One batch of pictures against their captions."""
        index = torch.randint(len(self.pictures), (self.size,), generator=generator)
        ids = self.ids[index].to(self.device)
        out = self.module(input_ids=ids, pixel_values=self.pictures.batch(index, self.device))
        same = (ids[:, None] == ids[None]).all(-1) & ~torch.eye(
            self.size, dtype=torch.bool, device=self.device
        )
        logits = out.logits_per_image.masked_fill(same, -1e4)
        target = torch.arange(self.size, device=self.device)
        loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
        right = (logits.argmax(1) == target).float().mean()
        return loss, {"right": right.item()}

    @torch.no_grad()
    def measure(self, average: nn.Module) -> dict[str, float]:
        """Retrieval on held-out pictures: is the caption the best, or among the best five?"""
        index = torch.arange(min(500, len(self.held_out)))
        texts = [self.held_out.captions[k] for k in index.tolist()]
        ids = tokenize(self.tokenizer, texts).to(self.device)
        out = average(input_ids=ids, pixel_values=self.held_out.batch(index, self.device))
        scores = out.logits_per_image
        better = (scores > scores.diag()[:, None] + 1e-4).sum(1)
        return {
            "recall_at_1": (better == 0).float().mean().item(),
            "recall_at_5": (better < 5).float().mean().item(),
        }


def train(work: Path, settings: Settings, batch: int = 96, device: str = "cpu") -> None:
    """Trains into ``work/clip``; then ``model``, ``tokenizer`` and ``text_encoder`` lie there."""
    task = ClipTask(work / "data", batch, device)
    average = Run(task, settings, work / "clip").finish()
    clip = new_clip(task.tokenizer)
    clip.load_state_dict(average.state_dict())
    clip.save_pretrained(work / "clip" / "model")
    task.tokenizer.save_pretrained(work / "clip" / "tokenizer")
