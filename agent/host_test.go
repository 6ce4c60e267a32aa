package agent_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"path/filepath"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/agent/nginx"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// startNginx runs nginx beside the agent, as its own unit does.
func (h *host) startNginx() {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), agenttest.Patience)
	defer cancel()
	p, err := nginx.StartProcess(ctx, nginx.Options{
		DataDir: filepath.Join(h.config.DataDir, "nginx"), RunDir: filepath.Join(h.config.RunDir, "nginx"), Domain: domain,
		Listen:    []netip.AddrPort{netip.MustParseAddrPort(fmt.Sprintf("127.0.0.1:%d", h.port))},
		SocketDir: filepath.Join(h.config.RunDir, "gateways"), Workers: 2, Logger: logger(),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(p.Stop)
}

func contains(environ []byte, entry string) bool {
	for _, e := range bytes.Split(environ, []byte{0}) {
		if bytes.HasPrefix(e, []byte(entry)) {
			return true
		}
	}
	return false
}

func zombie(pid int) bool {
	s, err := procfs.Read(pid)
	return err != nil || !s.Running()
}
