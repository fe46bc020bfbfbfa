// A control plane made of go-control-plane. It serves whoever asks, in both variants of the
// aggregated discovery service, what it is told on its standard input, and says on its standard
// output what its clients say.
//
// A line of input is the state of the world from there on, in JSON:
//
//	{"version": "1", "resources": [{"@type": "type.googleapis.com/envoy.config.cluster.v3.Cluster", "name": "web"}]}
//
// A line of output is one event, in JSON: see event. It ends with its input.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"sync"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/log"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"

	// What stands in the resources.
	_ "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/config/trace/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/file/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/access_loggers/stream/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_authz/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/grpc_web/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ratelimit/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/proxy_protocol/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/tcp_proxy/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	_ "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
)

// What is said on the standard output.
type event struct {
	// set, failed, opened, request, response or closed.
	Event string `json:"event"`
	// Numbers the streams, in each variant from 1.
	Stream int64 `json:"stream"`
	// Whether it is a stream of changes.
	Delta bool `json:"delta"`
	// The type of the resources.
	Type string `json:"type"`
	// Of a request: the names asked for; of changes, those added.
	Names []string `json:"names"`
	// Of a request for changes: the names not wanted any more.
	Unsubscribe []string `json:"unsubscribe"`
	// Of a request for changes: the versions that the client has.
	Initial map[string]string `json:"initial"`
	// The version in force or sent; of changes only what is sent.
	Version string `json:"version"`
	// Which response this is, or answers.
	Nonce string `json:"nonce"`
	// Why a response is refused, or a state cannot be set; empty otherwise.
	Error string `json:"error"`
	// Who asks.
	Node string `json:"node"`
}

var output sync.Mutex

func say(said event) {
	line, err := json.Marshal(said)
	if err != nil {
		panic(err)
	}
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(line))
}

func reason(refused *status.Status) string {
	if refused == nil {
		return ""
	}
	// Of a refusal without a reason, too.
	return fmt.Sprintf("%d: %s", refused.GetCode(), refused.GetMessage())
}

// callbacks tell what is said on the streams.
func callbacks() server.CallbackFuncs {
	return server.CallbackFuncs{
		StreamOpenFunc: func(_ context.Context, stream int64, _ string) error {
			say(event{Event: "opened", Stream: stream})
			return nil
		},
		StreamClosedFunc: func(stream int64, _ *core.Node) {
			say(event{Event: "closed", Stream: stream})
		},
		StreamRequestFunc: func(stream int64, request *discovery.DiscoveryRequest) error {
			say(event{
				Event:   "request",
				Stream:  stream,
				Type:    request.GetTypeUrl(),
				Names:   request.GetResourceNames(),
				Version: request.GetVersionInfo(),
				Nonce:   request.GetResponseNonce(),
				Error:   reason(request.GetErrorDetail()),
				Node:    request.GetNode().GetId(),
			})
			return nil
		},
		StreamResponseFunc: func(_ context.Context, stream int64, _ *discovery.DiscoveryRequest, response *discovery.DiscoveryResponse) {
			say(event{
				Event:   "response",
				Stream:  stream,
				Type:    response.GetTypeUrl(),
				Version: response.GetVersionInfo(),
				Nonce:   response.GetNonce(),
			})
		},
		DeltaStreamOpenFunc: func(_ context.Context, stream int64, _ string) error {
			say(event{Event: "opened", Delta: true, Stream: stream})
			return nil
		},
		DeltaStreamClosedFunc: func(stream int64, _ *core.Node) {
			say(event{Event: "closed", Delta: true, Stream: stream})
		},
		StreamDeltaRequestFunc: func(stream int64, request *discovery.DeltaDiscoveryRequest) error {
			say(event{
				Event:       "request",
				Delta:       true,
				Stream:      stream,
				Type:        request.GetTypeUrl(),
				Names:       request.GetResourceNamesSubscribe(),
				Unsubscribe: request.GetResourceNamesUnsubscribe(),
				Initial:     request.GetInitialResourceVersions(),
				Nonce:       request.GetResponseNonce(),
				Error:       reason(request.GetErrorDetail()),
				Node:        request.GetNode().GetId(),
			})
			return nil
		},
		StreamDeltaResponseFunc: func(stream int64, _ *discovery.DeltaDiscoveryRequest, response *discovery.DeltaDiscoveryResponse) {
			say(event{
				Event:   "response",
				Delta:   true,
				Stream:  stream,
				Type:    response.GetTypeUrl(),
				Version: response.GetSystemVersionInfo(),
				Nonce:   response.GetNonce(),
			})
		},
	}
}

// everybody gets the same.
type everybody struct{}

func (everybody) ID(*core.Node) string { return "everybody" }

// snapshot reads a line of input.
func snapshot(line []byte) (*cache.Snapshot, string, error) {
	var state struct {
		Version   string            `json:"version"`
		Resources []json.RawMessage `json:"resources"`
	}
	if err := json.Unmarshal(line, &state); err != nil {
		return nil, "", err
	}
	resources := map[string][]types.Resource{}
	for _, written := range state.Resources {
		var read anypb.Any
		if err := protojson.Unmarshal(written, &read); err != nil {
			return nil, state.Version, err
		}
		resource, err := read.UnmarshalNew()
		if err != nil {
			return nil, state.Version, err
		}
		resources[read.GetTypeUrl()] = append(resources[read.GetTypeUrl()], resource)
	}
	snapshot, err := cache.NewSnapshot(state.Version, resources)
	return snapshot, state.Version, err
}

func run(address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	// The mode for aggregated streams: no response before all that it has is asked for.
	snapshots := cache.NewSnapshotCache(true, everybody{}, log.NewDefaultLogger())
	served := grpc.NewServer()
	discovery.RegisterAggregatedDiscoveryServiceServer(
		served, server.NewServer(context.Background(), snapshots, callbacks()))
	go func() {
		if err := served.Serve(listener); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}()
	output.Lock()
	fmt.Println("listening on", listener.Addr())
	output.Unlock()

	input := bufio.NewReader(os.Stdin)
	for {
		line, err := input.ReadBytes('\n')
		if err != nil {
			served.Stop()
			return nil
		}
		next, version, err := snapshot(line)
		if err == nil {
			err = snapshots.SetSnapshot(context.Background(), "everybody", next)
		}
		if err != nil {
			say(event{Event: "failed", Version: version, Error: err.Error()})
			continue
		}
		say(event{Event: "set", Version: version})
	}
}

func main() {
	address := "127.0.0.1:0"
	if len(os.Args) > 1 {
		address = os.Args[1]
	}
	if err := run(address); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
