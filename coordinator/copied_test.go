package coordinator_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/coordtest"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// TestACopiedMachine: a second agent with the certificate of a host is refused wherever it asks, while the first one lives,
// through its restarts and a change of the leader, and one is told of both.
func TestACopiedMachine(t *testing.T) {
	t.Parallel()
	s := coordtest.StartSeveral(t, 3)
	ctx := within(t)
	var addresses []string
	for _, n := range s.Nodes {
		addresses = append(addresses, n.Config.API.Listen)
	}
	trust := coordtest.Join(t, s.Leader().Admin, "h1", addresses...)
	first := coordtest.NewAgent(t, coordtest.AgentClient(t, trust, addresses...), "h1", 1, coordtest.Script{})
	t.Cleanup(first.Stop)
	first.EnterGossip(s.Cluster())
	makeReady(t, s, 1)

	copied := coordtest.AgentClient(t, trust, addresses...)
	opens := func(c *client.Client, instance string) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		frames := 0
		err := c.AgentStream(ctx, "h1", instance, func(api.AssignmentFrame) error {
			frames++
			cancel()
			return nil
		})
		if frames > 0 {
			return nil
		}
		return err
	}
	refused := func(c *client.Client, where string) {
		t.Helper()
		if err := opens(c, "copy"); !fault.Is(err, fault.Conflict) || !strings.Contains(err.Error(), "host h1") {
			t.Errorf("the stream of the copy at %s: %v", where, err)
		}
	}
	for _, n := range s.Nodes {
		refused(coordtest.AgentClient(t, trust, n.Config.API.Listen), n.ID)
	}
	if _, err := copied.Observe(ctx, api.Observation{HostID: "h1", Instance: "copy", Full: true, Leaving: true}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a report of the copy: %v", err)
	}
	problem := func() string {
		st, err := s.Leader().Admin.Status(ctx)
		if err != nil {
			return ""
		}
		for _, p := range st.Problems {
			if p.Subject == "host h1" {
				return p.Message + "; " + p.Remedy
			}
		}
		return ""
	}
	coordtest.Eventually(t, "the status tells of the copy", func() bool {
		refused(copied, "any coordinator")
		return strings.Contains(problem(), "two agents speak for it: the one at 127.0.0.1 (run ")
	})
	told, err := s.Leader().Admin.ListEvents(ctx, client.EventQuery{Topics: []string{"host"}})
	if err != nil {
		t.Fatal(err)
	}
	times := 0
	for _, e := range told {
		if e.Type == "host.copied" {
			times++
			if e.HostID != "h1" || !strings.Contains(e.Reason, "127.0.0.1 (run copy) is refused") {
				t.Errorf("the event is %+v", e)
			}
		}
	}
	if times != 1 {
		t.Errorf("%d events tell of the copy, want 1", times)
	}
	if !strings.Contains(metricsOf(t, s.Leader().URL), `demiurge_host_copied{host="h1"} 1`) {
		t.Error("the metrics do not tell of the copy")
	}

	// The next run of the first agent is let in, and its reports are, as if there were no copy.
	first.StopStream()
	refused(copied, "any coordinator, while the agent restarts")
	first.StopGossip()
	next := coordtest.NewAgent(t, coordtest.AgentClient(t, trust, addresses...), "h1", 1, coordtest.Script{})
	t.Cleanup(next.Stop)
	next.EnterGossip(s.Cluster())
	refused(copied, "any coordinator, after the restart")

	// Nor does the copy get in when another coordinator begins to lead, which knows neither.
	s.Leader().Stop()
	coordtest.Eventually(t, "another coordinator refuses the copy", func() bool {
		err := opens(copied, "copy")
		if err == nil {
			t.Fatal("the copy is let in by the next leader")
		}
		return fault.Is(err, fault.Conflict)
	})
	if h, err := s.Leader().Admin.Host(ctx, "h1"); err != nil || h.State != api.HostAlive {
		t.Errorf("host h1: %+v, %v", h, err)
	}
}

// metricsOf reads the metrics of a coordinator.
func metricsOf(t *testing.T, url string) string {
	t.Helper()
	resp, err := http.Get(url + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}
