package pki

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// JoinPath is where a coordinator answers join requests.
const JoinPath = "/v1/join"

const (
	maxAnswer          = 1 << 20
	defaultJoinTimeout = 30 * time.Second

	// While no coordinator leads, which lasts a second or two, the addresses are asked again.
	leaderWithin   = 10 * time.Second
	leaderInterval = 200 * time.Millisecond
)

// JoinOptions say how a program joins a cluster.
type JoinOptions struct {
	Addresses []string  // required: host:port of the API of one or more coordinators, tried in turn
	Token     JoinToken // required
	Role      Role      // required: what this program is
	Name      string    // required: its host or node id
	Store     *Store    // required: where the credentials go

	Timeout time.Duration    // of one attempt at one address; default: 30 s
	Now     func() time.Time // default: time.Now
	// Dial opens the connection that TLS goes over; default: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Joined is a program that has joined.
type Joined struct {
	Credentials *Credentials
	Cluster     api.JoinCluster
}

// Join gets a certificate for a join token and saves it. Each address is asked once, and again while the coordinators have
// no leader. The token is sent only over a connection whose CA has the token's pin; where another one answers nothing at
// all is sent.
//
// All attempts carry the same signing request, so that a coordinator can answer again when its first answer
// was lost, or a leader that went had taken the request: a token is spent by one public key, not by one request.
func Join(ctx context.Context, o JoinOptions) (*Joined, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	enrolment, err := NewEnrolment()
	if err != nil {
		return nil, err
	}
	for end := time.Now().Add(leaderWithin); ; {
		joined, err := o.turn(ctx, enrolment)
		if err == nil {
			if err := o.Store.Save(joined.Credentials); err != nil {
				return nil, err
			}
			return joined, nil
		}
		if !fault.Is(err, fault.NoLeader) || time.Now().After(end) || !sleep.For(ctx, leaderInterval) {
			return nil, err
		}
	}
}

// turn asks each address until one has decided.
func (o *JoinOptions) turn(ctx context.Context, enrolment *Enrolment) (*Joined, error) {
	var failed []error
	for _, address := range o.Addresses {
		joined, err := o.attempt(ctx, address, enrolment)
		if err == nil {
			return joined, nil
		}
		err = fmt.Errorf("cannot join at %s: %w", address, err)
		if final(err) {
			return nil, errors.Join(append([]error{err}, failed...)...) // the decision first
		}
		if failed = append(failed, err); ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failed...)
}

// final reports whether a coordinator has decided: no other one will answer differently.
func final(err error) bool {
	var f *fault.Error
	return errors.As(err, &f) && f.Status() < http.StatusInternalServerError && f.Code != fault.RateLimited
}

func (o *JoinOptions) complete() error {
	if _, err := NewIdentity("cluster", o.Role, o.Name); err != nil {
		return err
	}
	switch {
	case o.Token.IsZero():
		return refuse(Malformed, "cannot join without a join token: make one with `demiurge host join-token`")
	case len(o.Addresses) == 0:
		return errors.New("cannot join: no address of a coordinator is given")
	case o.Store == nil:
		return errors.New("cannot join: no store for the certificate is given")
	}
	if o.Timeout <= 0 {
		o.Timeout = defaultJoinTimeout
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	return nil
}

// attempt asks one coordinator.
func (o *JoinOptions) attempt(ctx context.Context, address string, enrolment *Enrolment) (*Joined, error) {
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	server := &pinnedServer{pin: o.Token.Pin, now: o.Now}
	transport := &http.Transport{
		DialContext: o.Dial, TLSClientConfig: server.config(), DisableKeepAlives: true, ForceAttemptHTTP2: true,
		Proxy: nil, // a proxy would have to be trusted with the connection
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error {
		return errors.New("a redirect: the token is for the coordinator that was dialled only")
	}}
	answer, err := o.post(ctx, client, address, enrolment)
	if err != nil {
		return nil, err
	}
	want, err := NewIdentity(server.who.Cluster(), o.Role, o.Name)
	if err != nil {
		return nil, err
	}
	credentials, err := enrolment.Accept(answer.Certificate, answer.CA, want, o.Now())
	if err != nil {
		return nil, fmt.Errorf("cannot use the answer of %s: %w", server.who, err)
	}
	if !credentials.Bundle().Has(o.Token.Pin, o.Now()) {
		return nil, refuse(WrongPin, "cannot use the answer of %s: its CA bundle is without the CA %s of the token; make a new token", server.who, o.Token.Pin)
	}
	return &Joined{Credentials: credentials, Cluster: answer.Cluster}, nil
}

// post sends the request and reads the answer.
func (o *JoinOptions) post(ctx context.Context, client *http.Client, address string, enrolment *Enrolment) (*api.JoinAnswer, error) {
	body, err := json.Marshal(api.JoinRequest{CSR: enrolment.Request(), Role: string(o.Role), Name: o.Name, Version: version.Get().Version})
	if err != nil {
		return nil, fmt.Errorf("cannot encode the request: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+JoinPath, bytes.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("cannot use the address %q: want host:port: %w", address, err)
	}
	request.Header.Set("Authorization", "Bearer "+o.Token.Reveal())
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err != nil || len(data) > maxAnswer {
		return nil, because(Malformed, err, "cannot read the answer: it is cut off or longer than %d bytes", maxAnswer)
	}
	return parseAnswer(response.StatusCode, data)
}

// parseAnswer reads what a coordinator answered, or why it refused.
func parseAnswer(status int, data []byte) (*api.JoinAnswer, error) {
	if status/100 != 2 {
		return nil, refusal(status, data)
	}
	var answer api.JoinAnswer
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, because(Malformed, err, "cannot read the answer")
	}
	return &answer, nil
}

// refusal is the error that a coordinator answered.
func refusal(status int, data []byte) error {
	var p api.Problem
	if err := json.Unmarshal(data, &p); err != nil || p.Code == "" {
		return fmt.Errorf("cannot understand the answer with status %d: is this address a coordinator's API?", status)
	}
	return &fault.Error{Code: fault.Code(p.Code), Message: p.Detail, Locations: p.Errors}
}

// pinnedServer verifies a coordinator by nothing but the pin of its CA. who is set by the handshake.
type pinnedServer struct {
	pin Pin
	now func() time.Time
	who Identity
}

func (s *pinnedServer) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}, SessionTicketsDisabled: true,
		InsecureSkipVerify: true, //nolint:gosec // host names are not looked at; VerifyConnection does the whole check
		VerifyConnection:   s.verify,
	}
}

// verify runs at the end of the handshake, before the first byte of the request is written.
func (s *pinnedServer) verify(state tls.ConnectionState) error {
	for _, cert := range state.PeerCertificates[1:] {
		if pinOf(cert) != s.pin {
			continue
		}
		root, err := parseRoot(cert)
		if err != nil {
			continue // the key of the pin in a certificate that is no root: the one that a successor was signed with
		}
		who, err := verify(state.PeerCertificates, NewBundle(root), x509.ExtKeyUsageServerAuth, s.now())
		if err != nil {
			return err
		}
		s.who = who
		return Peer{Roles: []Role{RoleCoordinator}}.check(who)
	}
	return refuse(WrongPin, "the server does not have the CA %s that the join token names, so the token was not sent: the address leads to another cluster or to somebody in between, or the CA was rotated since (make a new token)", s.pin)
}
