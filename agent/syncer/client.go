package syncer

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"
)

// ClientOptions say how to reach a coordinator.
type ClientOptions struct {
	TokenFile string // holds the agent's token
	CAFile    string // certificates that a coordinator's must go back to; empty: the system's
}

// NewClient makes the one HTTP client that speaks to coordinators. It has no time limit of its own,
// because the stream is held open: every request brings a context.
func NewClient(o ClientOptions) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.CAFile != "" {
		pem, err := os.ReadFile(o.CAFile)
		if err != nil {
			return nil, fmt.Errorf("cannot read the coordinators' certificate authority: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("cannot use %s: it holds no PEM certificate", o.CAFile)
		}
	}
	t := &tokens{path: o.TokenFile, inner: &http.Transport{
		TLSClientConfig:     conf,
		ForceAttemptHTTP2:   true,
		DialContext:         (&net.Dialer{Timeout: 2 * time.Second, KeepAlive: 5 * time.Second}).DialContext,
		TLSHandshakeTimeout: 3 * time.Second,
		MaxIdleConnsPerHost: 2,
		IdleConnTimeout:     30 * time.Second,
		WriteBufferSize:     16 << 10,
	}}
	if _, err := t.token(); err != nil {
		return nil, err
	}
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("a coordinator never redirects: is this one?")
	}}, nil
}

// tokens puts the token on every request. The file is read again when it changed, so that a token can be
// replaced while the agent runs.
type tokens struct {
	path  string
	inner http.RoundTripper

	mu    sync.Mutex // guards what was read
	value string
	mtime time.Time
}

// RoundTrip implements http.RoundTripper.
func (t *tokens) RoundTrip(req *http.Request) (*http.Response, error) {
	token, err := t.token()
	if err != nil {
		return nil, err
	}
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", "Bearer "+token)
	return t.inner.RoundTrip(req)
}

func (t *tokens) token() (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.path)
	if err == nil && t.value != "" && info.ModTime().Equal(t.mtime) {
		return t.value, nil
	}
	if err == nil {
		var b []byte
		if b, err = os.ReadFile(t.path); err == nil {
			token := strings.TrimSpace(string(b))
			if token == "" || len(token) > 4096 || strings.ContainsFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }) {
				return "", fmt.Errorf("cannot use the token file %s: it must hold one token", t.path)
			}
			t.value, t.mtime = token, info.ModTime()
			return t.value, nil
		}
	}
	if t.value != "" {
		return t.value, nil // the one that was read last may still be good
	}
	return "", fmt.Errorf("cannot read the token file: %w; make one with demiurge token create --role agent", err)
}
