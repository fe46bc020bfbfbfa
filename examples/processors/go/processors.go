package main

import (
	"bytes"
	"encoding/json"
	"mime"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// addHeader marks every request with a header.
type addHeader struct{ passThrough }

func (*addHeader) RequestHeaders(_ Headers, out *Mutation) {
	out.Set("x-attache", "was here")
}

// rewriteJSON adds a field to JSON responses.
type rewriteJSON struct {
	passThrough
	isJSON bool
	held   []byte
}

// No more of a body than this is held.
const maxBody = 4 << 20

func (p *rewriteJSON) ResponseHeaders(in Headers, out *Mutation) {
	kind, _, _ := mime.ParseMediaType(in.Get("content-type"))
	p.isJSON = kind == "application/json" || strings.HasSuffix(kind, "+json")
	if p.isJSON && !in.EndOfStream {
		// The body changes its length, and in BUFFERED mode Envoy checks that.
		out.Remove("content-length")
	}
}

func (p *rewriteJSON) ResponseBody(chunk []byte, last bool) ([]byte, error) {
	if !p.isJSON {
		return chunk, nil
	}
	if len(p.held)+len(chunk) > maxBody {
		return nil, status.Error(codes.ResourceExhausted, "the body is too large")
	}
	p.held = append(p.held, chunk...)
	if !last {
		return nil, nil
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(p.held, &object); err != nil {
		return nil, err
	}
	object["processed_by"] = json.RawMessage(`"attache"`)
	return json.Marshal(object)
}

// redact hides a word in both bodies, also where it lies across chunks. The length stays, and so
// does content-length.
type redact struct {
	passThrough
	request, response redactor
}

func (p *redact) RequestBody(chunk []byte, last bool) ([]byte, error) {
	return p.request.push(chunk, last), nil
}

func (p *redact) ResponseBody(chunk []byte, last bool) ([]byte, error) {
	return p.response.push(chunk, last), nil
}

var secret, stars = []byte("secret"), []byte("******")

type redactor struct{ held []byte }

func (r *redactor) push(chunk []byte, last bool) []byte {
	text := bytes.ReplaceAll(append(r.held, chunk...), secret, stars)
	// The end may be the beginning of the word: it waits for the next chunk.
	keep := 0
	for n := 1; !last && n < len(secret); n++ {
		if bytes.HasSuffix(text, secret[:n]) {
			keep = n
		}
	}
	r.held = bytes.Clone(text[len(text)-keep:])
	return text[:len(text)-keep]
}
