package agent_test

import (
	"bytes"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/agent"
	"github.com/demiurge-platform/demiurge/agent/agenttest"
	"github.com/demiurge-platform/demiurge/shared/pki"
)

func TestJoinSaysWhatItDoes(t *testing.T) {
	trust := agenttest.NewTrust(t)
	c := agent.DefaultConfig()
	dir := t.TempDir()
	c.HostID, c.DataDir, c.RunDir = "host-1", filepath.Join(dir, "data"), filepath.Join(dir, "run")
	c.Coordinators = []string{"127.0.0.1:1"}
	token := pki.NewJoinToken(trust.Pin()).Reveal()
	join := func(o agent.JoinOptions) (string, error) {
		var out bytes.Buffer
		o.Config, o.Out = c, &out
		err := agent.Join(t.Context(), o)
		return out.String(), err
	}
	if said, err := join(agent.JoinOptions{Token: token + "\n"}); err == nil || !strings.Contains(err.Error(), "cannot join at 127.0.0.1:1") || !strings.Contains(said, "joining as host host-1") {
		t.Errorf("nobody there: %q, %v", said, err)
	}
	if _, err := join(agent.JoinOptions{Token: "dmj1.cut"}); err == nil || !strings.Contains(err.Error(), "copy it whole") {
		t.Errorf("no token: %v", err)
	}
	if _, err := join(agent.JoinOptions{Token: token, Address: []string{"http://127.0.0.1:1"}}); err == nil || !strings.Contains(err.Error(), "agents speak TLS only") {
		t.Errorf("no address: %v", err)
	}
	trust.Join(t, c.DataDir, "host-1", time.Now())
	if said, err := join(agent.JoinOptions{Token: token}); err != nil || !strings.Contains(said, "already joined") {
		t.Errorf("joined: %q, %v", said, err)
	}
	c.HostID = "host-2"
	if _, err := join(agent.JoinOptions{Token: token}); err == nil || !strings.Contains(err.Error(), `belongs to host "host-1"`) {
		t.Errorf("another host's directory: %v", err)
	}
}
