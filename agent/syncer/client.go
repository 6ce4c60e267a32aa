package syncer

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"time"
)

// Credentials are the certificate of this host, as it changes.
type Credentials interface {
	// TLS is how to speak with the coordinators; each handshake is made with the newest certificate.
	TLS() (*tls.Config, error)
	// Changed returns a channel that is closed when the certificate is replaced next.
	Changed() <-chan struct{}
}

// NewClient makes the one HTTP client that speaks to coordinators. It has no time limit of its own,
// because the stream is held open: every request brings a context.
func NewClient(c Credentials) (*http.Client, error) {
	r := &renewing{credentials: c}
	if _, err := r.links(); err != nil {
		return nil, err
	}
	return &http.Client{Transport: r, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("a coordinator never redirects: is this one?")
	}}, nil
}

// renewing makes new connections when the certificate was replaced: a coordinator looks at the one that a
// connection was made with, at every request. What is under way goes on over its old connection.
type renewing struct {
	credentials Credentials

	mu      sync.Mutex // guards what follows
	current *links
	changed <-chan struct{} // closed: current has an old certificate
}

// links are the connections that were made with one certificate.
type links struct {
	streams *http.Transport
	reports *lines
}

func (l *links) close() {
	l.streams.CloseIdleConnections()
	l.reports.close()
}

// RoundTrip implements http.RoundTripper.
func (r *renewing) RoundTrip(req *http.Request) (*http.Response, error) {
	l, err := r.links()
	if err != nil {
		return nil, err
	}
	if req.Method == http.MethodPost && req.GetBody != nil && req.URL.Port() != "" {
		return l.reports.RoundTrip(req)
	}
	return l.streams.RoundTrip(req)
}

// CloseIdleConnections is found by http.Client.
func (r *renewing) CloseIdleConnections() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		r.current.close()
		r.current = nil // what is asked after this makes its own
	}
}

func (r *renewing) links() (*links, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.current != nil {
		select {
		case <-r.changed:
		default:
			return r.current, nil
		}
	}
	changed := r.credentials.Changed() // before TLS, so that no change falls between
	conf, err := r.credentials.TLS()
	if err != nil {
		return nil, err
	}
	if r.current != nil {
		r.current.close()
	}
	r.changed = changed
	dial := (&net.Dialer{Timeout: dialTimeout, KeepAlive: 5 * time.Second}).DialContext
	r.current = &links{
		streams: &http.Transport{
			TLSClientConfig:     conf,
			DialContext:         dial,
			TLSHandshakeTimeout: handshakeTimeout,
			MaxIdleConnsPerHost: 2,
			IdleConnTimeout:     30 * time.Second,
			WriteBufferSize:     16 << 10,
		},
		reports: &lines{conf: conf, dial: dial},
	}
	return r.current, nil
}
