package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"path"
	"runtime/debug"
	"slices"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

const (
	// bodyTime is how long a client may take to send its body.
	bodyTime = 10 * time.Second
	// writeTime is how long a client may take to accept one write of the answer.
	writeTime = 30 * time.Second
)

// ServeHTTP is the gate that every request passes: known path, known caller with a fitting role, within
// the limits. It refuses by default.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	started := s.opts.Now()
	rec := &recorder{ResponseWriter: w, control: http.NewResponseController(w)}
	label := "none"
	defer func() {
		cause := recover()
		if cause != nil {
			s.panicked(rec, r, cause)
		}
		s.opts.Metrics.Request(label, rec.status, s.opts.Now().Sub(started))
		if cause == http.ErrAbortHandler { // an answer that could not be finished must not look whole
			panic(http.ErrAbortHandler)
		}
	}()
	if r.TLS == nil && !s.opts.Plain {
		writeProblem(rec, fault.New(fault.InvalidRequest, "this port speaks TLS only: use an https:// address, and give your client the CA of the cluster (ca.pem in the coordinator's data directory; `demiurge --ca-cert`)"), 0)
		return
	}
	if r.Body != nil && r.Body != http.NoBody {
		// Also for a body that nobody here reads: before the answer, the server reads what is left of it, and whoever
		// never sends that would keep the connection for ever, without any token.
		_ = rec.control.SetReadDeadline(time.Now().Add(bodyTime))
	}
	row, f, status := s.find(r)
	if row != nil {
		label = row.method + " " + row.path
	}
	if f == nil && s.elsewhere(row, r) && s.forward(rec, r, row) {
		return
	}
	var c *caller
	if f == nil {
		c, f = s.admit(row, r)
	}
	if f == nil {
		f = s.roomFor(row)
	}
	if f != nil && s.decidedElsewhere(f, row, r) && s.forward(rec, r, row) {
		return
	}
	if f != nil {
		s.note(f, label, c, r)
		writeProblem(rec, f, status)
		return
	}
	// The server looks at the body of its own request to see whether all of it was read, and closes the
	// connection if not. So the guard is put into a copy: behind it, the rest of a body that was too long
	// would be taken for the next request.
	guarded := r.WithContext(context.WithValue(r.Context(), callerKey{}, c))
	if r.Body != nil && r.Body != http.NoBody {
		guarded.Body = &guardedBody{body: r.Body, control: rec.control, limit: row.bodyTime()}
	}
	s.mux.ServeHTTP(rec, guarded)
}

// find looks the route up. A path that is not in its shortest form is refused rather than redirected:
// nothing that Demiurge makes contains "..", "." or an empty element.
func (s *Server) find(r *http.Request) (*route, *fault.Error, int) {
	escaped := r.URL.EscapedPath()
	if clean := path.Clean(escaped); clean != escaped || r.Method == http.MethodConnect {
		return nil, fault.New(fault.InvalidRequest, "cannot use the path %.200q: it is not in its shortest form; the paths are listed in /openapi.json", escaped), 0
	}
	_, pattern := s.mux.Handler(r)
	if row, ok := s.rows[pattern]; ok {
		return row, row.parameters(r.URL.RawQuery), 0
	}
	if s.otherMethod(r) {
		return nil, fault.New(fault.InvalidRequest, "cannot use method %.20q here; /openapi.json lists the methods of every path", r.Method), http.StatusMethodNotAllowed
	}
	return nil, fault.New(fault.NotFound, "no such path; the paths are listed in /openapi.json"), 0
}

// parameters refuses a query that can be taken in two ways, on its way to any coordinator: what cannot be read would be
// left out as if it had not been sent, and so would the second of two values.
func (rt *route) parameters(raw string) *fault.Error {
	if raw == "" || rt.access&public != 0 {
		return nil
	}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return invalid([]fault.Location{{Location: "query", Message: fmt.Sprintf("cannot read the query: %v; encode each name and value (RFC 3986), and set & between them", err)}})
	}
	var wrong checks
	for _, name := range slices.Sorted(maps.Keys(values)) {
		if n := len(values[name]); n > 1 {
			wrong.add("query."+name, fmt.Errorf("it is given %d times: send it once", n))
		}
	}
	if len(wrong) > 0 {
		return invalid(wrong)
	}
	return nil
}

// otherMethod reports whether the path exists with another method.
func (s *Server) otherMethod(r *http.Request) bool {
	for _, m := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe := r.Clone(r.Context())
		probe.Method = m
		if _, pattern := s.mux.Handler(probe); pattern != "" {
			return true
		}
	}
	return false
}

// panicked answers for a handler that panicked. The stack is for the log only.
func (s *Server) panicked(rec *recorder, r *http.Request, cause any) {
	if err, ok := cause.(error); ok && (errors.Is(err, http.ErrAbortHandler) || r.Context().Err() != nil) {
		s.log.Debug("request ended by its client", "path", r.URL.Path, "error", err)
		return
	}
	s.log.Error("cannot answer a request: the handler panicked", "method", r.Method, "path", r.URL.Path, "panic", cause, "stack", string(debug.Stack()))
	if rec.status == 0 {
		writeProblem(rec, fault.New(fault.Internal, "an internal error occurred; the coordinator's log has the cause"), 0)
	}
}

// addressOf is the network address of a request's client, without its port. Forwarding headers are not
// believed: anybody can send them.
func addressOf(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	if a, err := netip.ParseAddr(host); err == nil {
		return a.Unmap().WithZone("").String()
	}
	return host
}

// recorder remembers the status and gives every write its own time limit.
type recorder struct {
	http.ResponseWriter
	control *http.ResponseController
	status  int
}

// Unwrap lets http.ResponseController reach the connection.
func (r *recorder) Unwrap() http.ResponseWriter { return r.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (r *recorder) WriteHeader(status int) {
	if r.status != 0 {
		return
	}
	if status/100 == 1 { // passed on from the leader, such as "go on, send the body"; the answer is to come
		r.ResponseWriter.WriteHeader(status)
		return
	}
	r.status = status
	r.extend()
	r.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (r *recorder) Write(b []byte) (int, error) {
	if r.status == 0 {
		r.WriteHeader(http.StatusOK)
	} else {
		r.extend()
	}
	return r.ResponseWriter.Write(b)
}

// extend starts the time limit of the next write. Writers that know no limits are for tests.
func (r *recorder) extend() { _ = r.control.SetWriteDeadline(time.Now().Add(writeTime)) }

// guardedBody gives the whole body one time limit, and takes the limit away at its end: a limit that
// stayed would end the connection of a request that is being worked on. A body that has not come to its end keeps
// it, because the server reads on before it answers.
type guardedBody struct {
	body    io.ReadCloser
	control *http.ResponseController
	limit   time.Duration
	limited bool
}

// Read implements io.Reader.
func (g *guardedBody) Read(b []byte) (int, error) {
	if !g.limited {
		g.limited = true
		_ = g.control.SetReadDeadline(time.Now().Add(g.limit)) // unsupported only by test writers
	}
	n, err := g.body.Read(b)
	if err == io.EOF {
		_ = g.control.SetReadDeadline(time.Time{})
	}
	return n, err
}

// Close implements io.Closer.
func (g *guardedBody) Close() error { return g.body.Close() }
