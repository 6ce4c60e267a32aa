// Package porttest finds TCP ports for tests of programs that must be told a port before they listen on it. Whatever
// can listen on port 0 does that instead.
package porttest

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// The ports that are given out. They are below those that the kernel gives to connections
// (ip_local_port_range): one of these might be taken before the program listens.
const (
	first = 12000
	count = 20000
)

// given are the ports that Free gave in this process.
var given sync.Map

// Free finds a port of 127.0.0.1 that nobody listens on, and gives it only once.
func Free(t testing.TB) int {
	t.Helper()
	for range 1000 {
		port := first + rand.IntN(count)
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
