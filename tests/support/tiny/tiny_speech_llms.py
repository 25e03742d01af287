"""Tiny random speech LLMs as published: Qwen2-Audio and Voxtral by transformers, Ultravox by a twin of its own code.

Each `write_…` writes a checkpoint, and returns a function from audio and the ids around the speech to greedy tokens.
"""

import io
import itertools
import json
import tarfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
import yaml
from safetensors.torch import save_file
from transformers import WhisperFeatureExtractor

from export.importers.sentencepiece import BPE
from models.protocols import Float32
from tests.support.tiny.reference_tokenisers import tiny_pieces, write_model
from tests.support.tiny.tiny_checkpoints import (
    spread_weights,
    write_qwen_tokeniser,
    write_tekken_tokeniser,
    write_tokeniser,
)
from tests.support.tiny.tiny_llms import llm_config, write_llm
from tests.support.tiny.tiny_mt5 import write_unigram_tokeniser

Greedy = Callable[[Float32, Sequence[int], Sequence[int], int], list[int]]
"""(audio, ids before the speech, ids after it, how many tokens)."""
AUDIO = {"encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "d_model": 32, "num_mel_bins": 128}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
VOXTRAL_SPECIALS = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AUDIO]", "[BEGIN_AUDIO]", "[TRANSCRIBE]")
QWEN3_ASR_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|audio_start|>", "<|audio_end|>", "<|audio_pad|>", "<asr_text>",
    "<timestamp>",
)  # fmt: skip

GRANITE_SPECIALS = ("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|audio|>")
GRANITE_CHAT = (
    "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] }}"
    "{{ '<|end_of_text|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)


def _text_config(kind: str, ids: dict[str, int]) -> dict[str, Any]:
    return {"model_type": kind, **llm_config(kind, max(ids.values()) + 1), "eos_token_id": ids["<|im_end|>"]}


def _generate(model: Any, ids: Sequence[int], count: int, **inputs: Any) -> list[int]:
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        written = model.generate(
            input_ids=tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=count, min_new_tokens=count,
            do_sample=False, pad_token_id=0, **inputs,
        )  # fmt: skip
    return list(written[0, len(ids) :].tolist())


def write_qwen2_audio(folder: Path) -> Greedy:
    folder.mkdir(parents=True)
    ids = write_tokeniser(folder / "tokenizer.json", SPECIALS)
    torch.manual_seed(11)
    audio = {**AUDIO, "max_source_positions": 1500}
    config = transformers.Qwen2AudioConfig(
        audio_config=audio, text_config=_text_config("qwen2", ids), audio_token_index=ids["<|AUDIO|>"]
    )
    model: Any = transformers.Qwen2AudioForConditionalGeneration(config)
    model.eval()
    spread_weights(model, 0.12)
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=128)

    def greedy(samples: Float32, before: Sequence[int], after: Sequence[int], count: int) -> list[int]:
        given = extractor(samples, sampling_rate=16_000, return_tensors="pt", return_attention_mask=True)
        valid = int(given.attention_mask.sum())
        frames = (((valid - 1) // 2 + 1) - 2) // 2 + 1
        prompt = [*before, *[ids["<|AUDIO|>"]] * frames, *after]
        return _generate(model, prompt, count, input_features=given.input_features, feature_attention_mask=given.attention_mask)

    return greedy


def write_voxtral(folder: Path) -> Greedy:
    """Write it with a tokeniser in Mistral's format, as the hub has it."""
    folder.mkdir(parents=True)
    ids, vocabulary = write_tekken_tokeniser(folder, VOXTRAL_SPECIALS)
    torch.manual_seed(12)
    audio = {
        "model_type": "voxtral_encoder", "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_mel_bins": 128, "max_source_positions": 1500,
    }  # fmt: skip
    text = {"model_type": "llama", **llm_config("llama", vocabulary), "eos_token_id": ids["</s>"]}
    config = transformers.VoxtralConfig(audio_config=audio, text_config=text, audio_token_id=ids["[AUDIO]"])
    model: Any = transformers.VoxtralForConditionalGeneration(config)
    model.eval()
    spread_weights(model, 0.12)
    model.save_pretrained(folder)
    extractor = WhisperFeatureExtractor(feature_size=128)

    def greedy(samples: Float32, before: Sequence[int], after: Sequence[int], count: int) -> list[int]:
        features = extractor(samples, sampling_rate=16_000, return_tensors="pt").input_features
        return _generate(model, [*before, *[ids["[AUDIO]"]] * 375, *after], count, input_features=features)

    return greedy


class UltravoxProjector(torch.nn.Module):
    """The projector of Ultravox 0.5 and later (`UltravoxProjector` of its published code)."""

    def __init__(self, width: int, stacked: int, hidden: int, out: int) -> None:
        super().__init__()
        self.stacked = stacked
        self.ln_pre = torch.nn.RMSNorm(width * stacked, eps=1e-6)
        self.linear_1 = torch.nn.Linear(width * stacked, hidden, bias=False)
        self.ln_mid = torch.nn.RMSNorm(hidden // 2, eps=1e-6)
        self.linear_2 = torch.nn.Linear(hidden // 2, out, bias=False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        padded = torch.nn.functional.pad(states, (0, 0, 0, -len(states) % self.stacked))
        hidden = self.linear_1(self.ln_pre(padded.reshape(-1, self.stacked * states.shape[1])))
        value, gate = hidden.chunk(2, dim=-1)
        frames: torch.Tensor = self.linear_2(self.ln_mid(value * torch.nn.functional.silu(gate)))
        return frames


def write_ultravox(folder: Path) -> Greedy:
    """Write the LLM beside the checkpoint, as Ultravox names it by its id; its encoder is in the checkpoint."""
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    llm = write_llm(folder.parent / "ultravox-llm", "llama")
    folder.mkdir(parents=True)
    torch.manual_seed(13)
    encoder = WhisperEncoder(transformers.WhisperConfig(**AUDIO, max_source_positions=1500))  # type: ignore[arg-type]
    projector = UltravoxProjector(32, 8, 48, llm.config.hidden_size)
    for module in (encoder, projector):
        module.eval()
        spread_weights(module, 0.12)
    tensors = {f"audio_tower.{name}": tensor for name, tensor in encoder.state_dict().items()}
    tensors |= {f"multi_modal_projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    save_file({name: tensor.to(torch.float32).contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {
        "model_type": "ultravox", "stack_factor": 8, "hidden_size": 48, "projector_act": "swiglu", "projector_ln_mid": True,
        "audio_config": AUDIO, "text_model_id": str(folder.parent / "ultravox-llm"), "text_config": {},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    extractor = WhisperFeatureExtractor(feature_size=128)

    def greedy(samples: Float32, before: Sequence[int], after: Sequence[int], count: int) -> list[int]:
        whole = torch.nn.functional.pad(torch.from_numpy(samples), (0, -len(samples) % 1280)).numpy()
        features = extractor(whole, sampling_rate=16_000, return_tensors="pt", padding="longest").input_features
        states = features.shape[2] // 2
        table = encoder.embed_positions
        encoder.embed_positions = torch.nn.Embedding.from_pretrained(table.weight[:states].detach())
        encoder.config.max_source_positions = encoder.max_source_positions = states
        with torch.inference_mode():
            frames = projector(encoder(features).last_hidden_state[0])
            embed = llm.get_input_embeddings()
            parts = [embed(torch.tensor(before)), frames, embed(torch.tensor(after))]
            inputs = torch.cat(parts)[None]
            written = llm.generate(
                inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long), max_new_tokens=count,
                min_new_tokens=count, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        encoder.embed_positions = table
        return list(written[0].tolist())

    return greedy


def sharpen_attention(llm: Any) -> None:
    """Let a tiny Qwen3 attend to few positions and tell tokens apart, so that each audio has an answer of its own."""
    torch.nn.init.normal_(llm.embed_tokens.weight)
    torch.nn.init.normal_(llm.norm.weight)
    for layer in llm.layers:
        torch.nn.init.normal_(layer.self_attn.q_norm.weight, mean=4.0, std=0.5)


def write_qwen3_asr(folder: Path) -> Greedy:
    """Write it as transformers does; its tokeniser, like the hub's, is two files of Qwen's."""
    folder.mkdir(parents=True)
    ids = write_qwen_tokeniser(folder, QWEN3_ASR_SPECIALS)
    torch.manual_seed(14)
    audio = {**AUDIO, "output_dim": 64, "downsample_hidden_size": 8, "n_window": 50, "n_window_infer": 200}
    config = transformers.Qwen3ASRConfig(
        audio_config=audio, text_config=_text_config("qwen3", ids), audio_token_id=ids["<|audio_pad|>"],
        timestamp_token_id=ids["<timestamp>"], pad_token_id=0, eos_token_id=[ids["<|im_end|>"], ids["<|endoftext|>"]],
    )  # fmt: skip
    model: Any = transformers.Qwen3ASRForConditionalGeneration(config)
    model.eval()
    spread_weights(model, 0.3)
    sharpen_attention(model.model.language_model)
    model.save_pretrained(folder)
    extractor = transformers.Qwen3ASRFeatureExtractor()

    def greedy(samples: Float32, before: Sequence[int], after: Sequence[int], count: int) -> list[int]:
        given = extractor(samples, sampling_rate=16_000, padding="longest", return_attention_mask=True)
        features = {"input_features": given.input_features, "input_features_mask": given.attention_mask}
        with torch.inference_mode():
            frames = len(model.get_audio_features(**features).pooler_output)
        return _generate(model, [*before, *[ids["<|audio_pad|>"]] * frames, *after], count, **features)

    return greedy


def granite_features(samples: Float32) -> torch.Tensor:
    """Return what `GraniteSpeechFeatureExtractor` gives [1, frames, 160], without torchaudio, which that needs."""
    spectrum = torch.stft(
        torch.from_numpy(samples), 512, 160, 400, torch.hann_window(400), center=True, pad_mode="reflect", return_complex=True
    )
    filters = transformers.audio_utils.mel_filter_bank(257, 80, 0.0, 8000.0, 16_000, norm=None, mel_scale="htk")
    logarithm = (torch.from_numpy(filters).float().T @ spectrum.abs() ** 2).clip(min=1e-10).log10().T
    scaled = torch.maximum(logarithm, logarithm.max() - 8.0) / 4 + 1
    return scaled[: len(scaled) // 2 * 2].reshape(1, -1, 160)


def write_granite_speech(folder: Path, *, head: bool = False, plus: bool = False) -> Greedy:
    """Write one as 4.x are, without an adapter; `head` adds a CTC head for the LLM's tokens, `plus` states of a lower layer."""
    folder.mkdir(parents=True)
    ids = write_tokeniser(folder / "tokenizer.json", GRANITE_SPECIALS)
    named = {"chat_template": GRANITE_CHAT, "eos_token": "<|end_of_text|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    torch.manual_seed(15)
    encoder: dict[str, Any] = {
        "input_dim": 160, "num_layers": 4, "hidden_dim": 32, "num_heads": 2, "output_dim": 42, "context_size": 20,
        "max_pos_emb": 64, "conv_kernel_size": 15, "conv_expansion_factor": 2,
    }  # fmt: skip
    if plus:
        encoder["cat_hidden_layers"] = [1]
    projector = {
        "model_type": "blip_2_qformer", "hidden_size": 32, "encoder_hidden_size": 64 if plus else 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64, "cross_attention_frequency": 1, "vocab_size": 200,
    }  # fmt: skip
    text = {
        "model_type": "granite",
        **llm_config("granite", max(ids.values()) + 1),
        "eos_token_id": ids["<|end_of_text|>"],
        "tie_word_embeddings": False,
    }
    kind = "GraniteSpeechPlus" if plus else "GraniteSpeech"
    config = getattr(transformers, f"{kind}Config")(
        encoder_config=encoder, projector_config=projector, text_config=text, audio_token_index=ids["<|audio|>"],
        downsample_rate=5, window_size=15, has_lora_adapter=False, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    model.eval()
    spread_weights(model, 0.2)
    for layer in model.model.encoder.layers:
        torch.nn.init.uniform_(layer.conv.batch_norm.running_var, 0.5, 2.0)
        torch.nn.init.normal_(layer.conv.batch_norm.running_mean)
    model.save_pretrained(folder)
    if head:
        labels = config.text_config.vocab_size + 1
        tensors = {"weight": torch.randn(labels, 32), "bias": torch.randn(labels)}
        save_file(tensors, folder / "out_llm.safetensors")

    def greedy(samples: Float32, before: Sequence[int], after: Sequence[int], count: int) -> list[int]:
        features = granite_features(samples)
        frames = -(-features.shape[1] // 15) * 3
        prompt = [*before, *[ids["<|audio|>"]] * frames, *after]
        return _generate(model, prompt, count, input_features=features)

    return greedy


class LinearProjector(torch.nn.Linear):
    """Canary-Qwen's projector, with a name of its own."""


class LoraLinear(torch.nn.Module):
    """A linear layer with an adapter beside it, as peft computes it."""

    def __init__(self, base: torch.nn.Linear, rank: int, scale: float) -> None:
        super().__init__()
        self.base_layer, self.scale = base, scale
        self.first = torch.nn.Linear(base.in_features, rank, bias=False)
        self.second = torch.nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        whole: torch.Tensor = self.base_layer(x) + self.scale * self.second(self.first(x))
        return whole


def new_fast_conformer(bins: int = 128, scaled: bool = False) -> Any:
    """Return transformers' tiny random `ParakeetEncoder`, whose normalisations over batches have counted something."""
    config = transformers.ParakeetEncoderConfig(
        hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64, num_mel_bins=bins,
        subsampling_conv_channels=8, scale_input=scaled,
    )  # fmt: skip
    encoder: Any = transformers.ParakeetEncoder(config)
    encoder.eval()
    spread_weights(encoder, 0.2)
    for layer in encoder.layers:
        torch.nn.init.uniform_(layer.conv.norm.running_var, 0.5, 2.0)
        torch.nn.init.normal_(layer.conv.norm.running_mean)
    return encoder


def write_parakeet(folder: Path) -> Any:
    """Write a `ParakeetEncoder` of 80 bins; return it."""
    torch.manual_seed(21)
    encoder = new_fast_conformer(bins=80, scaled=True)
    encoder.save_pretrained(folder)
    return encoder


def nemo_names(encoder: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a `ParakeetEncoder` by NeMo's names."""
    names = {
        "subsampling.layers.": "pre_encode.conv.", "subsampling.linear.": "pre_encode.out.",
        "self_attn.o_proj": "self_attn.linear_out", "relative_k_proj": "linear_pos", "bias_u": "pos_bias_u",
        "bias_v": "pos_bias_v", "conv.norm.": "conv.batch_norm.",
        **{f"self_attn.{part}_proj": f"self_attn.linear_{part}" for part in "qkv"},
    }  # fmt: skip
    tensors = {}
    for name, tensor in encoder.state_dict().items():
        renamed = name
        for old, new in names.items():
            renamed = renamed.replace(old, new)
        tensors[renamed] = tensor
    return tensors


def write_canary_qwen(folder: Path) -> Greedy:
    """Write it as NeMo does: no tokeniser, which is that of the LLM that it names, and the adapter beside the weights."""
    llm = write_llm(folder.parent / "canary-llm", "qwen3")
    folder.mkdir(parents=True)
    torch.manual_seed(16)
    sharpen_attention(llm.model)
    encoder, projector = new_fast_conformer(), LinearProjector(32, llm.config.hidden_size)
    spread_weights(projector, 0.3)
    tensors = {f"perception.encoder.{name}": tensor for name, tensor in nemo_names(encoder).items()}
    tensors |= {f"perception.proj.{name}": tensor for name, tensor in projector.state_dict().items()}
    tensors["embed_tokens.weight"] = llm.model.embed_tokens.weight.detach()
    for layer in llm.model.layers:
        for name in ("q_proj", "v_proj"):
            adapted = LoraLinear(getattr(layer.self_attn, name), 4, 2.0)
            torch.nn.init.normal_(adapted.first.weight, std=0.2)
            torch.nn.init.normal_(adapted.second.weight, std=0.2)
            setattr(layer.self_attn, name, adapted)
    for name, tensor in llm.state_dict().items():
        adapter = name.replace("first.", "lora_A.default.").replace("second.", "lora_B.default.")
        if "embed_tokens" not in name and "lm_head" not in name:
            tensors[f"llm.base_model.model.{adapter}"] = tensor
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    config = {
        "audio_locator_tag": "<|audioplaceholder|>", "prompt_format": "qwen", "pretrained_weights": False,
        "pretrained_llm": str(folder.parent / "canary-llm"),
        "lora": {"r": 4, "lora_alpha": 8, "lora_dropout": 0.01, "target_modules": ["q_proj", "v_proj"]},
        "perception": {
            "encoder": {
                "n_layers": 3, "d_model": 32, "n_heads": 2, "feat_in": 128, "conv_kernel_size": 9, "xscaling": False,
                "subsampling": "dw_striding", "subsampling_factor": 8, "self_attention_model": "rel_pos",
                "att_context_size": [-1, -1], "conv_norm_type": "batch_norm",
            },
            "modality_adapter": {"_target_": "nemo.collections.speechlm2.modules.perception.IdentityConnector", "d_model": 32},
            "preprocessor": {
                "features": 128, "normalize": "per_feature", "n_fft": 512, "window": "hann", "window_size": 0.025,
                "window_stride": 0.01, "sample_rate": 16_000, "log": True, "dither": 1e-5,
            },
            "output_dim": llm.config.hidden_size,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    extractor = transformers.ParakeetFeatureExtractor(feature_size=128)

    def greedy(samples: Float32, before: Sequence[int], after: Sequence[int], count: int) -> list[int]:
        given = extractor(samples, sampling_rate=16_000, return_tensors="pt")
        with torch.inference_mode():
            encoded = encoder(given.input_features, attention_mask=given.attention_mask)
            frames = projector(encoded.last_hidden_state[0, : int(encoded.attention_mask.sum())])
            embed = llm.get_input_embeddings()
            inputs = torch.cat([embed(torch.tensor(before)), frames, embed(torch.tensor(after))])[None]
            written = llm.generate(
                inputs_embeds=inputs, attention_mask=torch.ones(inputs.shape[:2], dtype=torch.long), max_new_tokens=count,
                min_new_tokens=count, do_sample=False, pad_token_id=0,
            )  # fmt: skip
        return list(written[0].tolist())

    return greedy


def centre_head(model: Any, extractor: Any, blank: int) -> None:
    """Give a CTC head weights that tell the states of noise apart, and a blank that wins in about half of the frames."""
    noise = torch.randn(64_000, generator=torch.Generator().manual_seed(0)).numpy()
    features = extractor(noise, sampling_rate=16_000, return_tensors="pt").input_features
    with torch.inference_mode():
        states = model.encoder(features).last_hidden_state[0]
        torch.nn.init.normal_(model.ctc_head.weight)
        weight = model.ctc_head.weight[:, :, 0].T
        scores = (states - states.mean(0)) @ weight
        model.ctc_head.bias.copy_(-states.mean(0) @ weight)
        model.ctc_head.bias[blank] -= (scores[:, blank] - scores[:, :blank].amax(1)).median()


def write_parakeet_ctc(folder: Path) -> Greedy:
    """Write a `ParakeetForCTC`, with a tokeniser of SentencePiece's kind and a card; its greedy tokens need no prompt."""
    folder.mkdir(parents=True)
    tokens = write_unigram_tokeniser(folder / "tokenizer.json")
    (folder / "README.md").write_text("---\nlanguage:\n- en\nlicense: cc-by-4.0\n---\nA twin.\n")
    torch.manual_seed(22)
    encoder = new_fast_conformer(bins=80, scaled=True)
    config = transformers.ParakeetCTCConfig(vocab_size=tokens + 1, pad_token_id=tokens, encoder_config=encoder.config.to_dict())
    model: Any = transformers.ParakeetForCTC(config).eval()
    model.encoder.load_state_dict(encoder.state_dict())
    extractor = transformers.ParakeetFeatureExtractor(feature_size=80)
    centre_head(model, extractor, tokens)
    model.save_pretrained(folder)

    def greedy(samples: Float32, _before: Sequence[int], _after: Sequence[int], count: int) -> list[int]:
        given = extractor(samples, sampling_rate=16_000, return_tensors="pt")
        path = model.generate(input_features=given.input_features, attention_mask=given.attention_mask)[0].tolist()
        return [token for token, _ in itertools.groupby(path) if token != tokens][:count]

    return greedy


def write_parakeet_nemo(file: Path, *, hybrid: bool = False, **changes: Any) -> Greedy:
    """Write a Parakeet as NeMo packs it; a `hybrid` has a transducer's decoder beside its CTC head.

    `changes` are values of the configuration that are other ones.
    """
    pieces = tiny_pieces(BPE)
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(23)
    encoder = new_fast_conformer(bins=80, scaled=True)
    labels = len(pieces)
    config = transformers.ParakeetCTCConfig(vocab_size=labels + 1, pad_token_id=labels, encoder_config=encoder.config.to_dict())
    model: Any = transformers.ParakeetForCTC(config).eval()
    model.encoder.load_state_dict(encoder.state_dict())
    extractor = transformers.ParakeetFeatureExtractor(feature_size=80)
    centre_head(model, extractor, labels)
    head = "ctc_decoder" if hybrid else "decoder"
    state = OrderedDict((f"encoder.{name}", tensor) for name, tensor in nemo_names(model.encoder).items())
    state |= {f"{head}.decoder_layers.0.{name}": tensor for name, tensor in model.ctc_head.state_dict().items()}
    state["preprocessor.featurizer.window"] = torch.hann_window(400)
    if hybrid:
        state["decoder.prediction.embed.weight"] = torch.zeros(labels + 1, 8)
    described = {"num_classes": labels, "vocabulary": [piece.text for piece in pieces]}
    kind = "hybrid_rnnt_ctc_bpe_models.EncDecHybridRNNTCTCBPEModel" if hybrid else "ctc_bpe_models.EncDecCTCModelBPE"
    whole = {
        "target": f"nemo.collections.asr.models.{kind}",
        "preprocessor": {"features": 80, "normalize": "per_feature", "window_size": 0.025, "sample_rate": 16_000},
        "encoder": {
            "n_layers": 3, "d_model": 32, "n_heads": 2, "feat_in": 80, "xscaling": True, "subsampling": "dw_striding",
            "subsampling_factor": 8, "att_context_size": [-1, -1], "conv_norm_type": "batch_norm",
        },
        **({"aux_ctc": {"decoder": described}} if hybrid else {"decoder": described}),
        "tokenizer": {"type": "bpe", "model_path": "nemo:0a1b_tokenizer.model"},
        **changes,
    }  # fmt: skip
    weights = io.BytesIO()
    torch.save(state, weights)
    members = {
        "./model_config.yaml": yaml.safe_dump(whole).encode(),
        "./0a1b_tokenizer.model": write_model(pieces, BPE),
        "./model_weights.ckpt": weights.getvalue(),
    }
    write_archive(file, members)

    def greedy(samples: Float32, _before: Sequence[int], _after: Sequence[int], count: int) -> list[int]:
        given = extractor(samples, sampling_rate=16_000, return_tensors="pt")
        path = model.generate(input_features=given.input_features, attention_mask=given.attention_mask)[0].tolist()
        return [token for token, _ in itertools.groupby(path) if token != labels][:count]

    return greedy


def write_archive(file: Path, members: Mapping[str, bytes], mode: Literal["w", "w:gz"] = "w") -> None:
    """Write a tar archive."""
    with tarfile.open(file, mode) as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


WRITERS: dict[str, Callable[[Path], Greedy]] = {
    "ultravox": write_ultravox,
    "qwen2-audio": write_qwen2_audio,
    "voxtral": write_voxtral,
    "canary-qwen": write_canary_qwen,
    "qwen3-asr": write_qwen3_asr,
    "granite-speech": write_granite_speech,
    "granite-speech-head": partial(write_granite_speech, head=True),
    "granite-speech-plus": partial(write_granite_speech, plus=True),
    "parakeet-ctc": write_parakeet_ctc,
}
