// External processors for Envoy, on the raw protocol.
package main

import (
	"fmt"
	"log"
	"net"
	"os"

	pb "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
)

var processors = map[string]func() Processor{
	"add-header":   func() Processor { return &addHeader{} },
	"rewrite-json": func() Processor { return &rewriteJSON{} },
	"redact":       func() Processor { return &redact{} },
}

func main() {
	if len(os.Args) < 2 || processors[os.Args[1]] == nil {
		log.Fatal("usage: processors add-header|rewrite-json|redact [ADDRESS]")
	}
	address := "127.0.0.1:50051"
	if len(os.Args) > 2 {
		address = os.Args[2]
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		log.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterExternalProcessorServer(server, &service{newProcessor: processors[os.Args[1]]})
	fmt.Println("listening on", listener.Addr())
	log.Fatal(server.Serve(listener))
}
