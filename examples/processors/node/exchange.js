// The protocol: which reply each message needs.
import { once } from "node:events";
import { status } from "@grpc/grpc-js";

const MAX_CHUNK = 64 << 10; // the largest piece that suits full-duplex mode
const NOTHING = Buffer.alloc(0);

/** Why an exchange fails, as a gRPC status. */
export class ExchangeError extends Error {
  constructor(code, details) {
    super(details);
    this.code = code;
  }
}

/**
 * What happens to one HTTP exchange. This one changes nothing. A body comes chunk by chunk and once
 * with `last`, whatever mode Envoy sends it in; what is returned goes on instead.
 */
export class Processor {
  requestHeaders(headers, out) {}
  requestBody(chunk, last) {
    return chunk;
  }
  responseHeaders(headers, out) {}
  responseBody(chunk, last) {
    return chunk;
  }
}

/** The headers that Envoy sent. */
class Headers {
  constructor(message) {
    this.endOfStream = message.end_of_stream;
    this.headers = message.headers?.headers ?? [];
  }

  /** The first value of a header. Envoy fills raw_value only, never value. */
  get(name) {
    return this.headers.find((header) => header.key === name)?.raw_value.toString("latin1") ?? "";
  }
}

/** What is to become of the headers. */
class Mutation {
  set_headers = [];
  remove_headers = [];

  /**
   * Replaces all values of a header. Envoy reads raw_value only, and heeds append, not
   * append_action.
   */
  set(name, value) {
    const header = { key: name, raw_value: Buffer.from(value) };
    this.set_headers.push({ header, append: { value: false } });
  }

  /** Removes all values of a header. */
  remove(name) {
    this.remove_headers.push(name);
  }
}

/** The gRPC service, with a new processor for each exchange. */
export const service = (newProcessor) => ({
  /** Answers the messages of one HTTP exchange. */
  async Process(call) {
    const exchange = new Exchange(newProcessor());
    // Envoy ends a stream by half-close, by cancelling or by a reset: all are normal.
    const gone = new AbortController();
    call.on("cancelled", () => gone.abort());
    try {
      // A call that an error destroys would send no status.
      for await (const message of call.iterator({ destroyOnReturn: false })) {
        for (const reply of exchange.answer(message)) {
          if (!call.write(reply)) await once(call, "drain", { signal: gone.signal });
        }
      }
      call.end();
    } catch (error) {
      if (call.cancelled) return;
      console.error("exchange failed:", error);
      const code = error instanceof ExchangeError ? error.code : status.UNKNOWN;
      call.emit("error", { code, details: error.message });
    }
  },
});

class Exchange {
  constructor(processor) {
    this.processor = processor;
    this.request = new Direction("request_body", (...chunk) => processor.requestBody(...chunk));
    this.response = new Direction("response_body", (...chunk) => processor.responseBody(...chunk));
  }

  /** The replies to a message. Each message needs its own, also where nothing changes. */
  answer(message) {
    if (message.protocol_config) { // in the first message only
      this.request.mode = message.protocol_config.request_body_mode;
      this.response.mode = message.protocol_config.response_body_mode;
    }
    if (message.observability_mode) return []; // nobody waits for replies
    const kind = message.request; // the reply has the same name
    const part = message[kind];
    switch (kind) {
      case "request_headers": {
        const out = new Mutation();
        this.processor.requestHeaders(new Headers(part), out);
        return [{ request_headers: { response: { header_mutation: out } } }];
      }
      case "request_body":
        return this.request.body(part);
      case "request_trailers":
        return [...this.request.rest(), { request_trailers: {} }];
      case "response_headers": {
        const out = new Mutation();
        this.processor.responseHeaders(new Headers(part), out);
        return [{ response_headers: { response: { header_mutation: out } } }];
      }
      case "response_body":
        return this.response.body(part);
      case "response_trailers":
        return [...this.response.rest(), { response_trailers: {} }];
      default:
        throw new ExchangeError(status.UNIMPLEMENTED, "a message of an unknown kind");
    }
  }
}

/** One of the two bodies. */
class Direction {
  mode = "NONE";
  ended = false;

  constructor(kind, transform) {
    this.kind = kind;
    this.transform = transform;
  }

  /** Answers a body message. */
  body(message) {
    // The buffered modes have one message, without an end of stream where trailers follow.
    this.ended = message.end_of_stream || this.mode.startsWith("BUFFERED");
    const out = this.transform(message.body, this.ended);
    if (this.mode === "FULL_DUPLEX_STREAMED") return this.streamed(out, message.end_of_stream);
    return [this.reply(out.equals(message.body) ? null : { body: out })];
  }

  /** Ends a body that trailers follow: no message said that it was the last. */
  rest() {
    if (this.ended) return [];
    const out = this.transform(NOTHING, true);
    if (out.length > 0 && this.mode !== "FULL_DUPLEX_STREAMED") {
      // All chunks are answered: what was held back can't be sent any more.
      const why = "trailers after a body held back: use FULL_DUPLEX_STREAMED";
      throw new ExchangeError(status.FAILED_PRECONDITION, why);
    }
    return this.streamed(out, false);
  }

  /** Sends bytes in full-duplex mode, where replies need not match messages. */
  streamed(out, end) {
    const replies = [];
    for (; out.length > MAX_CHUNK; out = out.subarray(MAX_CHUNK)) {
      replies.push(...this.streamed(out.subarray(0, MAX_CHUNK), false));
    }
    if (out.length > 0 || end) {
      replies.push(this.reply({ streamed_response: { body: out, end_of_stream: end } }));
    }
    return replies;
  }

  reply(body_mutation) {
    return { [this.kind]: { response: { body_mutation } } };
  }
}
