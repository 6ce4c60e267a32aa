package gateway

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/hashicorp/go-hclog"
)

// A request that the table let through just before the door was closed reaches the handler after it. The
// handler is called without the table here, which is the same.
func TestNoWebSocketStaysBehindTheDoor(t *testing.T) {
	tests := map[string]struct {
		close func(*testing.T, *Gateway)
		want  websocket.StatusCode
	}{
		"open":        {func(*testing.T, *Gateway) {}, websocket.StatusNormalClosure},
		"draining":    {func(_ *testing.T, g *Gateway) { _, _ = g.tenant.drain(7) }, websocket.StatusGoingAway},
		"deactivated": {func(_ *testing.T, g *Gateway) { _ = g.deactivate(context.Background(), 7, 0) }, websocket.StatusGoingAway},
		"stopping":    {func(_ *testing.T, g *Gateway) { g.sockets.refuseNew() }, websocket.StatusTryAgainLater},
		"crowded":     {crowd, websocket.StatusTryAgainLater},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			dir, err := os.MkdirTemp("", "dm")
			if err != nil {
				t.Fatal(err)
			}
			g, err := New(Options{Gateway: "gw-aaaaaaaaaa", Listen: filepath.Join(dir, "s"), StateDir: dir, Logger: hclog.NewNullLogger()})
			if err != nil {
				t.Fatal(err)
			}
			server := httptest.NewUnstartedServer(http.HandlerFunc(g.echo))
			server.Config.ConnContext = keepConn
			server.Start()
			t.Cleanup(func() {
				server.Close()
				if err := g.Stop(context.Background()); err != nil {
					t.Error(err)
				}
				_ = os.RemoveAll(dir)
			})
			if err := g.tenant.activate(&grant{Organization: "o", Epoch: 7}); err != nil {
				t.Fatal(err)
			}
			tt.close(t, g)
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			c, _, err := websocket.Dial(ctx, server.URL, &websocket.DialOptions{HTTPHeader: http.Header{api.HeaderEpoch: {"7"}}})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = c.CloseNow() }()
			if tt.want == websocket.StatusNormalClosure {
				if err := c.Close(tt.want, ""); err != nil {
					t.Errorf("an open gateway: %v", err)
				}
				return
			}
			if _, _, err := c.Read(ctx); websocket.CloseStatus(err) != tt.want {
				t.Errorf("ended with %v, want %v", err, tt.want)
			}
		})
	}
}

// crowd takes all WebSockets that there are for people who do not say who they are.
func crowd(t *testing.T, g *Gateway) {
	var all []*websocket.Conn
	for c := new(websocket.Conn); g.sockets.add(c, nil, maxPublic); c = new(websocket.Conn) {
		all = append(all, c)
	}
	t.Cleanup(func() {
		for _, c := range all {
			g.sockets.remove(c)
		}
	})
	member := new(websocket.Conn)
	if !g.sockets.add(member, nil, maxSockets) {
		t.Error("strangers keep members out")
	}
	g.sockets.remove(member)
}
