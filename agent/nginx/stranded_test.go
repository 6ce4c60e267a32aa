package nginx

import (
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// TestNginxStartsWhereItMay: the last proven generation is what nginx starts with, unless it cannot.
func TestNginxStartsWhereItMay(t *testing.T) {
	for name, x := range map[string]struct {
		change func(*testing.T, *host)
		anew   bool
	}{
		"another address, and the one before is taken": {func(t *testing.T, h *host) {
			other, err := net.Listen("tcp", h.opts.Listen[0].String())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = other.Close() })
			h.opts.Listen[0] = freePort(t)
		}, true},
		"another run directory, as a copy has it": {func(t *testing.T, h *host) {
			h.opts.RunDir = filepath.Join(filepath.Dir(h.opts.RunDir), "again")
			if err := os.MkdirAll(h.opts.RunDir, 0o700); err != nil {
				t.Fatal(err)
			}
		}, true},
		"another address":    {func(t *testing.T, h *host) { h.opts.Listen[0] = freePort(t) }, false},
		"nothing is changed": {func(*testing.T, *host) {}, false},
	} {
		for _, first := range []string{"nginx first", "the agent first"} {
			t.Run(name+", "+first, func(t *testing.T) {
				t.Parallel()
				h, gs, org := serving(t, 1)
				h.stopEngine()
				h.nginx.Stop()
				before, err := readJournalFile(h.layout())
				if err != nil {
					t.Fatal(err)
				}
				x.change(t, h)
				if first == "the agent first" {
					h.startEngine()
				}
				if err := Prepare(within(t), h.opts); err != nil {
					t.Fatal(err)
				}
				after, err := readJournalFile(h.layout())
				if err != nil || (after.Live != before.Live) != x.anew || after.Live < before.Live {
					t.Errorf("%+v, then %+v, %v", before, after, err)
				}
				h.startNginx()
				if first == "nginx first" {
					h.startEngine()
				}
				h.apply(slots(gs[0]))
				h.route(org, gs[0], 8)
				h.settled()
				h.mustServe(org, gs[0], 8)
				h.clean()
			})
		}
	}
}

// TestNginxIsStartedWithAnotherGeneration: the engine goes on from what nginx could be started with.
func TestNginxIsStartedWithAnotherGeneration(t *testing.T) {
	t.Parallel()
	h, gs, org := serving(t, 1)
	eventually(t, "nginx was looked at", func() bool { return h.engine.Status().State == api.NginxServing })
	if err := os.RemoveAll(h.layout().generations()); err != nil {
		t.Fatal(err)
	}
	before := h.nginx.PID()
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another master runs", func() bool { return h.nginx.PID() != 0 && h.nginx.PID() != before })
	eventually(t, "it serves as before", func() bool { return h.servedBy(org, gs[0], 7) == nil })
	h.settled()
	eventually(t, "nginx counts as serving", func() bool { return h.engine.Status().State == api.NginxServing })
	h.apply(slots(gs[0], h.gateway(nil)))
	h.mustServe(org, gs[0], 7)
	h.clean()
}
