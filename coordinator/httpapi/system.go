package httpapi

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"

	"github.com/danielgtaylor/huma/v2"
	"github.com/danielgtaylor/huma/v2/adapters/humago"
)

// Media types that are not application/json.
const (
	eventStream = "text/event-stream"
	jsonLines   = "application/x-ndjson"
	openapiJSON = "application/openapi+json"
	openapiYAML = "application/openapi+yaml"
	octets      = "application/octet-stream"
)

// stream is the answer of a handler that writes by itself.
type stream struct {
	Body func(huma.Context)
}

// document is the OpenAPI document, encoded when somebody asks for it first: that takes longer than
// everything else of a start.
type document struct {
	json, yaml func() ([]byte, error)
}

// newDocument takes the document after everything is registered.
func newDocument(o *huma.OpenAPI) document {
	return document{
		json: sync.OnceValues(func() ([]byte, error) { return json.Marshal(o) }),
		yaml: sync.OnceValues(o.YAML),
	}
}

// raw answers with bytes.
func raw(contentType string, body []byte) *stream {
	return &stream{Body: func(ctx huma.Context) {
		ctx.SetHeader("Content-Type", contentType)
		ctx.SetStatus(http.StatusOK)
		_, _ = ctx.BodyWriter().Write(body) // a client that went away needs no answer
	}}
}

func (s *Server) openapiJSON(context.Context, *struct{}) (*stream, error) {
	return encoded(openapiJSON, s.document.json)
}

func (s *Server) openapiYAML(context.Context, *struct{}) (*stream, error) {
	return encoded(openapiYAML, s.document.yaml)
}

// encoded answers with the document in one of its forms.
func encoded(contentType string, encode func() ([]byte, error)) (*stream, error) {
	body, err := encode()
	if err != nil {
		return nil, fmt.Errorf("cannot encode the OpenAPI document: %w", err)
	}
	return raw(contentType, body), nil
}

func (s *Server) metrics(context.Context, *struct{}) (*stream, error) {
	return &stream{Body: func(ctx huma.Context) {
		r, w := humago.Unwrap(ctx)
		s.opts.Metrics.ServeHTTP(w, r)
	}}, nil
}

type health struct {
	Body struct {
		Status string `json:"status" enum:"ok"`
	}
}

func (s *Server) healthz(context.Context, *struct{}) (*health, error) {
	out := &health{}
	out.Body.Status = "ok"
	return out, nil
}

// readyz is good when a call that needs the leader can be answered, here or by the leader.
func (s *Server) readyz(ctx context.Context, in *struct{}) (*health, error) {
	// A new cluster has no name until its first token is in the log.
	if leader, _ := s.opts.Cluster.Leader(); leader == "" || s.opts.Store.View().Cluster() == "" {
		return nil, noLeader(nil)
	}
	return s.healthz(ctx, in)
}
