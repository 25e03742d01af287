"""NeMo's `.nemo` files: a tar archive with a configuration, torch's weights and a tokeniser, all read where they lie.

A Parakeet in one is shown as transformers saves it, so that `export.checkpoints.parakeet` does the rest. A folder into which
such a file was unpacked is read likewise.
"""

import tarfile
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from export.checkpoints.checkpoint import Checkpoint, read_value, require_known_values
from export.checkpoints.safetensors_file import CheckpointError, Tensors
from export.importers.sentencepiece import write_sentencepiece
from export.importers.torch_file import FilePart, read_torch_file
from models.encoders.fast_conformer import SUBSAMPLING
from models.features.log_mel import SAMPLE_RATE_HZ

SUFFIX = ".nemo"
CONFIGURATION, WEIGHTS = "model_config.yaml", "model_weights.ckpt"
MAX_CONFIGURATION_BYTES, MAX_TOKENISER_BYTES = 20 * 2**20, 100 * 2**20
IN_ARCHIVE = "nemo:"
"""The beginning of a path that names a file of the archive."""
HEADS = {
    "EncDecCTCModelBPE": ("decoder", "parakeet_ctc"),
    "EncDecHybridRNNTCTCBPEModel": ("aux_ctc.decoder", "parakeet_ctc"),
    "EncDecRNNTBPEModel": ("", "parakeet_rnnt"),
}
"""The models that are known, by their classes in NeMo: where the CTC head is described, and the kind in transformers."""
HEAD = "decoder_layers.0."
PARAKEET_NAMES = {
    "subsampling.layers.": "pre_encode.conv.",
    "subsampling.linear.": "pre_encode.out.",
    "self_attn.o_proj": "self_attn.linear_out",
    "relative_k_proj": "linear_pos",
    "bias_u": "pos_bias_u",
    "bias_v": "pos_bias_v",
    "conv.norm.": "conv.batch_norm.",
    **{f"self_attn.{part}_proj": f"self_attn.linear_{part}" for part in "qkv"},
}
"""Parts of transformers' names, and NeMo's."""
NEMO_ENCODER = {
    "subsampling": "dw_striding",
    "subsampling_factor": SUBSAMPLING,
    "self_attention_model": "rel_pos",
    "att_context_size": [-1, -1],
    "conv_norm_type": "batch_norm",
    "causal_downsampling": False,
}
NEMO_FEATURES = {
    "normalize": "per_feature",
    "n_fft": 512,
    "window": "hann",
    "window_size": 0.025,
    "window_stride": 0.01,
    "sample_rate": SAMPLE_RATE_HZ,
    "preemph": 0.97,
    "log": True,
}
"""The values of NeMo's encoders and features that are known; what a checkpoint does not name has them in NeMo."""


class NemoCheckpoint(Checkpoint):
    """A `.nemo` file in `folder`, or the folder itself, as a checkpoint of transformers; a card may lie beside the file."""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, by transformers' names."""
        given = self._configuration
        kind = str(given.get("target", "")).rpartition(".")[2]
        if kind not in HEADS:
            raise CheckpointError(f"{self.name} holds a {kind or 'model that names no class'}; known are {', '.join(HEADS)}")
        where, model_type = HEADS[kind]
        encoder = read_value(given, "encoder", self.name)
        features = read_value(given, "preprocessor", self.name)
        require_known_values(NEMO_ENCODER, encoder, "an encoder", self.name)
        require_known_values(NEMO_FEATURES, features, "features", self.name)
        config: dict[str, Any] = {
            "model_type": model_type,
            "encoder_config": {
                "num_mel_bins": read_value(features, "features", self.name),
                "hidden_size": read_value(encoder, "d_model", self.name),
                "num_hidden_layers": read_value(encoder, "n_layers", self.name),
                "num_attention_heads": read_value(encoder, "n_heads", self.name),
                "scale_input": encoder.get("xscaling", True),
            },
        }
        if where:
            head: Any = given
            for part in where.split("."):
                head = read_value(head, part, self.name)
            labels = int(read_value(head, "num_classes", self.name))
            config |= {"vocab_size": labels + 1, "pad_token_id": labels}
        return config

    @cached_property
    def tensors(self) -> Tensors:
        """The weights, by transformers' names."""
        part = self._part(WEIGHTS)
        found = Tensors(read_torch_file(part, f"{self.name}/{WEIGHTS}"), self.name)
        renamed = found.renamed({**self._head_names(found), "encoder.": "encoder."})
        for new, old in PARAKEET_NAMES.items():
            renamed = renamed.replaced(old, new)
        return renamed

    @cached_property
    def tokeniser_json(self) -> str:
        """The text of a `tokenizer.json`, made of SentencePiece's model."""
        tokeniser = self._configuration.get("tokenizer") or {}
        file = str(tokeniser.get("model_path") or "").removeprefix(IN_ARCHIVE).rpartition("/")[2]
        if not file.endswith(".model"):
            raise CheckpointError(f"{self.name} has a tokeniser of the type {tokeniser.get('type')!r}; known is SentencePiece's")
        try:
            return write_sentencepiece(self._read_member(file, MAX_TOKENISER_BYTES), {})
        except ValueError as error:
            raise CheckpointError(f"{self.name} has a tokeniser that cannot be used ({error})") from None

    @cached_property
    def _members(self) -> Mapping[str, FilePart]:
        """The files of the archive, or of the folder, by their names without folders."""
        if (self.folder / CONFIGURATION).is_file():
            return {each.name: FilePart(each, 0, each.stat().st_size) for each in self.folder.iterdir() if each.is_file()}
        file = self.folder / Path(self.name).name
        try:
            with tarfile.open(file, "r:") as archive:
                files = [each for each in archive if each.isreg()]
        except tarfile.TarError:
            raise CheckpointError(
                f"{self.name} is no plain tar archive: where it is a compressed one, unpack it into a folder (`tar -xf`), and "
                "pull that"
            ) from None
        return {each.name.rpartition("/")[2]: FilePart(file, each.offset_data, each.size) for each in files}

    def _part(self, member: str) -> FilePart:
        if member not in self._members:
            raise CheckpointError(f"{self.name} lacks {member}: in it are {', '.join(sorted(self._members)[:6]) or 'no files'}")
        return self._members[member]

    def _read_member(self, member: str, most_bytes: int) -> bytes:
        part = self._part(member)
        if part.size > most_bytes:
            raise CheckpointError(f"{self.name} has a {member} of {part.size} bytes; known are up to {most_bytes}")
        return part.read()

    @cached_property
    def _configuration(self) -> dict[str, Any]:
        """NeMo's own configuration."""
        try:
            content = yaml.safe_load(self._read_member(CONFIGURATION, MAX_CONFIGURATION_BYTES))
        except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
            raise CheckpointError(f"{self.name} has a {CONFIGURATION} that cannot be read") from None
        if not isinstance(content, dict):
            raise CheckpointError(f"{self.name} has a {CONFIGURATION} that names no values")
        return content

    @staticmethod
    def _head_names(tensors: Tensors) -> dict[str, str]:
        """Return how the CTC head is renamed: where there are two decoders, the other one is a transducer's."""
        own = "ctc_decoder." if any(name.startswith("ctc_decoder.") for name in tensors) else "decoder."
        return {f"{own}{HEAD}": "ctc_head."}


def is_nemo(path: Path) -> bool:
    """Return whether a path is a `.nemo` file, or a folder into which one was unpacked."""
    return (path.is_file() and path.suffix == SUFFIX) or (path / CONFIGURATION).is_file()
