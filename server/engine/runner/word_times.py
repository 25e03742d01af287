"""When the words of an answer were said."""

import logging
import time

from models.assemble import Models
from server.engine.runner.sequence import SequenceState
from server.engine.types.events import Word

logger = logging.getLogger(__name__)


def time_words(models: Models, sequence: SequenceState) -> None:
    """Give a sequence that has just finished the words that its request asks for; never raises."""
    timer, encoded, request = models.word_timer, sequence.encoded, sequence.request
    if not request.word_times or timer is None or encoded is None:
        return
    started_s = time.perf_counter()
    try:
        words = timer.times(encoded, request.audio, sequence.tokens, sequence.detokeniser.text)
    except Exception as error:
        logger.exception("request %s: its words could not be timed", request.id)
        sequence.fail(error)
    else:
        sequence.words = tuple(Word(word.text, word.start_s, word.end_s) for word in words)
    sequence.times.detokenise_s += time.perf_counter() - started_s
