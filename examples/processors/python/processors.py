import json

from grpc import StatusCode

from exchange import ExchangeError, Processor

MAX_BODY = 4 << 20  # no more of a body than this is held


class AddHeader(Processor):
    """Marks every request with a header."""

    def request_headers(self, headers, out):
        out.set("x-attache", "was here")


class RewriteJson(Processor):
    """Adds a field to JSON responses."""

    is_json = False

    def __init__(self):
        self.held = bytearray()

    def response_headers(self, headers, out):
        kind = headers.get("content-type").partition(";")[0].strip().lower()
        self.is_json = kind == "application/json" or kind.endswith("+json")
        if self.is_json and not headers.end_of_stream:
            # The body changes its length, and in BUFFERED mode Envoy checks that.
            out.remove("content-length")

    def response_body(self, chunk, last):
        if not self.is_json:
            return chunk
        if len(self.held) + len(chunk) > MAX_BODY:
            raise ExchangeError(StatusCode.RESOURCE_EXHAUSTED, "the body is too large")
        self.held += chunk
        if not last:
            return b""
        body = json.loads(self.held)
        if not isinstance(body, dict):
            raise ValueError("the body is no JSON object")
        body["processed_by"] = "attache"
        return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


class Redact(Processor):
    """Hides a word in both bodies, also where it lies across chunks.

    The length stays, and so does content-length.
    """

    def __init__(self):
        self.request_body = Redactor()
        self.response_body = Redactor()


class Redactor:
    SECRET, STARS = b"secret", b"******"

    def __init__(self):
        self.held = b""

    def __call__(self, chunk, last):
        text = (self.held + chunk).replace(self.SECRET, self.STARS)
        # The end may be the beginning of the word: it waits for the next chunk.
        begins = (n for n in range(len(self.SECRET) - 1, 0, -1) if text.endswith(self.SECRET[:n]))
        keep = 0 if last else next(begins, 0)
        cut = len(text) - keep
        self.held = text[cut:]
        return text[:cut]
