"""Malformed and hostile requests, made from scratch: every one has to be refused with a 4xx."""

from collections.abc import Iterator

from tests.support.inputs.hostile_audio import GOOD_CLIP, hostile_files

BOUNDARY = "b"
FORM_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

Case = tuple[str, bytes, str]
"""Name, body, content type."""


def part(name: str | bytes, content: bytes, *, filename: str | bytes | None = None) -> bytes:
    """Return one part of a form, without any escaping."""
    name = name.encode() if isinstance(name, str) else name
    filename = filename.encode() if isinstance(filename, str) else filename
    disposition = b'form-data; name="' + name + b'"' + (b"" if filename is None else b'; filename="' + filename + b'"')
    return b"--b\r\nContent-Disposition: " + disposition + b"\r\n\r\n" + content + b"\r\n"


AUDIO = part("audio", GOOD_CLIP, filename="a.wav")
INSTRUCTION = part("instruction", b"Transcribe.")
END = b"--b--\r\n"


def form(*parts: bytes) -> bytes:
    return b"".join(parts) + END


BAD_VALUES = {
    "max_tokens": [
        "0",
        "-1",
        "abc",
        "1e3",
        "nan",
        "inf",
        "1.5",
        "",
        " 5",
        "5 ",
        "\uff10",
        "0x10",
        "1_0",
        "9" * 400,
        "513",
        "+5",
        "5\0",
        "true",
    ],
    "temperature": [
        "nan",
        "inf",
        "-inf",
        "-0.1",
        "2.1",
        "1e999",
        "1e-3",
        "abc",
        "",
        " 1",
        "0x1p3",
        "1,5",
        "\u0661",
        "--1",
        ".5",
        "9" * 400,
    ],
    "seed": ["-1", "abc", "1.0", str(2**63), "nan", "", "1e3", "\uff19"],
    "top_k": ["-1", "1001", "1.0", "1e3", "", "nan", "all", "\u0663", "9" * 400],
    "top_p": ["0", "0.0", "-0.0", "-0.1", "1.01", "1e-3", "nan", "inf", "", "0,5", ".5", "\uff11"],
    "repetition_penalty": ["0", "0.49", "2.01", "-1", "nan", "inf", "1e0", "", "1 "],
    "presence_penalty": ["-2.01", "2.01", "nan", "-inf", "1e0", "", "+1", "--1", "- 1"],
    "stop": [
        "",
        "###",
        '"###"',
        "null",
        "{}",
        "[",
        "[1]",
        "[null]",
        '[["a"]]',
        '[""]',
        '["a", "b", "c", "d", "e"]',
        '["' + "a" * 65 + '"]',
        "['a']",
        '["a",]',
        '["\\ud83d"]',
        '["\\udc00\\ud800"]',
        '["a\0"]',
        '["\\x41"]',
        "[" * 60_000,
        '{"a":' * 10_000,
        "[" + "9" * 60_000 + "]",
        "[NaN]",
        '["a"] ["b"]',
        '[{"__proto__": "a"}]',
    ],
    "json_schema": [
        "",
        "{",
        "[]",
        "null",
        "true",
        '"object"',
        '{"type": "text"}',
        '{"type": "integer", "minimum": 2, "maximum": 1}',
        '{"$ref": "#"}',
        '{"$ref": "file:///etc/passwd"}',
        '{"not": {}}',
        '{"pattern": "(", "type": "string"}',
        '{"items":' * 6000 + "{}" + "}" * 6000,
        '{"const": "\\ud800"}',
        '{"const": ' + "9" * 60_000 + "}",
    ],
    "regex": ["", "(", "[z-a]", "a{2,1}", "(?=a)", "(a)\\1", "\\", "(?-u:\\xff)", "a?" * 20_000, "(a{1000}){1000}", "[^\\s\\S]"],
    "choice": ["", "yes", "[]", "{}", '"yes"', "null", "[1]", '[""]', '["\\ud800"]', "[" * 60_000, '["a"] ["b"]'],
    "logprobs": ["-1", "21", "true", "1.0", "", "nan", "9" * 400],
    "stream": ["1", "0", "yes", "", "on", " true", "true\0"],
    "priority": ["live", "0", "-1", "", "Batch", "high", "interactive,batch"],
    "deadline_ms": ["0", "-1", "3600001", "1.5", "inf", "nan", "", "1e3", "soon", "9" * 400],
    "draft": ["", "on", "Exact", "true", "none", "exact\n"],
    "timestamps": ["", "word", "Words", "true", "words,segments", '["words"]'],
    "format": ["", "JSON", "verbose_json", "application/json", "srt\n", "sub"],
}


def bad_fields() -> Iterator[tuple[str, bytes]]:
    for field, values in BAD_VALUES.items():
        for value in values:
            yield f"{field} {value[:20]!r} of {len(value)}", form(AUDIO, INSTRUCTION, part(field, value.encode()))
        yield f"{field} as a file", form(AUDIO, INSTRUCTION, part(field, b"\xff", filename="x"))
        if field != "stop":
            yield f"{field} twice", form(AUDIO, INSTRUCTION, part(field, b"1"), part(field, b"1"))
            yield f"{field}[]", form(AUDIO, INSTRUCTION, part(f"{field}[]", b"1"))
        yield f"{field} of 70 KB", form(AUDIO, INSTRUCTION, part(field, b"1" * 70_000))
    for one, other in (("json_schema", "regex"), ("regex", "choice"), ("choice", "json_schema")):
        yield f"{one} and {other}", form(AUDIO, INSTRUCTION, part(one, b"{}"), part(other, b"{}"))
    for format in ("text", "srt", "vtt"):
        yield f"{format} in a stream", form(AUDIO, INSTRUCTION, part("stream", b"true"), part("format", format.encode()))
    yield "times in plain text", form(AUDIO, INSTRUCTION, part("timestamps", b"words"), part("format", b"text"))
    bad_instructions = {
        "empty": b"",
        "spaces": b"   ",
        "white": b"\t\r\n",
        "wide white": "\u00a0\u2003\u3000".encode(),
        "long": b"a" * 2001,
        "huge": b"a" * 70_000,
        "nul": b"Transcribe\0.",
        "only nul": b"\0",
        "ff": b"\xff",
        "cut": b"caf\xc3",
        "overlong": b"\xc0\xaf",
        "surrogate": b"\xed\xa0\x80",
        "surrogate pair": b"\xed\xa0\xbd\xed\xb8\x80",
        "beyond": b"\xf4\x90\x80\x80",
        "utf-16": "Transcribe.".encode("utf-16"),
        "latin-1": "Ü".encode("latin-1"),
    }
    for name, content in bad_instructions.items():
        yield f"instruction {name}", form(AUDIO, part("instruction", content))
    yield "instruction missing", form(AUDIO)
    yield "instruction twice", form(AUDIO, INSTRUCTION, INSTRUCTION)
    yield "audio missing", form(INSTRUCTION)
    yield "audio twice", form(AUDIO, AUDIO, INSTRUCTION)
    yield "audio as text", form(part("audio", "Grüße".encode()), INSTRUCTION)
    yield "audio and file", form(AUDIO, part("file", GOOD_CLIP, filename="a.wav"), INSTRUCTION)
    yield "five stops", form(AUDIO, INSTRUCTION, *[part("stop[]", b"a")] * 5)
    yield "audio by url", form(part("audio", b"http://169.254.169.254/latest"), INSTRUCTION)
    for name in (
        "file",
        "models",
        "prompts",
        "Audio",
        "audio ",
        "audio[]",
        "__proto__",
        "../audio",
        "a" * 3000,
        "audio\0",
        "\u202eoidua",
        "streams",
        "client",
    ):
        yield f"field {name[:20]!r}", form(AUDIO, INSTRUCTION, part(name, b"1"))


def bad_bodies() -> Iterator[Case]:
    good = form(AUDIO, INSTRUCTION)
    for content_type in (
        "",
        "application/json",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/mixed; boundary=b",
        f"multipart/form-data; boundary={'b' * 71}",
        "multipart/form-data; boundary=other",
        "audio/wav",
        "multipart/form-data; boundary*=b",
        "form-data; boundary=b",
        ";;;;",
        "multipart/form-data; charset=punycode",
    ):
        yield f"content type {content_type[:40]!r}", good, content_type
    bodies = {
        "empty": b"",
        "only the end": END,
        "no end": good[: -len(END)],
        "half": good[: len(good) // 2],
        "no first boundary": good[3:],
        "line feeds": good.replace(b"\r\n", b"\n"),
        "json": b'{"audio": "x"}',
        "prefix": b"preamble " + good,
        "dashes": b"-" * 10_000,
        "part without a header": b"--b\r\n\r\nx\r\n" + END,
        "header without a colon": b"--b\r\nContent-Disposition\r\n\r\nx\r\n" + END,
        "no name": b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + END,
        "empty name": form(part("", b"x")),
        "attachment": b'--b\r\nContent-Disposition: attachment; name="audio"\r\n\r\nx\r\n' + END,
        "long header": b"--b\r\nX: " + b"a" * 10_000 + b"\r\n\r\nx\r\n" + END,
        "long file name": form(part("audio", GOOD_CLIP, filename="a" * 10_000), INSTRUCTION),
        "many headers": b"--b\r\n" + b"X: y\r\n" * 100 + b"\r\nx\r\n" + END,
        "nul in a header": b"--b\r\nX\0: y\r\n\r\nx\r\n" + END,
        "many parts": form(*[part(f"x{number}", b"1") for number in range(1000)]),
        "header cut": b"--b\r\nContent-Disp",
        "extended name": b"--b\r\nContent-Disposition: form-data; name*=utf-8''audio\r\n\r\nx\r\n" + END,
    }
    for name, body in bodies.items():
        yield name, body, FORM_TYPE


def hostile_cases() -> list[Case]:
    """Return all cases, each with a name of its own."""
    cases = [(name, form(part("audio", data, filename="clip.wav"), INSTRUCTION), FORM_TYPE) for name, data in hostile_files()]
    cases += [(f"field: {name}", body, FORM_TYPE) for name, body in bad_fields()]
    cases += [(f"body: {name}", body, content_type) for name, body, content_type in bad_bodies()]
    return cases
