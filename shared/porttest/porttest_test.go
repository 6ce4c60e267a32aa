package porttest_test

import (
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/porttest"
)

func TestFreePortsAreTheirOwners(t *testing.T) {
	low := 32768 // of the ports that the kernel gives to connections
	if text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range"); err == nil {
		_, _ = fmt.Sscan(string(text), &low)
	}
	seen := map[int]bool{}
	for range 200 {
		port := porttest.Free(t)
		if seen[port] || port >= low {
			t.Fatalf("port %d: given before %t, the kernel's own begin at %d", port, seen[port], low)
		}
		seen[port] = true
	}
	l, err := net.Listen("tcp", fmt.Sprint("127.0.0.1:", porttest.Free(t)))
	if err != nil {
		t.Fatal(err)
	}
	_ = l.Close()
}
