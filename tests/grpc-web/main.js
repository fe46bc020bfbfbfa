// Calls the service `attache.test.Echo` at a URL by every client of gRPC-Web that there is for
// Node, and says as JSON what became of the calls.

import { create, createFileRegistry, fromBinary, toBinary } from "@bufbuild/protobuf";
import {
  FileDescriptorProtoSchema,
  FileDescriptorSetSchema,
  StringValueSchema,
  file_google_protobuf_wrappers,
} from "@bufbuild/protobuf/wkt";
import { ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-node";
import grpcWeb from "grpc-web";
import XMLHttpRequest from "xhr2";

globalThis.XMLHttpRequest = XMLHttpRequest;

const url = process.argv[2];
const SERVICE = "attache.test.Echo";
const TOKEN = { "x-token": "t1" };
const LARGE = "0123456789".repeat(40_000);

// The client that grpc.io has, which runs on XMLHttpRequest. It gives metadata as an object.
function googles(format) {
  const client = new grpcWeb.GrpcWebClientBase({ format });
  const method = (name, type) =>
    new grpcWeb.MethodDescriptor(
      `/${SERVICE}/${name}`,
      type,
      Object,
      Object,
      (value) => toBinary(StringValueSchema, create(StringValueSchema, { value })),
      (bytes) => fromBinary(StringValueSchema, new Uint8Array(bytes)).value,
    );
  const failure = (error) => ({
    code: error.code,
    error: error.message,
    why: error.metadata["x-why"],
  });
  const say = (text) =>
    new Promise((resolve) => {
      let served;
      const called = client.rpcCall(
        `${url}/${SERVICE}/Say`,
        text,
        TOKEN,
        method("Say", grpcWeb.MethodType.UNARY),
        (error, message) => resolve(error ? failure(error) : { message, served }),
      );
      called.on("metadata", (metadata) => (served = metadata["x-served"]));
    });
  const count = (text, each = () => {}) =>
    new Promise((resolve) => {
      const messages = [];
      const stream = client.serverStreaming(
        `${url}/${SERVICE}/Count`,
        text,
        TOKEN,
        method("Count", grpcWeb.MethodType.SERVER_STREAMING),
      );
      stream.on("data", (message) => each(messages.push(message)));
      stream.on("error", (error) => resolve({ messages, ...failure(error) }));
      stream.on("end", () => resolve({ messages }));
    });
  return { say, count };
}

// The client of connectrpc.com, on Node's own HTTP.
function connects(httpVersion) {
  const echo = createFileRegistry(
    create(FileDescriptorSetSchema, {
      file: [
        file_google_protobuf_wrappers.proto,
        create(FileDescriptorProtoSchema, {
          name: "echo.proto",
          package: "attache.test",
          syntax: "proto3",
          dependency: ["google/protobuf/wrappers.proto"],
          service: [
            {
              name: "Echo",
              method: [
                { name: "Say", serverStreaming: false },
                { name: "Count", serverStreaming: true },
              ].map((method) => ({
                ...method,
                inputType: ".google.protobuf.StringValue",
                outputType: ".google.protobuf.StringValue",
              })),
            },
          ],
        }),
      ],
    }),
  ).getService(SERVICE);
  const client = createClient(echo, createGrpcWebTransport({ baseUrl: url, httpVersion }));
  const failure = (error) => {
    const { code, rawMessage, metadata } = ConnectError.from(error);
    return { code, error: rawMessage, why: metadata.get("x-why") };
  };
  const say = async (text) => {
    let served;
    const onHeader = (headers) => (served = headers.get("x-served"));
    try {
      const answer = await client.say({ value: text }, { headers: TOKEN, onHeader });
      return { message: answer.value, served };
    } catch (error) {
      return failure(error);
    }
  };
  const count = async (text, each = () => {}) => {
    const messages = [];
    try {
      for await (const { value } of client.count({ value: text }, { headers: TOKEN })) {
        each(messages.push(value));
      }
      return { messages };
    } catch (error) {
      return { messages, ...failure(error) };
    }
  };
  return { say, count };
}

async function unary({ say }) {
  const large = await say(LARGE);
  return {
    hello: await say("hello"),
    token: await say("token"),
    fail: await say("fail"),
    large: large.message === LARGE,
    unknown: (await say("unknown")).code,
  };
}

async function streams({ count }) {
  return { three: await count("3"), broken: await count("2!") };
}

// Of a stream that goes on when the first message was answered.
async function live({ say, count }) {
  return { live: await count("live", (so_far) => so_far === 1 && say("go on")) };
}

const text = googles("text");
const http1 = connects("1.1");
const http2 = connects("2");
const seen = {
  "grpc-web, text": { ...(await unary(text)), ...(await streams(text)) },
  "grpc-web, binary": await unary(googles("binary")),
  "connect, HTTP/1.1": { ...(await unary(http1)), ...(await streams(http1)), ...(await live(http1)) },
  "connect, HTTP/2": { ...(await unary(http2)), ...(await streams(http2)), ...(await live(http2)) },
};
console.log(JSON.stringify(seen));
process.exit(0);
