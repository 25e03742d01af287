"""Voxtral's projector: four states stacked, and two linear layers (`models.projectors.two_layers`)."""

from typing import ClassVar

from models.projectors.two_layers import TwoLayersSection


class VoxtralSection(TwoLayersSection):
    """Voxtral's projector in `bundle.json`. The LLM was trained on the frames of the silence that fills 30 s, too."""

    reads_padding: ClassVar[bool] = True
