"""Writes the seed corpora of the fuzz targets, a folder of inputs for each reader, from what the tests make."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import published_models
from cpuinfer.tokenizer.keys import BYTE, CONTROL, NORMAL, UNKNOWN
from cpuinfer.tokenizer.sentence_pieces import SPACE, model_proto
from fixtures.bad_gguf import BAD, build
from tiny_folder import tensors_of, write_folder
from tiny_gguf import CHAT_TEMPLATE, write_tiny_llama

TEMPLATES = (
    CHAT_TEMPLATE,
    "{%- for m in messages -%}{{ '<s>' + m.role | upper }}{{ m.content }}{{ m | tojson(indent=2) }}{%- endfor %}",
    "{% set ns = namespace(n=0) %}{% for i in range(9) %}{% set ns.n = ns.n + i %}{% endfor %}{{ 'a' * ns.n }}",
    "{% macro f(x, y=[]) %}{% if x %}{{ f(x - 1) }}{% endif %}{% endmacro %}{{ f(3) ~ tools }}",
    "{{ messages | map(attribute='content') | join(', ') }}{{ strftime_now('%Y') }}{{ '%s' | format(bos_token) }}",
    "{{ raise_exception('no') if messages[0]['role'] == 'system' else messages[-1].content.split('x')[0] }}",
    "{% generation %}{{ 'a'.replace('a', 'b').rjust(9).center(20) }}{% endgeneration %}{{ ''.__class__ }}",
)


def main(corpora: Path) -> None:
    """One folder for each reader of fuzz/readers.py, and below it `around`: the sound files an input stands among."""
    for name in ("gguf", "safetensors", "index", "config", "published", "tokenizer", "settings", "pieces", "template"):
        (corpora / name).mkdir(parents=True, exist_ok=True)
    _write_gguf(corpora / "gguf")
    _write_folders(corpora)
    _write_published(corpora / "published")
    (corpora / "pieces" / "bpe").write_bytes(_pieces("bpe"))
    (corpora / "pieces" / "unigram").write_bytes(_pieces("unigram"))
    for number, text in enumerate(TEMPLATES):
        (corpora / "template" / str(number)).write_text(text)


def _write_gguf(folder: Path) -> None:
    (folder / "sound").write_bytes(build())
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)
    for encoding in ("F32", "Q4_0", "Q8_0"):
        write_tiny_llama(folder / encoding, encoding=encoding, layers=1)


def _write_folders(corpora: Path) -> None:
    whole = write_tiny_llama(corpora / "whole.gguf", encoding="F32", embedding="F32", layers=1)
    tensors = tensors_of(whole)
    whole.unlink()
    for shards, readers in (
        (1, {"safetensors": "model.safetensors", "config": "config.json", "tokenizer": "tokenizer.json"}),
        (1, {"settings": "tokenizer_config.json"}),
        (2, {"index": "model.safetensors.index.json"}),
    ):
        for reader, file in readers.items():
            around = write_folder(corpora / "around" / reader, tensors, shards=shards, num_hidden_layers=1)
            shutil.copy(around / file, corpora / reader / "sound")
    folder = corpora / "around" / "pieces"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": "<s>", "eos_token": "</s>"}))
    added = {"bos_token": "<s>", "added_tokens_decoder": {"5": {"content": "<tool>", "special": True}}}
    (corpora / "settings" / "added").write_text(json.dumps(added))
    template = {"chat_template": [{"name": "default", "template": CHAT_TEMPLATE}], "add_bos_token": True}
    (corpora / "settings" / "named").write_text(json.dumps(template))


def _write_published(folder: Path) -> None:
    """An input is a byte, which of the methods it is, and its config.json or its model.safetensors."""
    for number, method in enumerate(published_models.SETTINGS):
        around = folder.parent / "around" / "published" / str(number)
        around.mkdir(parents=True)
        published_models.write_published_llama(around, method)
        for file in ("config.json", "model.safetensors"):
            (folder / f"{number}-{file}").write_bytes(bytes([number]) + (around / file).read_bytes())


def _pieces(model: str) -> bytes:
    texts = [SPACE, "a", "b", "ab", SPACE + "a", SPACE + "ab"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *texts]
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(texts)
    scores = [0.0] * 259 + [-float(rank) for rank in range(len(texts))]
    return model_proto(pieces, scores, types, model=model, unknown=0, add_prefix=True, remove_extra=False)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python fuzz/seeds.py FOLDER, where a corpus for each reader is written")
    main(Path(sys.argv[1]))
