"""The protocol: which reply each message needs."""

import logging

import grpc
from envoy.config.core.v3.base_pb2 import HeaderValue, HeaderValueOption
from envoy.extensions.filters.http.ext_proc.v3.processing_mode_pb2 import ProcessingMode
from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as rpc
from envoy.service.ext_proc.v3.external_processor_pb2 import (
    BodyMutation,
    BodyResponse,
    CommonResponse,
    HeaderMutation,
    HeadersResponse,
    ProcessingResponse,
    StreamedBodyResponse,
    TrailersResponse,
)
from google.protobuf.wrappers_pb2 import BoolValue

FULL_DUPLEX = ProcessingMode.FULL_DUPLEX_STREAMED
BUFFERED = (ProcessingMode.BUFFERED, ProcessingMode.BUFFERED_PARTIAL)
MAX_CHUNK = 64 << 10  # the largest piece that suits full-duplex mode


class ExchangeError(Exception):
    """Why an exchange fails, as a gRPC status."""

    def __init__(self, code, text):
        super().__init__(text)
        self.code = code


class Processor:
    """What happens to one HTTP exchange. This one changes nothing.

    A body comes chunk by chunk and once with `last`, whatever mode Envoy sends it in; what is
    returned goes on instead.
    """

    def request_headers(self, headers, out):
        pass

    def request_body(self, chunk, last):
        return chunk

    def response_headers(self, headers, out):
        pass

    def response_body(self, chunk, last):
        return chunk


class Headers:
    """The headers that Envoy sent."""

    def __init__(self, message):
        self.end_of_stream = message.end_of_stream
        self.headers = message.headers.headers

    def get(self, name):
        """The first value of a header. Envoy fills raw_value only, never value."""
        values = (h.raw_value.decode("latin-1") for h in self.headers if h.key == name)
        return next(values, "")


class Mutation:
    """What is to become of the headers."""

    def __init__(self):
        self.message = HeaderMutation()

    def set(self, name, value):
        """Replaces all values of a header.

        Envoy reads raw_value only, and heeds append, not append_action.
        """
        header = HeaderValue(key=name, raw_value=value.encode())
        option = HeaderValueOption(header=header, append=BoolValue(value=False))
        self.message.set_headers.append(option)

    def remove(self, name):
        """Removes all values of a header."""
        self.message.remove_headers.append(name)


class Service(rpc.ExternalProcessorServicer):
    def __init__(self, new_processor):
        self.new_processor = new_processor

    async def Process(self, messages, context):
        """Answers the messages of one HTTP exchange.

        Envoy ends a stream by half-close, by cancelling or by a reset: all are normal. The first
        ends the loop; the others cancel this coroutine.
        """
        exchange = Exchange(self.new_processor())
        async for message in messages:
            try:
                replies = exchange.answer(message)
            except Exception as error:
                logging.exception("exchange failed")
                code = getattr(error, "code", grpc.StatusCode.UNKNOWN)
                await context.abort(code, str(error))
            for reply in replies:
                yield reply


class Exchange:
    def __init__(self, processor):
        self.on_headers = {
            "request_headers": processor.request_headers,
            "response_headers": processor.response_headers,
        }
        self.request = Direction("request_body", processor.request_body)
        self.response = Direction("response_body", processor.response_body)

    def answer(self, message):
        """The replies to a message. Each message needs its own, also where nothing changes."""
        if message.HasField("protocol_config"):  # in the first message only
            self.request.mode = message.protocol_config.request_body_mode
            self.response.mode = message.protocol_config.response_body_mode
        if message.observability_mode:  # nobody waits for replies
            return []
        kind = message.WhichOneof("request")  # the reply has the same name
        if kind is None:
            raise ExchangeError(grpc.StatusCode.UNIMPLEMENTED, "a message of an unknown kind")
        part = getattr(message, kind)
        direction = self.request if kind.startswith("request") else self.response
        if kind in self.on_headers:
            out = Mutation()
            self.on_headers[kind](Headers(part), out)
            response = CommonResponse(header_mutation=out.message)
            return [ProcessingResponse(**{kind: HeadersResponse(response=response)})]
        if kind.endswith("body"):
            return direction.body(part)
        return [*direction.rest(), ProcessingResponse(**{kind: TrailersResponse()})]


class Direction:
    """One of the two bodies."""

    def __init__(self, kind, transform):
        self.kind = kind
        self.transform = transform
        self.mode = ProcessingMode.NONE
        self.ended = False

    def body(self, message):
        """Answers a body message."""
        # The buffered modes have one message, without an end of stream where trailers follow.
        self.ended = message.end_of_stream or self.mode in BUFFERED
        out = bytes(self.transform(message.body, self.ended))
        if self.mode == FULL_DUPLEX:
            return self.streamed(out, message.end_of_stream)
        if out == message.body:
            return [self.reply(None)]
        return [self.reply(BodyMutation(body=out))]

    def rest(self):
        """Ends a body that trailers follow: no message said that it was the last."""
        if self.ended:
            return []
        out = bytes(self.transform(b"", True))
        if out and self.mode != FULL_DUPLEX:
            # All chunks are answered: what was held back can't be sent any more.
            why = "trailers after a body held back: use FULL_DUPLEX_STREAMED"
            raise ExchangeError(grpc.StatusCode.FAILED_PRECONDITION, why)
        return self.streamed(out, False)

    def streamed(self, out, end):
        """Sends bytes in full-duplex mode, where replies need not match messages."""
        replies = []
        while len(out) > MAX_CHUNK:
            replies += self.streamed(out[:MAX_CHUNK], False)
            out = out[MAX_CHUNK:]
        if out or end:
            response = StreamedBodyResponse(body=out, end_of_stream=end)
            replies.append(self.reply(BodyMutation(streamed_response=response)))
        return replies

    def reply(self, mutation):
        response = BodyResponse(response=CommonResponse(body_mutation=mutation))
        return ProcessingResponse(**{self.kind: response})
