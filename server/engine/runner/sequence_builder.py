"""From a request to its sequence: whether its options go together, its prompt, and the decoders that it passes."""

from collections.abc import Callable, Sequence

from models.chain import Models
from models.protocols import ProjectorOutput
from models.speech_decoders.speech_model import LONGEST_TRANSCRIPT, SpeechModel
from models.text.constraint import TokenConstraint
from models.text.grammar import GrammarError
from models.text.tokeniser import Detokeniser, PromptIds, lay_out_prompt
from models.text.transcript_label import LabelledDetokeniser, lay_out_context
from server.engine.runner.sampling import Sampler
from server.engine.runner.sequence import SPEECH_DECODER, SequenceState
from server.engine.types.events import Event
from server.engine.types.options import Constraint, SamplingOptions
from server.engine.types.requests import InstructRequest, SpeechTask
from server.errors import InvalidConstraint, InvalidRequest, PromptTooLong

OWN_CONTEXT_TOKENS = 3
"""The token before a context, the one behind it, and the position of a transcript's end."""


def new_sequence(
    models: Models,
    request: InstructRequest,
    deliver: Callable[[Event], None],
    prompt_ids: PromptIds | None = None,
    encoded: ProjectorOutput | None = None,
) -> SequenceState:
    """Return the sequence of a request; `prompt_ids` are those of its instruction, if the caller has them already.

    About what the caller has `encoded`, the LLM answers. Raises `PromptTooLong`, `InvalidConstraint`, or `InvalidRequest`.
    """
    task = request.task
    check_task(models, task)
    if prompt_ids is None:
        prompt_ids = lay_out_task(models, task)
    before, after = models.boundaries(task.instruction)
    speech = 1
    if models.llm and len(prompt_ids) + len(before) + len(after) + speech > models.prompt_room(answer_tokens=1):
        place = "instruction" if models.label is None else "prompt" if task.prompt else "keywords"
        raise PromptTooLong(f"The {place} {'are' if place == 'keywords' else 'is'} too long for the model.", param=place)
    sampling = task.sampling
    constraint = compile_constraint(models, sampling.constraint)
    detokeniser = answer_detokeniser(models, task)
    sequence = SequenceState(request, deliver, prompt_ids, detokeniser, Sampler(sampling), constraint, sampling.max_tokens)
    sequence.encoded = encoded
    sequence.times_words = task.word_times != "none" and models.word_timer is not None
    sequence.language = None if models.label is None else task.language
    sequence.decoders = passed_decoders(models, task, is_encoded=encoded is not None)
    sequence.transcribing = models.speech is not None and sequence.decoders[:1] == (SPEECH_DECODER,)
    return sequence


def lay_out_task(models: Models, task: SpeechTask) -> PromptIds:
    """Return the LLM's prompt: with the instruction, or, where it only transcribes, with a context and a language's label."""
    if not models.decoders:
        return PromptIds((), ())
    if models.label is None:
        transcribes = models.transcribes(task.instruction)
        return lay_out_prompt(
            models.template,
            models.tokeniser,
            task.instruction,
            transcribes=transcribes,
            language=None if models.speech else task.language,
            keywords=task.keywords,
        )
    ids = lay_out_prompt(models.template, models.tokeniser, lay_out_context(task.prompt, task.keywords))
    forced = () if task.language is None else models.label.force(models.tokeniser, task.language)
    return PromptIds(ids.before_speech, (*ids.after_speech, *forced))


def lay_out_speech_context(speech: SpeechModel, prompt: str, keywords: Sequence[str]) -> list[int]:
    """Return the tokens that stand before a transcript: keywords, then the end of the text that comes before.

    Raises `InvalidRequest` for keywords that take more than half of the room. Of a prompt the last tokens that have room count
    (arXiv 2212.04356, section 2.3).
    """
    if not prompt and not keywords:
        return []
    room = speech.decoder.max_positions - speech.control_tokens - LONGEST_TRANSCRIPT - OWN_CONTEXT_TOKENS
    listed = speech.tokeniser.encode(f" {', '.join(keywords)}") if keywords else []
    if len(listed) > room // 2:
        raise InvalidRequest("The keywords are too many, or too long.", param="keywords")
    before = speech.tokeniser.encode(f" {prompt.strip()}") if prompt.strip() else []
    return [speech.tokens.previous, *listed, *before[max(0, len(before) - room + len(listed)) :]]


def answer_detokeniser(models: Models, task: SpeechTask) -> Detokeniser:
    """Return the detokeniser of the LLM's answer. Blanks around it are padding, unless a constraint asks for them.

    The label of a transcript is no part of its text; there is none where the request names the language.
    """
    sampling = task.sampling
    if models.label is not None and task.language is None:
        return LabelledDetokeniser(models.tokeniser, sampling.stop, models.label)
    return Detokeniser(models.tokeniser, sampling.stop, padding=None if sampling.constraint is None else "")


def passed_decoders(models: Models, task: SpeechTask, *, is_encoded: bool) -> tuple[int, ...]:
    """Return the decoders that a task passes, in order: none if only the encoder's output is wanted.

    The speech decoder's transcript is the answer where the instruction asks for that, and no constraint does for anything else.
    So is the draft, for which none is passed, where there is no decoder at all.
    """
    llm = len(models.decoders) - 1
    if task.sampling.max_tokens == 0 or not models.decoders:
        return ()
    if models.speech is None or is_encoded:
        return (llm,)
    if models.llm is None:
        return (SPEECH_DECODER,)
    is_spoken_text = models.transcribes(task.instruction) or models.translates(task.instruction)
    if is_spoken_text and task.sampling.constraint is None:
        return (SPEECH_DECODER,)
    return (SPEECH_DECODER, llm) if models.bridge == "transcript" else (llm,)


def check_task(models: Models, task: SpeechTask) -> None:
    """Raise `InvalidRequest` for options that do not go together.

    A relaxed draft needs an instruction that asks for a transcript, and no constraint; times of words need a transcript, and a
    model that can tell them; a language needs a speech model that knows it, a prompt or keywords one that has room for them.
    """
    constraint = task.sampling.constraint
    transcribes = models.transcribes(task.instruction)
    if not models.follows_instructions:
        check_transcriber(models, task)
    if task.draft == "relaxed" and not transcribes:
        raise InvalidRequest("The relaxed draft policy is offered for transcription only.", param="draft")
    if task.draft == "relaxed" and constraint is not None:
        raise InvalidRequest(f"The relaxed draft policy is not offered together with {constraint.kind}.", param="draft")
    if task.word_times != "none" and not transcribes:
        message = "Times of words and subtitles are offered for transcription only: other answers are not what was said."
        raise InvalidRequest(message, param="timestamps")
    if task.language is not None and not models.languages:
        raise InvalidRequest(refuse_language(models), param="language")
    if task.prompt and models.speech is None and models.label is None:
        raise InvalidRequest("This model does not take a prompt.", param="prompt")
    if task.keywords and not models.takes_keywords:
        raise InvalidRequest("This model does not take keywords.", param="keywords")
    if models.speech is None and not transcribes and task.language is not None:
        raise InvalidRequest("This model takes a language for transcripts only.", param="language")
    if models.speech is None and not transcribes and task.keywords:
        raise InvalidRequest("This model takes keywords for transcripts only.", param="keywords")
    if models.speech is not None:
        lay_out_speech_context(models.speech, task.prompt, task.keywords)
    if task.language not in (None, *models.languages):
        raise InvalidRequest(f"The model does not know the language {task.language!r}.", param="language")
    if task.languages and models.speech is None:
        raise InvalidRequest("This model cannot choose among several languages: name one, or none.", param="languages")
    if unknown := [code for code in task.languages if code not in models.languages]:
        raise InvalidRequest(f"The model does not know the language {unknown[0]!r}.", param="languages")
    if task.word_times == "required" and models.word_timer is None:
        raise InvalidRequest("This model cannot tell when a word was said; ask for segments.", param="timestamps")


def refuse_language(models: Models) -> str:
    """Return what a request that names a language is told by a model that finds out by itself which one is spoken."""
    refusal = "This model does not take a language: its published prompts name none that is spoken"
    if models.template.published:
        return f"{refusal}. A translation is asked for in the instruction, as in 'Translate the speech to French.'"
    return f"{refusal}."


def check_transcriber(models: Models, task: SpeechTask) -> None:
    """Raise `InvalidRequest` for requests that only an LLM can answer which follows instructions."""
    lack = "has no LLM: it transcribes" if models.llm is None else "only transcribes"
    if not models.transcribes(task.instruction) and not models.translates(task.instruction):
        spoken = f"{lack} ({models.transcription_instruction!r})"
        if translation := next(iter(models.translation_instructions), None):
            spoken += f" and translates into English ({translation!r})"
        raise InvalidRequest(f"This model {spoken}, and follows no other instruction.", param="instruction")
    if (constraint := task.sampling.constraint) is not None:
        without = (
            f"has no LLM, which {constraint.kind} needs" if models.llm is None else f"only transcribes, without {constraint.kind}"
        )
        raise InvalidRequest(f"This model {without}.", param=constraint.kind)
    if not models.decoders:
        check_undrawn(task.sampling)


def check_undrawn(sampling: SamplingOptions) -> None:
    """Raise `InvalidRequest` for options that change which tokens a model without a decoder writes: its scores know no order."""
    for name, neutral in {"temperature": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0}.items():
        if getattr(sampling, name) != neutral:
            message = f"This model has no decoder, and draws no tokens: {name} has to be {neutral:g}."
            raise InvalidRequest(message, param=name)


def compile_constraint(models: Models, constraint: Constraint | None) -> TokenConstraint:
    """Return the constraint as states of tokens. Raises `InvalidConstraint`.

    A constraint that was compiled lately takes no time, any other up to a quarter of a second.
    """
    if constraint is None or models.llm is None:
        return TokenConstraint()
    try:
        return models.grammars.follow(constraint.kind, constraint.grammar)
    except GrammarError as error:
        raise InvalidConstraint.because(constraint.kind, error) from None
