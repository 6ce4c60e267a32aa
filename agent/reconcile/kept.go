package reconcile

import (
	"net"
	"sync"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// kept are the connections over which gateways answered last, one of each. Who listens on one was found out when it
// was made, and a process that has ended has closed it.
type kept struct {
	mu    sync.Mutex
	conns map[id.Gateway]keptConn // guarded by mu
}

type keptConn struct {
	net.Conn
	process driver.Process
}

// take gives the connection to a process, which the caller owns then; nil: there is none.
func (k *kept) take(p driver.Process) net.Conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	c, ok := k.conns[p.Gateway]
	if !ok {
		return nil
	}
	delete(k.conns, p.Gateway)
	if c.process != p {
		_ = c.Close()
		return nil
	}
	return c.Conn
}

// keep takes a connection over which a process has answered.
func (k *kept) keep(p driver.Process, conn net.Conn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if before, ok := k.conns[p.Gateway]; ok {
		_ = before.Close()
	}
	k.conns[p.Gateway] = keptConn{conn, p}
}

// drop closes the connection to a gateway.
func (k *kept) drop(g id.Gateway) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c, ok := k.conns[g]; ok {
		_ = c.Close()
		delete(k.conns, g)
	}
}
