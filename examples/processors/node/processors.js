import { ExchangeError, Processor } from "./exchange.js";
import { status } from "@grpc/grpc-js";

const MAX_BODY = 4 << 20; // no more of a body than this is held

/** Marks every request with a header. */
export class AddHeader extends Processor {
  requestHeaders(headers, out) {
    out.set("x-attache", "was here");
  }
}

/** Adds a field to JSON responses. */
export class RewriteJson extends Processor {
  isJson = false;
  held = Buffer.alloc(0);

  responseHeaders(headers, out) {
    const kind = headers.get("content-type").split(";")[0].trim().toLowerCase();
    this.isJson = kind === "application/json" || kind.endsWith("+json");
    if (this.isJson && !headers.endOfStream) {
      // The body changes its length, and in BUFFERED mode Envoy checks that.
      out.remove("content-length");
    }
  }

  responseBody(chunk, last) {
    if (!this.isJson) return chunk;
    if (this.held.length + chunk.length > MAX_BODY) {
      throw new ExchangeError(status.RESOURCE_EXHAUSTED, "the body is too large");
    }
    this.held = Buffer.concat([this.held, chunk]);
    if (!last) return Buffer.alloc(0);
    // Numbers beyond 2^53 lose digits, as always with JSON.parse.
    const body = JSON.parse(this.held);
    if (body === null || typeof body !== "object" || Array.isArray(body)) {
      throw new TypeError("the body is no JSON object");
    }
    return Buffer.from(JSON.stringify({ ...body, processed_by: "attache" }));
  }
}

/**
 * Hides a word in both bodies, also where it lies across chunks. The length stays, and so does
 * content-length.
 */
export class Redact extends Processor {
  request = new Redactor();
  response = new Redactor();

  requestBody(chunk, last) {
    return this.request.push(chunk, last);
  }

  responseBody(chunk, last) {
    return this.response.push(chunk, last);
  }
}

const SECRET = "secret";

class Redactor {
  held = "";

  push(chunk, last) {
    // In latin1 every byte is one character, so that any body survives.
    const text = (this.held + chunk.toString("latin1")).replaceAll(SECRET, "******");
    // The end may be the beginning of the word: it waits for the next chunk.
    let keep = last ? 0 : SECRET.length - 1;
    while (!text.endsWith(SECRET.slice(0, keep))) keep--;
    this.held = text.slice(text.length - keep);
    return Buffer.from(text.slice(0, text.length - keep), "latin1");
  }
}
