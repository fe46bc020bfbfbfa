package main

import (
	"bytes"
	"errors"
	"io"
	"log"

	core "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	modes "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/ext_proc/v3"
	pb "github.com/envoyproxy/go-control-plane/envoy/service/ext_proc/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// Processor is what happens to one HTTP exchange. A body comes chunk by chunk and once with last,
// whatever mode Envoy sends it in; what is returned goes on instead.
type Processor interface {
	RequestHeaders(in Headers, out *Mutation)
	RequestBody(chunk []byte, last bool) ([]byte, error)
	ResponseHeaders(in Headers, out *Mutation)
	ResponseBody(chunk []byte, last bool) ([]byte, error)
}

// passThrough changes nothing.
type passThrough struct{}

func (passThrough) RequestHeaders(Headers, *Mutation)                 {}
func (passThrough) RequestBody(chunk []byte, _ bool) ([]byte, error)  { return chunk, nil }
func (passThrough) ResponseHeaders(Headers, *Mutation)                {}
func (passThrough) ResponseBody(chunk []byte, _ bool) ([]byte, error) { return chunk, nil }

// Headers are the headers that Envoy sent.
type Headers struct{ *pb.HttpHeaders }

// Get returns the first value of a header. Envoy fills raw_value only, never value.
func (h Headers) Get(name string) string {
	for _, header := range h.GetHeaders().GetHeaders() {
		if header.Key == name {
			return string(header.RawValue)
		}
	}
	return ""
}

// Mutation is what is to become of the headers.
type Mutation struct {
	set    []*core.HeaderValueOption
	remove []string
}

// Set replaces all values of a header. Envoy reads raw_value only, and heeds append, not
// append_action.
func (m *Mutation) Set(name, value string) {
	m.set = append(m.set, &core.HeaderValueOption{
		Header: &core.HeaderValue{Key: name, RawValue: []byte(value)},
		Append: wrapperspb.Bool(false),
	})
}

// Remove removes all values of a header.
func (m *Mutation) Remove(name string) { m.remove = append(m.remove, name) }

func (m *Mutation) response() *pb.HeadersResponse {
	mutation := &pb.HeaderMutation{SetHeaders: m.set, RemoveHeaders: m.remove}
	return &pb.HeadersResponse{Response: &pb.CommonResponse{HeaderMutation: mutation}}
}

type service struct {
	pb.UnimplementedExternalProcessorServer
	newProcessor func() Processor
}

// Process answers the messages of one HTTP exchange.
func (s *service) Process(stream grpc.BidiStreamingServer[pb.ProcessingRequest, pb.ProcessingResponse]) error {
	exchange := newExchange(s.newProcessor())
	for {
		message, err := stream.Recv()
		// Envoy ends a stream by half-close, by cancelling or by a reset: all are normal.
		if errors.Is(err, io.EOF) || stream.Context().Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		replies, err := exchange.answer(message)
		if err != nil {
			log.Printf("exchange failed: %v", err)
			return err
		}
		for _, reply := range replies {
			if err := stream.Send(reply); err != nil {
				return err
			}
		}
	}
}

type exchange struct {
	processor         Processor
	request, response direction
}

func newExchange(p Processor) *exchange {
	return &exchange{
		processor: p,
		request: direction{transform: p.RequestBody, reply: func(r *pb.BodyResponse) *pb.ProcessingResponse {
			return &pb.ProcessingResponse{Response: &pb.ProcessingResponse_RequestBody{RequestBody: r}}
		}},
		response: direction{transform: p.ResponseBody, reply: func(r *pb.BodyResponse) *pb.ProcessingResponse {
			return &pb.ProcessingResponse{Response: &pb.ProcessingResponse_ResponseBody{ResponseBody: r}}
		}},
	}
}

// answer gives the replies to a message. Each message needs its own, also where nothing changes.
func (e *exchange) answer(message *pb.ProcessingRequest) ([]*pb.ProcessingResponse, error) {
	if config := message.ProtocolConfig; config != nil { // in the first message only
		e.request.mode, e.response.mode = config.RequestBodyMode, config.ResponseBodyMode
	}
	if message.ObservabilityMode { // nobody waits for replies
		return nil, nil
	}
	switch part := message.Request.(type) {
	case *pb.ProcessingRequest_RequestHeaders:
		var out Mutation
		e.processor.RequestHeaders(Headers{part.RequestHeaders}, &out)
		reply := &pb.ProcessingResponse_RequestHeaders{RequestHeaders: out.response()}
		return []*pb.ProcessingResponse{{Response: reply}}, nil
	case *pb.ProcessingRequest_RequestBody:
		return e.request.body(part.RequestBody)
	case *pb.ProcessingRequest_RequestTrailers:
		replies, err := e.request.rest()
		reply := &pb.ProcessingResponse_RequestTrailers{RequestTrailers: &pb.TrailersResponse{}}
		return append(replies, &pb.ProcessingResponse{Response: reply}), err
	case *pb.ProcessingRequest_ResponseHeaders:
		var out Mutation
		e.processor.ResponseHeaders(Headers{part.ResponseHeaders}, &out)
		reply := &pb.ProcessingResponse_ResponseHeaders{ResponseHeaders: out.response()}
		return []*pb.ProcessingResponse{{Response: reply}}, nil
	case *pb.ProcessingRequest_ResponseBody:
		return e.response.body(part.ResponseBody)
	case *pb.ProcessingRequest_ResponseTrailers:
		replies, err := e.response.rest()
		reply := &pb.ProcessingResponse_ResponseTrailers{ResponseTrailers: &pb.TrailersResponse{}}
		return append(replies, &pb.ProcessingResponse{Response: reply}), err
	}
	return nil, status.Error(codes.Unimplemented, "a message of an unknown kind")
}

// direction is one of the two bodies.
type direction struct {
	mode      modes.ProcessingMode_BodySendMode
	transform func(chunk []byte, last bool) ([]byte, error)
	reply     func(*pb.BodyResponse) *pb.ProcessingResponse
	ended     bool
}

// body answers a body message.
func (d *direction) body(message *pb.HttpBody) ([]*pb.ProcessingResponse, error) {
	// The buffered modes have one message, without an end of stream where trailers follow.
	d.ended = message.EndOfStream ||
		d.mode == modes.ProcessingMode_BUFFERED || d.mode == modes.ProcessingMode_BUFFERED_PARTIAL
	out, err := d.transform(message.Body, d.ended)
	switch {
	case err != nil:
		return nil, err
	case d.mode == modes.ProcessingMode_FULL_DUPLEX_STREAMED:
		return d.streamed(out, message.EndOfStream), nil
	case bytes.Equal(out, message.Body):
		return []*pb.ProcessingResponse{d.reply(&pb.BodyResponse{})}, nil
	default:
		mutation := &pb.BodyMutation{Mutation: &pb.BodyMutation_Body{Body: out}}
		return []*pb.ProcessingResponse{d.mutated(mutation)}, nil
	}
}

// rest ends a body that trailers follow: no message said that it was the last.
func (d *direction) rest() ([]*pb.ProcessingResponse, error) {
	if d.ended {
		return nil, nil
	}
	out, err := d.transform(nil, true)
	if err == nil && len(out) > 0 && d.mode != modes.ProcessingMode_FULL_DUPLEX_STREAMED {
		// All chunks are answered: what was held back can't be sent any more.
		err = status.Error(codes.FailedPrecondition, "trailers after a body held back: use FULL_DUPLEX_STREAMED")
	}
	return d.streamed(out, false), err
}

// maxChunk is the largest piece that suits full-duplex mode.
const maxChunk = 64 << 10

// streamed sends bytes in full-duplex mode, where replies need not match messages.
func (d *direction) streamed(out []byte, end bool) (replies []*pb.ProcessingResponse) {
	for len(out) > maxChunk {
		replies = append(replies, d.streamed(out[:maxChunk], false)...)
		out = out[maxChunk:]
	}
	if len(out) > 0 || end {
		response := &pb.StreamedBodyResponse{Body: out, EndOfStream: end}
		mutation := &pb.BodyMutation_StreamedResponse{StreamedResponse: response}
		replies = append(replies, d.mutated(&pb.BodyMutation{Mutation: mutation}))
	}
	return replies
}

func (d *direction) mutated(mutation *pb.BodyMutation) *pb.ProcessingResponse {
	return d.reply(&pb.BodyResponse{Response: &pb.CommonResponse{BodyMutation: mutation}})
}
