"""The answers of a bundle's LLM to texts instead of speech, in the prompt that it has when serving.

    python -m training.text_answers --bundle BUNDLE --requests training/spoken_requests/requests.jsonl --out work/true_text.json

Each request of the half is asked about its true text, or about that of `--texts`, a JSON object of texts by request id:
another recogniser's transcripts make the plain cascade. Answers are greedy, and follow the request's JSON schema or choice.
`--prefix`, `--after-instruction`, `--suffix` and `--after-speech` try another prompt, with special tokens by their names. Writes
a JSON object of answers by request id, which `loadtest.answers` puts beside the answers from speech; a second run goes on.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from models.bundle.io import open_bundle
from models.protocols import LLM, DecodeRow, Float32, PrefillRow
from models.runtimes.onnx.decoder import OnnxLLM
from models.text.constraint import Grammars, TokenConstraint
from models.text.tokeniser import PromptTemplate, Tokeniser, lay_out_prompt
from training.spoken_requests.request import SpokenRequest, read_requests

MAX_TOKENS = 64


@dataclass(eq=False)
class Answer:
    """An answer on its way: `position` is where the next token's keys and values go."""

    id: str
    prompt: list[int]
    constraint: TokenConstraint
    position: int = 0
    tokens: list[int] = field(default_factory=list)


class TextAnswerer:
    """Asks an LLM about texts, as many at once as it has slots. Which are asked together changes no answer."""

    def __init__(self, llm: LLM, tokeniser: Tokeniser, template: PromptTemplate) -> None:
        self._llm, self._tokeniser, self._template = llm, tokeniser, template
        self._grammars = Grammars(tokeniser, template.end_tokens, llm.vocabulary_size)

    def answer(
        self, requests: Sequence[SpokenRequest], texts: Mapping[str, str], max_tokens: int = MAX_TOKENS
    ) -> Iterator[tuple[str, str]]:
        """Yield the id and the answer of every request as it is done, each about `texts` of its id."""
        waiting = [self._begin(request, texts[request.id]) for request in reversed(requests)]
        running: list[Answer] = []
        while waiting or running:
            while waiting and len(running) < self._llm.slots:
                running.append(waiting.pop())
                answer, slot = running[-1], len(running) - 1
                (logits,) = self._llm.prefill([PrefillRow(slot, 0, self._llm.embed(answer.prompt), 1)])
                answer.position = len(answer.prompt)
                if self._take(answer, logits[-1], max_tokens):
                    yield self._finish(running.pop())
            if not running:
                continue
            rows = [DecodeRow(slot, each.position, (each.tokens[-1],)) for slot, each in enumerate(running)]
            ended = []
            for slot, (each, logits) in enumerate(zip(running, self._llm.decode(rows), strict=True)):
                each.position += 1
                if self._take(each, logits[-1], max_tokens):
                    ended.append(slot)
            for slot in reversed(ended):
                yield self._finish(self._remove(running, slot))

    def _begin(self, request: SpokenRequest, text: str) -> Answer:
        ids = lay_out_prompt(self._template, self._tokeniser, request.instruction)
        prompt = [*ids.before_speech, *self._tokeniser.encode(text), *ids.after_speech]
        return Answer(request.id, prompt, self._constrain(request))

    def _constrain(self, request: SpokenRequest) -> TokenConstraint:
        if request.json_schema is not None:
            return self._grammars.follow("json_schema", json.dumps(request.json_schema))
        return self._grammars.follow("choice", json.dumps(request.options)) if request.is_choice else TokenConstraint()

    def _take(self, answer: Answer, logits: Float32, max_tokens: int) -> bool:
        """Add the likeliest token; return whether the answer is whole."""
        token = int(answer.constraint.mask(logits).argmax())
        if token in self._template.end_tokens:
            return True
        answer.tokens.append(token)
        answer.constraint.advance(token)
        return answer.constraint.complete or len(answer.tokens) == max_tokens

    def _remove(self, running: list[Answer], slot: int) -> Answer:
        """Take an answer out of its slot, into which the last one moves."""
        last = running.pop()
        if slot == len(running):
            return last
        removed, running[slot] = running[slot], last
        self._llm.cache.move(len(running), slot, last.position)
        return removed

    def _finish(self, answer: Answer) -> tuple[str, str]:
        return answer.id, self._tokeniser.decode(answer.tokens).strip()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--requests", type=Path, required=True, metavar="FILE")
    parser.add_argument("--half", default="reported")
    parser.add_argument("--kinds", help="comma-separated; default: all")
    parser.add_argument("--texts", type=Path, metavar="FILE", help="JSON object of texts by request id")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE")
    parser.add_argument("--prefix")
    parser.add_argument("--after-instruction")
    parser.add_argument("--suffix")
    parser.add_argument("--after-speech")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    parsed = parser.parse_args(arguments)
    bundle = open_bundle(parsed.bundle)
    section = bundle.manifest.require_llm()
    llm = OnnxLLM(bundle.path(section.graph), bundle.path(section.embedding), slots=parsed.slots, threads=parsed.threads)
    tokeniser = Tokeniser.from_file(bundle.path(section.tokeniser))
    texts_of = {name: getattr(parsed, name) for name in ("prefix", "after_instruction", "suffix", "after_speech")}
    given = {name: tokeniser.encode_template(text) for name, text in texts_of.items() if text is not None}
    template = PromptTemplate.from_json({**bundle.manifest.require_prompt().model_dump(), **given})
    kinds = parsed.kinds.split(",") if parsed.kinds else None
    requests = [each for each in read_requests(parsed.requests) if each.half == parsed.half and (not kinds or each.kind in kinds)]
    texts = {request.id: request.text for request in requests}
    if parsed.texts is not None:
        texts = json.loads(parsed.texts.read_text(encoding="utf-8"))
        requests = [request for request in requests if request.id in texts]
    found: dict[str, str] = json.loads(parsed.out.read_text(encoding="utf-8")) if parsed.out.exists() else {}
    requests = [request for request in requests if request.id not in found]
    answers = TextAnswerer(llm, tokeniser, template).answer(requests, texts)
    for id, answer in tqdm(answers, total=len(requests), desc="answers"):
        found[id] = answer
        parsed.out.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
