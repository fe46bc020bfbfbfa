// External processors for Envoy, on the raw protocol.
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";
import { service } from "./exchange.js";
import { AddHeader, Redact, RewriteJson } from "./processors.js";

const PROCESSORS = { "add-header": AddHeader, "rewrite-json": RewriteJson, redact: Redact };
const PROTOS = new URL("../../../proto/proto/", import.meta.url).pathname;

const [name, address = "127.0.0.1:50051"] = process.argv.slice(2);
const Processor = PROCESSORS[name];
if (!Processor) {
  console.error("usage: main.js add-header|rewrite-json|redact [ADDRESS]");
  process.exit(2);
}
const definition = loader.loadSync("envoy/service/ext_proc/v3/external_processor.proto", {
  includeDirs: [PROTOS],
  keepCase: true,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { ExternalProcessor } = grpc.loadPackageDefinition(definition).envoy.service.ext_proc.v3;
const server = new grpc.Server();
server.addService(ExternalProcessor.service, service(() => new Processor()));
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`listening on ${address.replace(/:\d+$/, `:${port}`)}`);
});
