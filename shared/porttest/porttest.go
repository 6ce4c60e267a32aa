// Package porttest finds TCP ports for tests of programs that must be told a port before they listen on it. Whatever
// can listen on port 0 does that instead.
package porttest

import (
	"net"
	"strconv"
	"sync"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/freeport"
)

// given are the ports that Free gave in this process.
var given sync.Map

// Free finds a port of 127.0.0.1 that nobody listens on, and gives it only once.
func Free(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := freeport.Pick()
		if _, taken := given.LoadOrStore(port, true); taken {
			continue
		}
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port))); err == nil {
			_ = l.Close()
			return port
		}
	}
	t.Fatal("no port is free")
	return 0
}
