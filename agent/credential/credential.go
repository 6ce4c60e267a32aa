// Package credential keeps the certificate of this host: it is joined for once, read at each start, renewed
// in time, and replaced while connections go on.
package credential

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/pki"
	"github.com/demiurge-platform/demiurge/shared/sleep"
	"github.com/demiurge-platform/demiurge/shared/version"
)

// Options of a Keeper.
type Options struct {
	FS     fsx.FS // may write Dir
	Dir    string // the agent's data directory
	Host   id.Host
	Logger hclog.Logger
	Now    func() time.Time
}

// Renewer asks a coordinator for the next certificate.
type Renewer interface {
	RenewCertificate(ctx context.Context, in api.JoinRequest) (api.JoinAnswer, error)
}

// Keeper holds the credentials of one host.
type Keeper struct {
	o     Options
	store *pki.Store
	live  *pki.Live

	change sync.Mutex // held while the credentials are replaced
}

// Open reads the credentials of a host that has joined.
func Open(o Options) (*Keeper, error) {
	store, err := openStore(o)
	if err != nil {
		return nil, err
	}
	have, err := store.Load(o.Now())
	if err != nil {
		return nil, fmt.Errorf("cannot run host %q: %w: make a join token (`demiurge host join-token --host %[1]s`) and run `demiurge-agent join --token TOKEN --address COORDINATOR:PORT`", o.Host, err)
	}
	if err := mine(have, o.Host); err != nil {
		return nil, err
	}
	return &Keeper{o: o, store: store, live: pki.NewLive(have, pki.LiveOptions{Now: o.Now})}, nil
}

func openStore(o Options) (*pki.Store, error) {
	return pki.OpenStore(o.FS, filepath.Join(o.Dir, "pki"))
}

func mine(c *pki.Credentials, host id.Host) error {
	if who := c.Identity(); who.Role() != pki.RoleAgent || who.Name() != string(host) {
		return fmt.Errorf("cannot use the certificate of %s: this is the agent of host %q; correct host_id, or join again", who, host)
	}
	return nil
}

// TLS is how to speak with the coordinators. Each handshake is made with the newest certificate.
func (k *Keeper) TLS() (*tls.Config, error) {
	return k.live.Client(pki.Peer{Roles: []pki.Role{pki.RoleCoordinator}}, "http/1.1")
}

// Changed returns a channel that is closed when the credentials are replaced next.
func (k *Keeper) Changed() <-chan struct{} { return k.live.Changed() }

// Current are the credentials in use.
func (k *Keeper) Current() *pki.Credentials { return k.live.Current() }

// Pauses between attempts to renew.
const (
	firstPause = time.Second
	maxPause   = 5 * time.Minute
)

// Run renews the certificate in time, until ctx is done. The old one stays in use until the new one is on
// disk.
func (k *Keeper) Run(ctx context.Context, r Renewer) {
	pause := firstPause
	for {
		changed := k.live.Changed() // before the look, so that no change falls between
		wait := k.live.Current().RenewAt().Sub(k.o.Now())
		if wait <= 0 {
			err := k.renew(ctx, r)
			if err == nil {
				pause = firstPause
				continue
			}
			if ctx.Err() == nil {
				k.o.Logger.Error("cannot renew the certificate of this host; it is tried again", "expires", k.live.Current().Expires(), "again_in", pause, "error", err)
			}
			wait, pause = pause, min(2*pause, maxPause)
		}
		if !sleep.Unless(ctx, wait, changed) {
			return
		}
	}
}

// Trust takes over whom the cluster trusts now (PEM), as a coordinator says that proved to be one. During a rotation of the CA
// that makes the certificate due in time. One without the CA that signs as far as known here is from before that one,
// and is left.
func (k *Keeper) Trust(text string) {
	k.change.Lock()
	defer k.change.Unlock()
	have := k.live.Current()
	bundle, err := pki.ParseBundle(text)
	if err == nil && bundle.Equal(have.Bundle()) {
		return
	}
	if err == nil && !slices.ContainsFunc(bundle.Roots(), func(r pki.Root) bool { return r.Pin() == have.Bundle().Pin() }) {
		return
	}
	var next *pki.Credentials
	if err == nil {
		next, err = have.WithBundle(bundle, k.o.Now())
	}
	if err == nil {
		err = k.replace(next)
	}
	if err != nil {
		k.o.Logger.Error("cannot take over whom the cluster trusts now; after a rotation of the CA this host may have to join again", "error", err)
		return
	}
	k.o.Logger.Info("the cluster's CA has changed", "ca", bundle.Pin().String(), "renewed_at", next.RenewAt())
}

// replace puts credentials on the disk and into use; the caller holds change.
func (k *Keeper) replace(next *pki.Credentials) error {
	if err := k.store.Save(next); err != nil {
		return err
	}
	return k.live.Replace(next)
}

func (k *Keeper) renew(ctx context.Context, r Renewer) error {
	e, err := pki.NewEnrolment()
	if err != nil {
		return err
	}
	who := k.live.Current().Identity()
	answer, err := r.RenewCertificate(ctx, api.JoinRequest{CSR: e.Request(), Role: string(who.Role()), Name: who.Name(), Version: version.Get().Version})
	if err != nil {
		return err
	}
	k.change.Lock()
	defer k.change.Unlock()
	next, err := e.Accept(answer.Certificate, answer.CA, who, k.o.Now())
	if err != nil {
		return err
	}
	if err := k.replace(next); err != nil {
		return err
	}
	k.o.Logger.Info("renewed the certificate of this host", "expires", next.Expires())
	return nil
}

// ErrJoined is what Join answers where the host has joined already.
var ErrJoined = errors.New("this host has joined already")

// JoinOptions say how to join.
type JoinOptions struct {
	Options
	Token     pki.JoinToken
	Addresses []string // host:port of coordinators, tried in turn
	Again     bool     // although there is a certificate that counts
}

// Join gets the first certificate of a host, or replaces it. Where there is one that counts, it says so with
// ErrJoined and uses no token.
func Join(ctx context.Context, o JoinOptions) (*pki.Joined, error) {
	store, err := openStore(o.Options)
	if err != nil {
		return nil, err
	}
	if have, err := store.Load(o.Now()); err == nil && !o.Again {
		if err := mine(have, o.Host); err != nil {
			return nil, err
		}
		return &pki.Joined{Credentials: have}, ErrJoined
	}
	return pki.Join(ctx, pki.JoinOptions{
		Addresses: o.Addresses, Token: o.Token, Role: pki.RoleAgent, Name: string(o.Host), Store: store, Now: o.Now,
	})
}
