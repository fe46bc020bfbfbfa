package processors;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import com.google.gson.JsonObject;
import com.google.gson.JsonParseException;
import com.google.gson.Strictness;
import com.google.protobuf.ByteString;
import io.grpc.Status;
import java.nio.charset.StandardCharsets;
import java.util.Locale;

final class Processors {
  /** Marks every request with a header. */
  static final class AddHeader implements Processor {
    @Override
    public void requestHeaders(Headers headers, Mutation out) {
      out.set("x-attache", "was here");
    }
  }

  /** Adds a field to JSON responses. */
  static final class RewriteJson implements Processor {
    /** No more of a body than this is held. */
    private static final int MAX_BODY = 4 << 20;

    private static final Gson JSON =
        new GsonBuilder().setStrictness(Strictness.STRICT).serializeNulls().disableHtmlEscaping().create();

    private boolean isJson;
    private ByteString held = ByteString.EMPTY;

    @Override
    public void responseHeaders(Headers headers, Mutation out) {
      var kind = headers.get("content-type").split(";", 2)[0].strip().toLowerCase(Locale.ROOT);
      isJson = kind.equals("application/json") || kind.endsWith("+json");
      if (isJson && !headers.endOfStream()) {
        // The body changes its length, and in BUFFERED mode Envoy checks that.
        out.remove("content-length");
      }
    }

    @Override
    public ByteString responseBody(ByteString chunk, boolean last) {
      if (!isJson) {
        return chunk;
      }
      if (held.size() + chunk.size() > MAX_BODY) {
        throw Exchange.failure(Status.RESOURCE_EXHAUSTED, "the body is too large");
      }
      held = held.concat(chunk);
      if (!last) {
        return ByteString.EMPTY;
      }
      var body = JSON.fromJson(held.toStringUtf8(), JsonObject.class);
      if (body == null) {
        throw new JsonParseException("the body is no JSON object");
      }
      body.addProperty("processed_by", "attache");
      return ByteString.copyFromUtf8(JSON.toJson(body));
    }
  }

  /**
   * Hides a word in both bodies, also where it lies across chunks. The length stays, and so does
   * content-length.
   */
  static final class Redact implements Processor {
    private final Redactor request = new Redactor();
    private final Redactor response = new Redactor();

    @Override
    public ByteString requestBody(ByteString chunk, boolean last) {
      return request.push(chunk, last);
    }

    @Override
    public ByteString responseBody(ByteString chunk, boolean last) {
      return response.push(chunk, last);
    }
  }

  private static final class Redactor {
    private static final String SECRET = "secret";
    private String held = "";

    ByteString push(ByteString chunk, boolean last) {
      // In Latin-1 every byte is one character, so that any body survives.
      var text = (held + chunk.toString(StandardCharsets.ISO_8859_1)).replace(SECRET, "******");
      // The end may be the beginning of the word: it waits for the next chunk.
      var keep = last ? 0 : SECRET.length() - 1;
      while (!text.endsWith(SECRET.substring(0, keep))) {
        keep--;
      }
      var cut = text.length() - keep;
      held = text.substring(cut);
      return ByteString.copyFrom(text.substring(0, cut), StandardCharsets.ISO_8859_1);
    }
  }
}
