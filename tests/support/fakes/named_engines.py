"""Scripted engines of several models, and a catalogue of further ones."""

from collections.abc import Callable

from server.engine.types.protocol import Engine
from server.registry.registry import ModelSource
from tests.support.fakes.fake_engine import FakeEngine


class NamedModel:
    """A model whose every answer to a file is its name. `engines` are all that were built for it, the newest last."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.build_error: Exception | None = None
        self.configure: Callable[[FakeEngine], None] = lambda _engine: None
        self.engines: list[FakeEngine] = []

    @property
    def engine(self) -> FakeEngine:
        return self.engines[-1]

    def source(self) -> ModelSource:
        return ModelSource(self.build(), self.build)

    def build(self) -> Engine:
        if self.build_error is not None:
            raise self.build_error
        engine = FakeEngine()
        engine.model_name, engine.text = self.name, f"text of {self.name}"
        self.configure(engine)
        self.engines.append(engine)
        return engine

    @property
    def calls(self) -> int:
        """How many files and sessions the model was given."""
        return sum(len(each.submitted) + len(each.sessions) + len(each.past_sessions) for each in self.engines)
