package agent_test

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/chromedp"
	"github.com/coder/websocket"

	"github.com/demiurge-platform/demiurge/agent/agenttest"
)

// chromium is a tab of a real browser. It finds every name at this host, as with a name server, and trusts the
// key of this site's nginx beside those that it always trusts.
func (s *site) chromium() context.Context {
	s.t.Helper()
	pair, err := tls.LoadX509KeyPair(s.config.Nginx.CertificateFile, s.config.Nginx.CertificateFile)
	if err != nil {
		s.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		s.t.Fatal(err)
	}
	key := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	profile, err := os.MkdirTemp("", "dm-chromium")
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = os.RemoveAll(profile) })
	options := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath("chromium-headless-shell"), chromedp.UserDataDir(profile), chromedp.DisableGPU,
		chromedp.Flag("host-resolver-rules", "MAP *."+domain+" 127.0.0.1"),
		chromedp.Flag("ignore-certificate-errors-spki-list", base64.StdEncoding.EncodeToString(key[:])),
		chromedp.Flag("disable-component-update", true), chromedp.Flag("disable-quic", true),
	)
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, end := chromedp.NewExecAllocator(context.Background(), options...)
	s.t.Cleanup(end)
	ctx, done := chromedp.NewContext(ctx)
	s.t.Cleanup(done)
	ctx, cancel := context.WithTimeout(ctx, 4*agenttest.Patience)
	s.t.Cleanup(cancel)
	return ctx
}

// tab is one tab with what a person does in it.
type tab struct {
	t   testing.TB
	ctx context.Context
}

func (b tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, steps...); err != nil {
		b.t.Fatalf("%v; at %s: %s", err, b.see("location.href"), b.see("document.body.innerText"))
	}
}

// see is the value of an expression in the page.
func (b tab) see(expression string) string {
	b.t.Helper()
	value, err := chromedp.Run(b.ctx, chromedp.Evaluate[string]("String("+expression+")"))
	if err != nil {
		b.t.Errorf("the page does not say %s: %v", expression, err)
	}
	return value
}

// await waits until an expression in the page has a value.
func (b tab) await(expression, want string) {
	b.t.Helper()
	agenttest.Wait(b.t, expression+" is "+want, func() bool { return b.see(expression) == want })
}

// login fills in the form of the provider, as somebody who types, and waits for the page behind it.
func (b tab) login(user, next string) {
	b.t.Helper()
	b.do(chromedp.SendKeys(chromedp.CSS("#username"), user), chromedp.SendKeys(chromedp.CSS("#password"), password), chromedp.Click(chromedp.CSS("button")))
	b.do(chromedp.WaitReady(chromedp.CSS(next)))
}

// sketch is a program in a container: a page that keeps a WebSocket and a stream open, and says how they fare.
const sketch = `<!doctype html><title>Sketch</title><h1 id="who">%s</h1><p id="socket">opening</p><p id="stream">opening</p><script>
const state = document.querySelector("#socket"), socket = new WebSocket("wss://" + location.host + "/socket")
socket.onopen = () => socket.send("hello")
socket.onmessage = m => state.textContent = "heard " + m.data
socket.onclose = () => state.textContent = "closed"
const news = document.querySelector("#stream"), stream = new EventSource("/stream")
stream.onmessage = m => news.textContent = "heard " + m.data
stream.onerror = () => { news.textContent = "closed"; stream.close() }
</script>`

// newSketch runs that program and counts what reaches it.
func newSketch(t *testing.T) (port int, hits *atomic.Int64) {
	t.Helper()
	hits = new(atomic.Int64)
	program := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		switch r.URL.Path {
		case "/socket":
		case "/stream":
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = fmt.Fprint(w, "data: news\n\n")
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return
		default:
			w.Header().Set("Content-Type", "text/html; charset=utf-8")
			_, _ = fmt.Fprintf(w, sketch, r.Header.Get("X-Demiurge-User"))
			return
		}
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer func() { _ = c.CloseNow() }()
		for {
			kind, message, err := c.Read(context.Background())
			if err != nil || c.Write(context.Background(), kind, message) != nil {
				return
			}
		}
	}))
	t.Cleanup(program.Close)
	return program.Listener.Addr().(*net.TCPAddr).Port, hits
}

// TestInChromiumAMemberOpensAContainerAndARemovedOneDoesNot: a real browser, the provider's real form, real TLS and
// nginx. That the refusal comes within a second is printed and not asserted; asserted is that nothing reaches the
// container once the agent knows of the removal, and that what the page has open ends.
func TestInChromiumAMemberOpensAContainerAndARemovedOneDoesNot(t *testing.T) {
	y := newYard(t)
	var hits *atomic.Int64
	y.port, hits = newSketch(t)
	made := y.create()
	if status := y.announce(made); status != http.StatusOK {
		t.Fatalf("announcing: %d", status)
	}
	page := y.address(made.Hostname, "/board")
	bob := tab{t, y.chromium()}
	bob.do(chromedp.Navigate(page), chromedp.WaitReady(chromedp.CSS("#password")))
	if hits.Load() != 0 {
		t.Fatal("the container was asked before anybody had logged in")
	}
	bob.login("bob", "#who")
	if at, who := bob.see("location.href"), bob.see(`document.querySelector("#who").textContent`); at != page || who != "bob" {
		t.Fatalf("after the login: %s, for %q", at, who)
	}
	if cookies := bob.see("document.cookie"); cookies != "" {
		t.Errorf("the page's own programs can read %q", cookies)
	}
	bob.await(`document.querySelector("#socket").textContent`, "heard hello")
	bob.await(`document.querySelector("#stream").textContent`, "heard news")
	// Bob is removed. Whatever he asks for when the agent knows it is refused.
	tenant, _ := y.agent.Tenants().Find(y.org)
	removed := time.Now()
	y.members("ada=owner", "eve=member")
	agenttest.Wait(t, "the agent knows that bob was removed", func() bool {
		p, err := tenant.Policy()
		return err == nil && p.Members()["bob"] == ""
	})
	seen := time.Since(removed)
	bob.await(`document.querySelector("#socket").textContent`, "closed")
	closed := time.Since(removed)
	bob.await(`document.querySelector("#stream").textContent`, "closed")
	hits.Store(0)
	asked := time.Now()
	bob.do(chromedp.Navigate(page))
	t.Logf("bob's removal was known to the agent after %s, his page saw its WebSocket closed after %s, and the next page was refused in %s", seen, closed, time.Since(asked))
	if at := bob.see("location.href"); hits.Load() != 0 || at == page {
		t.Fatalf("after the removal: %s: %s", at, bob.see("document.body.innerText"))
	}
	// To log in again does not help him.
	bob.login("bob", "h1")
	if text := bob.see("document.body.innerText"); hits.Load() != 0 || !strings.Contains(text, "not a member") {
		t.Errorf("logged in again: %s", text)
	}
}
