"""Trains small GPT-NeoX and Llama models, for studies of what rounding weights loses; seeded, resumable by model.

    python tests/train_tiny.py [--size NAME ...] [--out FOLDER]        (needs the extra `parity`; long)

FOLDER, by default `trained` in the cache folder (CPUINFER_CACHE), gets a Hugging Face folder for each model; text/ with
calibration.txt, validation.txt and heldout.txt, no paragraph of which was trained on; and choice.jsonl, questions made
of the held-out text.  A model that is there with the same settings is left as it is.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import choice_items
import training_text
from cpuinfer.store.cache import cache_folder

VOCABULARY = 4096
BATCH, CONTEXT = 4, 256
"""Windows a step, tokens a window; each begins with <|endoftext|>, as what is scored later does."""
SEED = 20221209
END = "<|endoftext|>"
IGNORED = -100
"""As a target: no loss."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of a model and its training."""

    name: str
    architecture: str
    """llama or gpt_neox."""
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    steps: int
    rate: float
    """Of learning, at most."""


SIZES = (
    Size("llama-1m", "llama", 128, 4, 2, 384, 3000, 3e-3),
    Size("neox-1m", "gpt_neox", 128, 2, 2, 512, 4000, 3e-3),
    Size("llama-4m", "llama", 256, 4, 4, 768, 4500, 1.5e-3),
    Size("neox-4m", "gpt_neox", 256, 3, 4, 1024, 5000, 1.5e-3),
    Size("llama-12m", "llama", 512, 4, 8, 1024, 2000, 1e-3),
    Size("neox-12m", "gpt_neox", 512, 3, 8, 2048, 2500, 1e-3),
)
"""Smallest first.  Rows of weights are multiples of 256, but for 1m, so that all block types apply."""


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=cache_folder() / "trained")
    parser.add_argument("--size", nargs="+", choices=["smallest", *(size.name for size in SIZES)], default=None)
    parser.add_argument("--steps", type=int, help="instead of each size's own, to try it out")
    parser.add_argument("--text-bytes", type=int, help="train on so much of the standard library's docstrings alone")
    options = parser.parse_args(arguments)
    chosen = [SIZES[0].name if name == "smallest" else name for name in options.size or [s.name for s in SIZES]]
    sizes = [size for size in SIZES if size.name in chosen]
    corpus = training_text.collect(options.out / "packages", print, most=options.text_bytes)
    tokenizer = _prepare(options.out, corpus)
    tokens = {part: _tokens(tokenizer, getattr(corpus, part)) for part in ("train", "validation")}
    print(f"{corpus.sources}: {sum(map(len, corpus.train)):,} characters, {len(tokens['train']):,} tokens", flush=True)
    for size in sizes:
        train(options.out, size, corpus.digest, tokens, options.steps or size.steps)


def _prepare(out: Path, corpus: training_text.Corpus) -> Any:
    """Write the text's parts, the questions and the tokenizer, which is returned."""
    text = out / "text"
    text.mkdir(parents=True, exist_ok=True)
    for part in training_text.SHARES:
        (text / f"{part}.txt").write_text("\n".join(getattr(corpus, part)), encoding="utf-8")
    choice_items.write(out / "choice.jsonl", corpus.heldout, seed=SEED)
    kept, digest = out / "tokenizer.json", text / "digest"
    if not (kept.exists() and digest.exists() and digest.read_text() == corpus.digest):
        _train_tokenizer(corpus.train).save(str(kept))
        digest.write_text(corpus.digest)
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(kept))


def _train_tokenizer(documents: tuple[str, ...]) -> Any:
    """Byte-level BPE, whose encodings begin with <|endoftext|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A", special_tokens=[(END, 0)])
    return tokenizer


def _tokens(tokenizer: Any, documents: tuple[str, ...]) -> Any:
    """One after another, each begun by <|endoftext|>."""
    import numpy as np

    encoded = tokenizer.encode_batch(list(documents))
    return np.concatenate([np.array(one.ids, np.int64) for one in encoded])


def train(out: Path, size: Size, digest: str, tokens: dict[str, Any], steps: int) -> None:
    """Train one model and write its folder, unless one of the same settings is there."""
    import torch

    folder = out / size.name
    settings = {**asdict(size), "steps": steps, "text": digest, "batch": BATCH, "context": CONTEXT, "seed": SEED}
    report = folder / "training.json"
    if report.exists() and json.loads(report.read_text())["settings"] == settings:
        print(f"{size.name}: is there", flush=True)
        return
    torch.manual_seed(SEED)
    model = build(size)
    started = time.monotonic()
    _fit(model, size, torch.from_numpy(tokens["train"]), steps)
    loss = evaluate(model, torch.from_numpy(tokens["validation"]))
    seconds = time.monotonic() - started
    numbers = {"parameters": sum(p.numel() for p in model.parameters()), "validation_loss": loss, "seconds": seconds}
    _write(model, out, folder)
    report.write_text(json.dumps({"settings": settings, **numbers}, indent=1))
    print(f"{size.name}: {numbers['parameters']:,} parameters, loss {loss:.3f} nats, {seconds:.0f} s", flush=True)


def build(size: Size) -> Any:
    """The model of transformers, fp32, new."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

    common: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "intermediate_size": size.feed_forward,
        "attn_implementation": "eager",  # for 256 positions faster on a CPU than what saves memory
        "max_position_embeddings": 1024,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    if size.architecture == "gpt_neox":
        return GPTNeoXForCausalLM(GPTNeoXConfig(**common))
    return LlamaForCausalLM(LlamaConfig(**common, num_key_value_heads=size.heads))


def _fit(model: Any, size: Size, stream: Any, steps: int) -> None:
    """AdamW, the rate risen over a twentieth of the steps and fallen by a cosine to a tenth; bf16 products."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)
    warm_up, started, smooth = max(1, steps // 20), time.monotonic(), None
    for step in range(steps):
        after = (step - warm_up) / max(1, steps - warm_up)
        share = (step + 1) / warm_up if step < warm_up else 0.55 + 0.45 * math.cos(math.pi * after)
        for group in optimizer.param_groups:
            group["lr"] = size.rate * share
        loss = _loss(model, _windows(stream, torch.randint(len(stream) - CONTEXT, (BATCH,), generator=generator)))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        smooth = loss.item() if smooth is None else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            rate = (step + 1) * BATCH * CONTEXT / (time.monotonic() - started)
            print(f"{size.name}: step {step + 1}/{steps}, loss {smooth:.3f}, {rate:,.0f} tokens/s", flush=True)


def _windows(stream: Any, starts: Any) -> Any:
    """Rows of <|endoftext|> and the CONTEXT - 1 tokens from each start."""
    import torch

    rows = torch.stack([stream[start : start + CONTEXT - 1] for start in starts.tolist()])
    return torch.nn.functional.pad(rows, (1, 0))


def _loss(model: Any, rows: Any) -> Any:
    """Mean over all tokens but the first of each row."""
    import torch

    targets = torch.nn.functional.pad(rows[:, 1:], (0, 1), value=IGNORED)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=rows, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED)


def evaluate(model: Any, stream: Any) -> float:
    """Nats a token of validation text, of at most 64 batches of windows spread over it."""
    import torch

    starts = torch.arange(0, len(stream) - CONTEXT, CONTEXT - 1)
    batches = starts[: 64 * BATCH].split(BATCH)
    with torch.no_grad():
        return float(sum(_loss(model, _windows(stream, batch)).item() * len(batch) for batch in batches)) / sum(
            map(len, batches)
        )


def _write(model: Any, out: Path, folder: Path) -> None:
    """config.json, model.safetensors in fp32, and the tokenizer."""
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((out / "tokenizer.json").read_bytes())
    special = {"bos_token": END, "eos_token": END, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(special))


if __name__ == "__main__":
    if os.environ.get("OMP_NUM_THREADS") is None:
        print("OMP_NUM_THREADS is not set: torch takes every core", file=sys.stderr)
    main()
