"""External processors for Envoy, on the raw protocol."""

import asyncio
import sys

import grpc

from envoy.service.ext_proc.v3 import external_processor_pb2_grpc as rpc
from exchange import Service
from processors import AddHeader, Redact, RewriteJson

PROCESSORS = {"add-header": AddHeader, "rewrite-json": RewriteJson, "redact": Redact}


async def main():
    if len(sys.argv) < 2 or sys.argv[1] not in PROCESSORS:
        sys.exit("usage: main.py add-header|rewrite-json|redact [ADDRESS]")
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:50051"
    server = grpc.aio.server()
    rpc.add_ExternalProcessorServicer_to_server(Service(PROCESSORS[sys.argv[1]]), server)
    port = server.add_insecure_port(address)
    await server.start()
    print(f"listening on {address.rpartition(':')[0]}:{port}", flush=True)
    await server.wait_for_termination()


asyncio.run(main())
