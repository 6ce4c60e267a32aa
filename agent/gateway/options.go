// Package gateway is the built-in gateway program: one process that serves at most one organization
// (architecture, section 6). It is started warm, handed its organization on its private routes, and
// answers for exactly one epoch. It never takes a second organization: after it was deactivated it is
// to be stopped and started afresh.
package gateway

import (
	"fmt"
	"path/filepath"
	"time"

	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/hashicorp/go-hclog"
)

// Bounds and times of a gateway.
const (
	defaultMaxBody = 64 << 20         // of an activation: sections travel in it
	maxMessage     = 1 << 20          // of a WebSocket
	goodbye        = 2 * time.Second  // for a peer to answer the end of a WebSocket
	keepAlive      = 30 * time.Second // between pings of a WebSocket
	recheckEvery   = 30 * time.Second // how long a peer that says nothing keeps a credential that has ended
	peerTimeout    = 10 * time.Second // for a peer to answer a ping or to take a message
	stopTimeout    = 10 * time.Second // for requests to finish at SIGTERM
	maxSockets     = 10_000
	maxPublic      = 2_000 // of those, so many that whoever does not say who he is gets none: the rest is for members
	busyAt         = 16    // requests and WebSockets at a time, from which on Options.Busy is wanted
)

// Options of a Gateway.
type Options struct {
	Gateway  id.Gateway
	Listen   string // absolute path of a unix socket, or "fd:N" for a descriptor that was passed
	Control  string // the agent's socket for this gateway, which knows who may do what; empty: nobody is let in where that matters
	StateDir string // absolute; must be there
	Release  string // shown in answers; may be empty
	MaxBody  int64  // of a request on a private route; default 64 MiB
	Busy     func() // called once, when many requests and WebSockets are open at a time; may be nil
	Logger   hclog.Logger
}

// check finds what cannot work.
func (o Options) check() error {
	if _, err := id.ParseGateway(string(o.Gateway)); err != nil {
		return err
	}
	if !filepath.IsAbs(o.StateDir) {
		return fmt.Errorf("cannot use %q as state directory: want an absolute path", o.StateDir)
	}
	if o.Control != "" && !filepath.IsAbs(o.Control) {
		return fmt.Errorf("cannot use %q as the agent's socket: want an absolute path", o.Control)
	}
	if o.Logger == nil {
		return fmt.Errorf("cannot run gateway %s without a logger", o.Gateway)
	}
	return nil
}
