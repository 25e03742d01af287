"""When the words of an answer were said."""

import logging
import time

from models.assemble import Models
from server.engine.runner.sequence import Generation
from server.engine.types.events import Word

logger = logging.getLogger(__name__)


def time_words(models: Models, generation: Generation) -> None:
    """Give a generation that has just finished the words that its request asks for; never raises."""
    timer, heard, request = models.word_timer, generation.heard, generation.request
    if not request.word_times or timer is None or heard is None:
        return
    started_s = time.perf_counter()
    try:
        words = timer.times(heard, request.audio, generation.tokens, generation.detokeniser.text)
    except Exception as error:
        logger.exception("request %s: its words could not be timed", request.id)
        generation.fail(error)
    else:
        generation.words = tuple(Word(word.text, word.start_s, word.end_s) for word in words)
    generation.times.detokenise_s += time.perf_counter() - started_s
