"""Audio as base64 in JSON, as clients write it: in lines, without padding, in the alphabet of addresses, as a `data:` URL."""

import binascii
import re

from server.errors import InvalidRequest

DATA_URL = re.compile(r"data:[^,]{0,256},")
FROM_URL_ALPHABET = str.maketrans("-_", "+/")


def decode_base64(text: str, param: str) -> bytes:
    """Return the bytes that a field holds. Raises `InvalidRequest` that names the field."""
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except ValueError:
        # Not as OpenAI's clients write it.
        pass
    start = found.end() if (found := DATA_URL.match(text)) else 0
    plain = "".join(text[start:].split()).rstrip("=").translate(FROM_URL_ALPHABET)
    try:
        return binascii.a2b_base64(plain + "=" * (-len(plain) % 4), strict_mode=True)
    except ValueError:
        raise InvalidRequest(f"{param} is not valid base64.", param=param) from None
