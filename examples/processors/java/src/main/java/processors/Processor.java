package processors;

import com.google.protobuf.BoolValue;
import com.google.protobuf.ByteString;
import io.envoyproxy.envoy.config.core.v3.HeaderValue;
import io.envoyproxy.envoy.config.core.v3.HeaderValueOption;
import io.envoyproxy.envoy.service.ext_proc.v3.HeaderMutation;
import io.envoyproxy.envoy.service.ext_proc.v3.HttpHeaders;
import java.nio.charset.StandardCharsets;

/**
 * What happens to one HTTP exchange; by itself, nothing. A body comes chunk by chunk and once with
 * {@code last}, whatever mode Envoy sends it in; what is returned goes on instead.
 */
interface Processor {
  default void requestHeaders(Headers headers, Mutation out) {}

  default ByteString requestBody(ByteString chunk, boolean last) {
    return chunk;
  }

  default void responseHeaders(Headers headers, Mutation out) {}

  default ByteString responseBody(ByteString chunk, boolean last) {
    return chunk;
  }

  /** The headers that Envoy sent. */
  record Headers(HttpHeaders message) {
    boolean endOfStream() {
      return message.getEndOfStream();
    }

    /** The first value of a header. Envoy fills raw_value only, never value. */
    String get(String name) {
      for (var header : message.getHeaders().getHeadersList()) {
        if (header.getKey().equals(name)) {
          return header.getRawValue().toString(StandardCharsets.ISO_8859_1);
        }
      }
      return "";
    }
  }

  /** What is to become of the headers. */
  record Mutation(HeaderMutation.Builder message) {
    /**
     * Replaces all values of a header. Envoy reads raw_value only, and heeds append, not
     * append_action.
     */
    void set(String name, String value) {
      var raw = ByteString.copyFromUtf8(value);
      message.addSetHeaders(
          HeaderValueOption.newBuilder()
              .setHeader(HeaderValue.newBuilder().setKey(name).setRawValue(raw))
              .setAppend(BoolValue.of(false)));
    }

    /** Removes all values of a header. */
    void remove(String name) {
      message.addRemoveHeaders(name);
    }
  }
}
