"""The parts that Ultravox, Qwen2-Audio and Voxtral share: a Whisper encoder, and an LLM of llama's kind behind a projector."""

from dataclasses import dataclass

from export.bundle_parts import NO_SILENCE, HeardSilence, write_encoder
from export.checkpoints.checkpoint import Checkpoint, read_value
from export.checkpoints.conversion import Conversion, read_licence
from export.checkpoints.language_model import LanguageModel
from export.checkpoints.whisper import read_encoder
from models.bundle.schema import BundleDescription
from models.bundle.sections import ProjectorSection
from models.encoders.whisper import Arrays
from models.features.log_mel import HOPS_OF_A_FRAME


@dataclass(frozen=True)
class WhisperLlm:
    """The parts of such a model on their way into a bundle; `turn` is what the user's turn holds, with the marks."""

    checkpoint: Checkpoint
    encoder: Arrays
    llm: LanguageModel
    turn: str
    silence: HeardSilence = NO_SILENCE
    pooled: int = 1
    hop_multiple: int = HOPS_OF_A_FRAME

    def write(self, conversion: Conversion, projector: ProjectorSection) -> BundleDescription:
        """Write encoder and LLM; the projector's graph is written already."""
        folder, precision = conversion.folder, conversion.options.precision
        encoder = write_encoder(self.encoder, precision, folder, self.silence, pooled=self.pooled, hop_multiple=self.hop_multiple)
        llm = self.llm.write(precision, folder)
        return conversion.describe(
            encoder=encoder,
            projector=projector,
            llm=llm,
            prompt=self.llm.lay_out(self.turn),
            licences={self.checkpoint.name: read_licence(self.checkpoint)},
        )


def read_audio_tower(checkpoint: Checkpoint) -> Arrays:
    """Return the encoder of a checkpoint that has it as its `audio_tower`; some configurations name its sizes as LLMs do."""
    config = dict(read_value(checkpoint.config, "audio_config", checkpoint.name))
    own = {
        "d_model": "hidden_size",
        "encoder_layers": "num_hidden_layers",
        "encoder_attention_heads": "num_attention_heads",
        "encoder_ffn_dim": "intermediate_size",
    }
    config |= {name: config[other] for name, other in own.items() if name not in config and other in config}
    return read_encoder(checkpoint.tensors.part("audio_tower."), config, checkpoint.name)
