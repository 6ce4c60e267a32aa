//go:build clients

package agent_test

import (
	"bufio"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/oauth"
)

// TestOAuthWithOauth4webapi runs npm's strict client against a real agent behind real nginx with TLS, and a person
// who logs in at a real OpenID provider. `make clients` installs what it needs.
func TestOAuthWithOauth4webapi(t *testing.T) {
	modules := os.Getenv("NODE_MODULES")
	if modules == "" {
		t.Fatal("NODE_MODULES does not say where oauth4webapi is: run make clients")
	}
	h := newHome(t)
	back := h.issuer(h.org) + done
	client, secret := h.client(h.org, oauth.Client{Name: "oauth4webapi", Service: true, Redirects: []string{back}, Scope: []string{"room:read"}})
	script, err := os.ReadFile(filepath.Join("testdata", "oauth4webapi.mjs"))
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(filepath.Dir(modules), "client.mjs") // Node looks for modules beside the script
	if err := os.WriteFile(copied, script, 0o600); err != nil {
		t.Fatal(err)
	}
	node := exec.CommandContext(t.Context(), "node", copied, h.issuer(h.org), string(client.ID), secret, back,
		strconv.Itoa(h.tls), h.config.Nginx.CertificateFile)
	var errors strings.Builder
	node.Stderr = &errors
	in, err := node.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		t.Fatalf("no address: %v\n%s", node.Wait(), errors.String())
	}
	b := h.browser()
	b.open(lines.Text())
	b.login("ada")
	b.submit(url.Values{"decision": {"allow"}})
	if _, err := fmt.Fprintln(in, b.at); err != nil {
		t.Fatal(err)
	}
	if !lines.Scan() || lines.Text() != "ok" {
		t.Errorf("the client says %q\n%s", lines.Text(), errors.String())
	}
	if err := node.Wait(); err != nil {
		t.Errorf("%v\n%s", err, errors.String())
	}
}
