package systemtest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/client"
	"github.com/demiurge-platform/demiurge/shared/outputtest"
)

var addressLine = regexp.MustCompile(`(?m)^(  listen: \[?)"([0-9.]+):[0-9]+"`)

// copied runs a second agent with the key and certificate of a host, as it runs on a copy of the machine. It is refused,
// the first one's end and return too, and everything stays where it is.
func (c *cluster) copied() {
	dir := shortDir(c.t)
	text, err := os.ReadFile(filepath.Join(c.dir, "agent-2.yaml"))
	if err != nil {
		c.t.Fatal(err)
	}
	conf := strings.NewReplacer(filepath.Join(c.dir, "agent-2"), filepath.Join(dir, "data"), filepath.Join(c.dir, "run-2"), filepath.Join(dir, "run")).Replace(string(text))
	conf = addressLine.ReplaceAllStringFunc(conf, func(line string) string {
		m := addressLine.FindStringSubmatch(line)
		return fmt.Sprintf(`%s"%s:%d"`, m[1], m[2], freePort(c.t))
	})
	if err := os.MkdirAll(filepath.Join(dir, "data"), 0o700); err != nil {
		c.t.Fatal(err)
	}
	if out, err := exec.Command("cp", "-a", filepath.Join(c.dir, "agent-2", "pki"), filepath.Join(dir, "data")).CombinedOutput(); err != nil {
		c.t.Fatalf("cannot copy the key: %v: %s", err, out)
	}
	file := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		c.t.Fatal(err)
	}
	out := &outputtest.Output{}
	second := exec.Command(filepath.Join(c.bin, "demiurge-agent"), "run", "--config", file)
	second.Stdout, second.Stderr, second.WaitDelay = out, out, time.Minute
	if err := second.Start(); err != nil {
		c.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { // ends with the process
		defer close(ended)
		_ = second.Wait()
	}()
	stop := func() {
		_ = second.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(patience):
			_ = second.Process.Kill()
			<-ended
			c.t.Errorf("the copy did not stop:\n%s", tail(out.String(), 6000))
		}
	}
	defer stop()
	told := func() string {
		if text, _, _ := c.command("status"); !strings.Contains(text, "two agents speak for it") {
			return text + "\n" + tail(out.String(), 3000)
		}
		return ""
	}
	waitFor(c.t, "the status to tell of the copy", told)
	if text := out.String(); !strings.Contains(text, "another agent speaks for host host-2") {
		c.t.Errorf("the copy does not say why it is refused:\n%s", tail(text, 3000))
	}
	c.kill(c.pid("agent-2"))
	waitFor(c.t, "the status to tell of the copy, when the first agent is back", told)
	stop()
	c.stay()
	events, err := c.client.ListEvents(c.t.Context(), client.EventQuery{Topics: []string{"host"}})
	if err != nil {
		c.t.Fatal(err)
	}
	times := 0
	for _, e := range events {
		if e.Type == "host.copied" {
			times++
		}
	}
	if times != 1 {
		c.t.Errorf("%d events tell of the copy, want 1", times)
	}
	if strings.Contains(out.String(), "following a coordinator") {
		c.t.Errorf("the copy was let in:\n%s", tail(out.String(), 6000))
	}
}
