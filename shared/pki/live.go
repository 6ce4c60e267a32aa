package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"
	"sync"
	"time"
)

// Live is the credentials of a running program. The TLS configurations that it makes ask it at every
// handshake, so that new credentials count from the next connection on and nothing restarts.
type Live struct {
	now func() time.Time

	mu      sync.RWMutex // guards current and changed; held for their exchange only
	current *Credentials
	changed chan struct{} // closed when current is replaced
}

// LiveOptions are the seams of a Live.
type LiveOptions struct {
	Now func() time.Time // default: time.Now
}

// NewLive begins with credentials.
func NewLive(c *Credentials, o LiveOptions) *Live {
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Live{now: o.Now, current: c, changed: make(chan struct{})}
}

// Current are the credentials that the next connection is made with.
func (l *Live) Current() *Credentials {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.current
}

// Changed returns a channel that is closed at the next Replace. Take it before Current, so that no change
// falls between the two.
func (l *Live) Changed() <-chan struct{} {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.changed
}

// Replace makes the next connections use other credentials of the same program. Open connections go on.
func (l *Live) Replace(next *Credentials) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := sameIdentity(next.identity, l.current.identity); err != nil {
		return err
	}
	l.current = next
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Server makes the configuration of a listener. protocols are offered by ALPN, the best first ("h2",
// "http/1.1"); a listener of a protocol of its own should name it, so that bytes meant for one listener
// can never be replayed to another one.
//
// Sessions are never resumed: a resumed one would carry a decision of before a rotation or of another
// listener, and a full handshake costs about a millisecond of processor on each side.
func (l *Live) Server(peer Peer, protocols ...string) (*tls.Config, error) {
	if err := peer.valid(); err != nil {
		return nil, err
	}
	auth := tls.RequireAnyClientCert // verified below: crypto/tls itself knows no roles and no end of overlap
	if peer.Anonymous {
		auth = tls.RequestClientCert
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: slices.Clone(protocols), SessionTicketsDisabled: true, ClientAuth: auth,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			c, err := l.presentable()
			if err != nil {
				return nil, err
			}
			if c.identity.role != RoleCoordinator {
				return nil, refuse(WrongRole, "cannot serve as %s: only coordinators serve", c.identity)
			}
			return c.forTLS(true), nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 && peer.Anonymous {
				return nil
			}
			return l.accept(state, peer, x509.ExtKeyUsageClientAuth)
		},
	}, nil
}

// Client makes the configuration of a dialler. The host name that is dialled is not looked at: who
// answers is decided by peer.
func (l *Live) Client(peer Peer, protocols ...string) (*tls.Config, error) {
	if err := peer.valid(); err != nil {
		return nil, err
	}
	if peer.Anonymous {
		return nil, errors.New("cannot dial a peer without a certificate: a server always has one")
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: slices.Clone(protocols), SessionTicketsDisabled: true,
		// Not the absence of a check: it turns the check of the host name off, and VerifyConnection does
		// the whole one.
		InsecureSkipVerify: true, //nolint:gosec // see above
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			c, err := l.presentable()
			if err != nil {
				return nil, err
			}
			return c.forTLS(false), nil
		},
		VerifyConnection: func(state tls.ConnectionState) error {
			return l.accept(state, peer, x509.ExtKeyUsageServerAuth)
		},
	}, nil
}

// presentable are the credentials, if the other side could accept them. Saying it here is clearer than the
// bare alert that the other side would send.
func (l *Live) presentable() (*Credentials, error) {
	c := l.Current()
	if err := checkLife(c.chain[0], c.identity, l.now()); err != nil {
		return nil, err
	}
	return c, nil
}

// accept decides about the other end of a connection.
func (l *Live) accept(state tls.ConnectionState, peer Peer, use x509.ExtKeyUsage) error {
	who, err := verify(state.PeerCertificates, l.Current().bundle, use, l.now())
	if err != nil {
		return err
	}
	return peer.check(who)
}

// valid refuses a Peer that would let everybody or nobody in.
func (p Peer) valid() error {
	if len(p.Roles) == 0 {
		return errors.New("cannot make a TLS configuration without the roles that the peer may have")
	}
	for _, r := range p.Roles {
		if _, err := ParseRole(string(r)); err != nil {
			return err
		}
	}
	return nil
}
