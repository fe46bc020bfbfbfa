package processors;

import static io.envoyproxy.envoy.extensions.filters.http.ext_proc.v3.ProcessingMode.BodySendMode;

import com.google.protobuf.ByteString;
import io.envoyproxy.envoy.service.ext_proc.v3.BodyMutation;
import io.envoyproxy.envoy.service.ext_proc.v3.BodyResponse;
import io.envoyproxy.envoy.service.ext_proc.v3.CommonResponse;
import io.envoyproxy.envoy.service.ext_proc.v3.HeaderMutation;
import io.envoyproxy.envoy.service.ext_proc.v3.HeadersResponse;
import io.envoyproxy.envoy.service.ext_proc.v3.HttpBody;
import io.envoyproxy.envoy.service.ext_proc.v3.ProcessingRequest;
import io.envoyproxy.envoy.service.ext_proc.v3.ProcessingResponse;
import io.envoyproxy.envoy.service.ext_proc.v3.StreamedBodyResponse;
import io.envoyproxy.envoy.service.ext_proc.v3.TrailersResponse;
import io.grpc.Status;
import java.util.ArrayList;
import java.util.List;
import java.util.function.BiFunction;
import java.util.function.Function;

/** The protocol: which reply each message needs. */
final class Exchange {
  /** The largest piece that suits full-duplex mode. */
  private static final int MAX_CHUNK = 64 << 10;

  private final Processor processor;
  private final Direction request;
  private final Direction response;

  Exchange(Processor processor) {
    this.processor = processor;
    request =
        new Direction(
            processor::requestBody,
            body -> ProcessingResponse.newBuilder().setRequestBody(body).build());
    response =
        new Direction(
            processor::responseBody,
            body -> ProcessingResponse.newBuilder().setResponseBody(body).build());
  }

  /** The replies to a message. Each message needs its own, also where nothing changes. */
  List<ProcessingResponse> answer(ProcessingRequest message) {
    if (message.hasProtocolConfig()) { // in the first message only
      request.mode = message.getProtocolConfig().getRequestBodyMode();
      response.mode = message.getProtocolConfig().getResponseBodyMode();
    }
    if (message.getObservabilityMode()) { // nobody waits for replies
      return List.of();
    }
    var reply = ProcessingResponse.newBuilder();
    var out = new Processor.Mutation(HeaderMutation.newBuilder());
    switch (message.getRequestCase()) {
      case REQUEST_HEADERS -> {
        processor.requestHeaders(new Processor.Headers(message.getRequestHeaders()), out);
        return List.of(reply.setRequestHeaders(headers(out)).build());
      }
      case REQUEST_BODY -> {
        return request.body(message.getRequestBody());
      }
      case REQUEST_TRAILERS -> {
        var replies = request.rest();
        replies.add(reply.setRequestTrailers(TrailersResponse.getDefaultInstance()).build());
        return replies;
      }
      case RESPONSE_HEADERS -> {
        processor.responseHeaders(new Processor.Headers(message.getResponseHeaders()), out);
        return List.of(reply.setResponseHeaders(headers(out)).build());
      }
      case RESPONSE_BODY -> {
        return response.body(message.getResponseBody());
      }
      case RESPONSE_TRAILERS -> {
        var replies = response.rest();
        replies.add(reply.setResponseTrailers(TrailersResponse.getDefaultInstance()).build());
        return replies;
      }
      default -> throw failure(Status.UNIMPLEMENTED, "a message of an unknown kind");
    }
  }

  private static HeadersResponse headers(Processor.Mutation out) {
    var common = CommonResponse.newBuilder().setHeaderMutation(out.message());
    return HeadersResponse.newBuilder().setResponse(common).build();
  }

  static RuntimeException failure(Status status, String description) {
    return status.withDescription(description).asRuntimeException();
  }

  /** One of the two bodies. */
  private static final class Direction {
    private final BiFunction<ByteString, Boolean, ByteString> transform;
    private final Function<BodyResponse, ProcessingResponse> reply;
    private BodySendMode mode = BodySendMode.NONE;
    private boolean ended;

    Direction(
        BiFunction<ByteString, Boolean, ByteString> transform,
        Function<BodyResponse, ProcessingResponse> reply) {
      this.transform = transform;
      this.reply = reply;
    }

    /** Answers a body message. */
    List<ProcessingResponse> body(HttpBody message) {
      // The buffered modes have one message, without an end of stream where trailers follow.
      ended =
          message.getEndOfStream()
              || mode == BodySendMode.BUFFERED
              || mode == BodySendMode.BUFFERED_PARTIAL;
      var out = transform.apply(message.getBody(), ended);
      if (mode == BodySendMode.FULL_DUPLEX_STREAMED) {
        return streamed(out, message.getEndOfStream());
      }
      if (out.equals(message.getBody())) {
        return List.of(reply.apply(BodyResponse.getDefaultInstance()));
      }
      return List.of(mutated(BodyMutation.newBuilder().setBody(out)));
    }

    /** Ends a body that trailers follow: no message said that it was the last. */
    List<ProcessingResponse> rest() {
      if (ended) {
        return new ArrayList<>();
      }
      var out = transform.apply(ByteString.EMPTY, true);
      if (!out.isEmpty() && mode != BodySendMode.FULL_DUPLEX_STREAMED) {
        // All chunks are answered: what was held back can't be sent any more.
        throw failure(
            Status.FAILED_PRECONDITION,
            "trailers after a body held back: use FULL_DUPLEX_STREAMED");
      }
      return streamed(out, false);
    }

    /** Sends bytes in full-duplex mode, where replies need not match messages. */
    private List<ProcessingResponse> streamed(ByteString out, boolean end) {
      var replies = new ArrayList<ProcessingResponse>();
      for (; out.size() > MAX_CHUNK; out = out.substring(MAX_CHUNK)) {
        replies.addAll(streamed(out.substring(0, MAX_CHUNK), false));
      }
      if (!out.isEmpty() || end) {
        var streamed = StreamedBodyResponse.newBuilder().setBody(out).setEndOfStream(end);
        replies.add(mutated(BodyMutation.newBuilder().setStreamedResponse(streamed)));
      }
      return replies;
    }

    private ProcessingResponse mutated(BodyMutation.Builder mutation) {
      var common = CommonResponse.newBuilder().setBodyMutation(mutation);
      return reply.apply(BodyResponse.newBuilder().setResponse(common).build());
    }
  }
}
