"""Hugging Face folders: the same model as the GGUF file converted from them, whole or in shards, float or rounded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import MODEL_ARCH as ARCH
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

import tiny_gguf
from architectures import native_logits as llm_logits
from architectures import random_tokens
from converted_gguf import SETTINGS, Case, make_folder
from cpuinfer import LLM, SamplingParams, cli, loader, weights
from cpuinfer.describe import describe
from cpuinfer.errors import InvalidRequest, NumericalError, UnsupportedFormat, UnsupportedModel
from cpuinfer.formats.canonical import FloatRows
from cpuinfer.reference import Reference
from cpuinfer.weight import Weight
from kept_halves import assert_native
from tiny_folder import Arrays, tensors_of, write_folder
from tiny_gguf import write_tiny_llama

TOKENS = [1, 40, 77, 200, 9, 3, 60, 61, 62, 100]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of F32 weights."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return write_tiny_llama(path, encoding="F32", embedding="F32")


@pytest.fixture(scope="module")
def arrays(original: Path) -> Arrays:
    return tensors_of(original)


@pytest.fixture
def folder(arrays: Arrays, tmp_path: Path) -> Path:
    return write_folder(tmp_path / "tiny", arrays)


def reference_logits(path: Path, quantize: str | None = None) -> np.ndarray:
    blueprint = loader.open_model(path, quantize=quantize)
    return Reference(blueprint.graph, blueprint.weight).logits(TOKENS)


def native_logits(path: Path, quantize: str | None) -> np.ndarray:
    with LLM(path, quantize=quantize, threads=2, context=64) as llm:
        return llm.logits(TOKENS)


def test_a_folder_is_the_model_of_the_file_converted_from_it(folder: Path, original: Path) -> None:
    # The same products, summed in another order within a head.
    np.testing.assert_allclose(reference_logits(folder, "none"), reference_logits(original), rtol=0, atol=1e-12)


def test_float_weights_kept_as_they_are_run_like_those_of_the_gguf_file(folder: Path, original: Path) -> None:
    blueprint = loader.open_model(original)
    for found in (native_logits(folder, "none"), native_logits(original, None)):
        assert_native(found, blueprint.graph, blueprint.weight, TOKENS)


@pytest.mark.parametrize("named", ["model.safetensors.index.json", ""])
def test_shards_give_the_same_bits_as_one_file(arrays: Arrays, folder: Path, named: str) -> None:
    shards = write_folder(folder.parent / "shards", arrays, shards=3)
    np.testing.assert_array_equal(native_logits(shards / named, "none"), native_logits(folder, "none"))


def test_the_weights_file_names_its_folder(folder: Path) -> None:
    np.testing.assert_array_equal(
        reference_logits(folder / "model.safetensors", "none"), reference_logits(folder, "none")
    )


def test_a_folder_generates_and_chats(folder: Path) -> None:
    with LLM(folder, threads=2, context=128) as llm:
        params = SamplingParams(max_tokens=5, temperature=0)
        assert len(llm.generate("the wor", params).token_ids) <= 5
        prompt = llm.chat([{"role": "user", "content": "hello"}], params).prompt_token_ids
        assert llm.tokenizer.decode(prompt).count("hello") == 1


NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "{{ tools | length }} tools"}]


@pytest.mark.parametrize("stored", ["tokenizer_config.json", "files", "GGUF"])
def test_of_several_templates_tools_take_the_one_made_for_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: str
) -> None:
    path = folder
    if stored == "GGUF":
        monkeypatch.setattr(tiny_gguf, "CHAT_TEMPLATE", NAMED)
        path = write_tiny_llama(tmp_path / "named.gguf")
    elif stored == "files":
        (folder / "additional_chat_templates").mkdir()
        (folder / "chat_template.jinja").write_text("plain")
        (folder / "additional_chat_templates/tool_use.jinja").write_text("{{ tools | length }} tools")
    else:
        (folder / stored).write_text(json.dumps({"chat_template": NAMED}))
    source = loader.open_model(path).source
    assert source.chat_template is not None
    template = source.chat_template(source.tokenizer())
    user = [{"role": "user", "content": "hello"}]
    assert (template.render(user), template.render(user, tools=[{}])) == ("plain", "1 tools")


def test_a_copy_of_the_embedding_table_as_head_is_left_out(arrays: Arrays, folder: Path) -> None:
    copied = {**arrays, "lm_head.weight": arrays["model.embed_tokens.weight"]}
    write_folder(folder.parent / "copied", copied)
    np.testing.assert_array_equal(reference_logits(folder.parent / "copied"), reference_logits(folder))


def test_an_own_head_is_read(arrays: Arrays, folder: Path) -> None:
    head = {**arrays, "lm_head.weight": 2 * arrays["model.embed_tokens.weight"]}
    own = write_folder(folder.parent / "own", head, tie_word_embeddings=False)
    np.testing.assert_allclose(reference_logits(own, "none"), 2 * reference_logits(folder, "none"), rtol=1e-12)


def test_a_head_that_differs_from_the_table_it_is_said_to_be_is_read(arrays: Arrays, folder: Path) -> None:
    head = {**arrays, "lm_head.weight": 2 * arrays["model.embed_tokens.weight"]}
    said = write_folder(folder.parent / "said", head, tie_word_embeddings=True)
    np.testing.assert_allclose(reference_logits(said, "none"), 2 * reference_logits(folder, "none"), rtol=1e-12)


def test_an_adapter_beside_the_weights_is_not_left_out_unsaid(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(UnsupportedModel, match="an adapter beside the weights"):
        loader.open_model(folder)


@pytest.mark.parametrize("quantize", ["none", "int4"])
def test_a_number_in_a_vector_s_place_is_refused_by_name(arrays: Arrays, tmp_path: Path, quantize: str) -> None:
    path = write_folder(tmp_path, {**arrays, "model.norm.weight": np.array(1, np.float32)})
    with pytest.raises(UnsupportedModel, match=r"model\.norm: 0 dimensions, expected 1"):
        loader.open_model(path, quantize=quantize)


def test_a_tensor_without_a_place_is_refused_by_its_name(arrays: Arrays, tmp_path: Path) -> None:
    path = write_folder(tmp_path, {**arrays, "model.layers.0.self_attn.sinks.weight": np.ones(4, np.float32)})
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.0\.self_attn\.sinks\.weight is not part of"):
        loader.open_model(path)


def test_float64_weights_are_refused_by_name_when_opened(arrays: Arrays, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    path = write_folder(tmp_path, {**arrays, name: arrays[name].astype(np.float64)})
    with pytest.raises(
        UnsupportedFormat, match=r"model\.layers\.1\.mlp\.up_proj\.weight: F64, expected F32, F16, BF16"
    ):
        loader.open_model(path)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"hidden_size": None}, "hidden_size is None"),
        ({"num_hidden_layers": 0}, "layers is 0"),
        ({"num_hidden_layers": 1 << 40}, "layers is 1099511627776"),
        ({"num_attention_heads": True}, "heads is True"),
        ({"num_key_value_heads": 3}, "4 heads are not a multiple of 3 key-value heads"),
        ({"rms_norm_eps": "small"}, "norm_eps is 'small'"),
        ({"num_hidden_layers": 3}, "model.layers.2.input_layernorm"),
        ({"num_hidden_layers": 1}, "model.layers.1.input_layernorm.weight has no place"),
        ({"vocab_size": 1000}, "model.embed_tokens.weight: 271 rows, expected the vocabulary of 1000"),
        ({"model_type": "t5"}, "architecture 't5' is not supported"),
        ({"hidden_act": "tanh"}, "activation 'tanh'"),
        ({"rope_scaling": {"rope_type": "odd"}}, "rope scaling 'odd', supported"),
        ({"rope_scaling": {"rope_type": "linear", "factor": "4"}}, "factor is '4'"),
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0]}}, "not a list of 8 numbers"),
        ({"quantization_config": {"quant_method": "quip"}}, "quip"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_by_key(
    arrays: Arrays, tmp_path: Path, config: dict[str, object], said: str
) -> None:
    path = write_folder(tmp_path, arrays, **config)
    with pytest.raises((UnsupportedModel, UnsupportedFormat)) as caught:
        loader.open_model(path)
    assert said in str(caught.value)
    assert str(tmp_path) in str(caught.value)


GEMMA = Case("gemma3_text", ARCH.GEMMA3, {"sliding_window": 6, "tie_word_embeddings": True}, absent=("lm_head",))
ENCODER = ("vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.bias", "multi_modal_projector.mm_input")
NAMES = {
    "older": ("language_model.model.", ""),
    "newer": ("model.language_model.", "model."),
}


@pytest.mark.parametrize("version", NAMES)
def test_of_gemma_3_with_an_image_encoder_the_text_part_is_read(
    version: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, encoder = NAMES[version]
    settings = {**SETTINGS, **GEMMA.settings, "model_type": "gemma3_text"}
    tensors = {name: values.astype(np.float32) for name, values in make_folder(GEMMA).items()}
    alone = write_model(tmp_path / "alone", settings, tensors)
    named = {name.replace("model.", text, 1): values for name, values in tensors.items()}
    named |= {encoder + name: np.ones(3, np.float32) for name in ENCODER}
    whole = write_model(tmp_path / "whole", {"model_type": "gemma3", "text_config": settings}, named)
    found, expected = (llm_logits(loader.open_model(path), random_tokens(40)) for path in (whole, alone))
    np.testing.assert_array_equal(found, expected)
    left_out = [f"{encoder}vision_tower", f"{encoder}multi_modal_projector"]
    assert (list(describe(whole).left_out), describe(alone).left_out) == (left_out, ())
    assert describe(whole).parameters == describe(alone).parameters
    assert cli.main(["show", str(whole)]) == 0
    assert ", ".join(left_out) in capsys.readouterr().out


def test_a_tensor_of_gemma_3_that_is_of_neither_part_is_refused(tmp_path: Path) -> None:
    settings = {**SETTINGS, **GEMMA.settings}
    named = {f"language_{name}": values.astype(np.float32) for name, values in make_folder(GEMMA).items()}
    path = write_model(
        tmp_path, {"model_type": "gemma3", "text_config": settings}, {**named, "audio_tower.x": np.ones(3)}
    )
    with pytest.raises(UnsupportedModel, match=r"audio_tower\.x is not part of the architecture"):
        loader.open_model(path)


def write_model(folder: Path, settings: dict[str, object], tensors: Arrays) -> Path:
    """A folder without a tokenizer."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("how", ["int4", "int8", "nf4"])
def test_quantised_folders_run_as_their_rounded_weights_do(folder: Path, how: str) -> None:
    rounded, exact = reference_logits(folder, how), reference_logits(folder, "none")
    native = native_logits(folder, how)
    # The kernels' own roundings are far smaller than those of the weights.
    assert np.abs(native - rounded).max() < np.abs(native - exact).max()
    assert describe(folder, quantize=how).memory.weights < describe(folder, quantize="none").memory.weights


def test_int4_with_embeddings_of_eight_bits_is_what_a_folder_becomes_unasked(folder: Path) -> None:
    layouts = {kind.kind: kind.layout for kind in describe(folder).tensors}
    assert layouts["embed_tokens"] == "int8"
    assert {layouts[name] for name in layouts if name.endswith("_proj")} == {"int4"}
    assert {layouts[name] for name in layouts if name.endswith("norm")} == {"f32"}


def test_quantising_what_is_not_float_is_refused(original: Path) -> None:
    with pytest.raises(UnsupportedFormat, match="leave out quantize"):
        loader.open_model(original, quantize="int8")


def test_an_unknown_quantisation_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="quantize: 'int2', expected one of int4, int8, nf4, none"):
        loader.open_model(folder, quantize="int2")


def float_weight(values: np.ndarray) -> Weight:
    return Weight(
        name="w",
        shape=values.shape,
        encoding="F32",
        layout="f32",
        file_bytes=values.nbytes,
        rows=lambda begin, end: FloatRows(values[begin:end], "f32"),
        floats=lambda: values.astype(np.float64),
    )


@pytest.mark.parametrize(("how", "encoding"), [("int4", "Q4_0"), ("int8", "Q8_0")])
def test_rounding_is_as_good_as_the_gguf_package_s(how: str, encoding: str) -> None:
    import gguf

    values = np.random.default_rng(0).standard_normal((64, 256)).astype(np.float32)
    kind = gguf.GGMLQuantizationType[encoding]
    theirs = np.abs(dequantize(quantize(values, kind), kind) - values)
    ours = np.abs(weights.quantised(float_weight(values), how).floats() - values)
    # Codes are chosen with the scale as stored, in fp16: no worse on the whole.
    assert np.square(ours).sum() <= np.square(theirs).sum()


@pytest.mark.parametrize("how", ["int4", "int8", "nf4"])
def test_a_group_of_zeros_stays_zeros_and_one_outlier_keeps_its_size(how: str) -> None:
    values = np.zeros((2, 128), np.float32)
    values[1, 5] = -3.0
    found = weights.quantised(float_weight(values), how).floats()
    np.testing.assert_allclose(found, values, rtol=2.0**-11, atol=0)  # of a scale in fp16


@pytest.mark.parametrize("how", ["int4", "int8", "nf4"])
@pytest.mark.parametrize("fault", [np.nan, np.inf, 1e38])
def test_weights_that_no_scale_holds_are_refused_at_load_naming_the_tensor(
    arrays: Arrays, tmp_path: Path, how: str, fault: float
) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    values = arrays[name].copy()
    values[3, 4] = fault
    path = write_folder(tmp_path, {**arrays, name: values})
    with pytest.raises(NumericalError, match=r"model\.layers\.1\.mlp\.up_proj\.weight: holds NaN") as caught:
        loader.load_program(loader.open_model(path, quantize=how), threads=1)
    assert str(path) in str(caught.value)


def test_loading_takes_no_more_than_the_packed_weights_and_the_largest_tensor(tmp_path: Path) -> None:
    hidden, wide, layers, vocabulary = 1024, 4096, 5, 2048
    shapes = {"model.embed_tokens": (vocabulary, hidden), "model.norm": (hidden,)}
    for i in range(layers):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.self_attn.{x}_proj": (hidden, hidden) for x in "qkvo"}
        shapes |= {f"{at}.mlp.{x}_proj": (wide, hidden) for x in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj": (hidden, wide), f"{at}.input_layernorm": (hidden,)}
        shapes |= {f"{at}.post_attention_layernorm": (hidden,)}
    write_sparse(tmp_path, shapes)
    config = {"hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": 16, "num_key_value_heads": 16}
    settings = {"model_type": "llama", "intermediate_size": wide, "vocab_size": vocabulary, "rms_norm_eps": 1e-5}
    settings |= {**config, "max_position_embeddings": 64, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    code = (
        "import pathlib, re, sys; from cpuinfer import loader; from cpuinfer.describe import describe\n"
        "program = loader.load_program(loader.open_model(sys.argv[1]), threads=2)\n"
        # Not ru_maxrss, which a process takes over from the one that started it.
        "peak = re.search(r'VmHWM:\\s*(\\d+) kB', pathlib.Path('/proc/self/status').read_text()).group(1)\n"
        "print(int(peak) * 1024, describe(sys.argv[1]).memory.weights)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    peak, packed = map(int, run.stdout.split())
    assert (tmp_path / "model.safetensors").stat().st_size > packed + wide * hidden * 4 + (200 << 20)
    assert peak <= packed + wide * hidden * 4 + (200 << 20)


def write_sparse(folder: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """model.safetensors of F32 zeros that take no room on the disk."""
    header, end = {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[f"{name}.weight"] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
