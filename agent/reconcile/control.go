package reconcile

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
	"github.com/demiurge-platform/demiurge/shared/procfs"
)

// HTTPControl is the Control over the gateways' unix sockets. Who listens is part of the question: the kernel
// tells which process it was when a connection is made. A question for health makes a new one, because whether the
// gateway takes connections is part of that question too; an organization is handed over on the one that the last
// answer came on, because a caller waits for it. A call takes no goroutine, because hundreds of gateways are asked
// for their health all the time: net/http's client takes three.
type HTTPControl struct {
	socket func(id.Gateway) string
	kept   kept
}

// NewHTTPControl makes the Control for the sockets that a function names.
func NewHTTPControl(socket func(id.Gateway) string) *HTTPControl {
	return &HTTPControl{socket: socket, kept: kept{conns: map[id.Gateway]keptConn{}}}
}

// Health implements Control.
func (c *HTTPControl) Health(ctx context.Context, p driver.Process) (api.GatewayHealth, error) {
	var h api.GatewayHealth
	c.kept.drop(p.Gateway)
	b, err := c.call(ctx, p, http.MethodGet, "/healthz", nil)
	if err != nil {
		return h, err
	}
	if err := json.Unmarshal(b, &h); err != nil {
		return h, fmt.Errorf("the health answer is not understood: %w", err)
	}
	return h, nil
}

// Activate implements Control.
func (c *HTTPControl) Activate(ctx context.Context, p driver.Process, body *api.Activate) error {
	_, err := c.call(ctx, p, http.MethodPost, "/control/activate", body)
	return err
}

// Deactivate implements Control.
func (c *HTTPControl) Deactivate(ctx context.Context, p driver.Process, body api.Deactivate) error {
	_, err := c.call(ctx, p, http.MethodPost, "/control/deactivate", body)
	return err
}

// Forget implements Control.
func (c *HTTPControl) Forget(g id.Gateway) { c.kept.drop(g) }

// maxAnswer bounds what is read of a gateway's answer.
const maxAnswer = 1 << 20

// call asks and reads the whole answer. What is asked may be asked twice: a gateway may close a connection that is
// kept at the moment at which it is used, and then a new one is made.
func (c *HTTPControl) call(ctx context.Context, p driver.Process, method, path string, body any) ([]byte, error) {
	var raw []byte
	if body != nil {
		var err error
		if raw, err = json.Marshal(body); err != nil {
			return nil, err
		}
	}
	a, err := c.ask(ctx, c.kept.take(p), p, method, path, raw)
	if err != nil {
		return nil, err
	}
	if a.status/100 != 2 {
		return nil, refused(a.status, a.body)
	}
	return a.body, nil
}

// answer is what a gateway answers.
type answer struct {
	status int
	body   []byte
	last   bool // nothing more comes over its connection
}

// ask sends the request over a connection that is kept, nil for none, and else over a new one.
func (c *HTTPControl) ask(ctx context.Context, conn net.Conn, p driver.Process, method, path string, body []byte) (answer, error) {
	old := conn != nil
	if !old {
		var err error
		if conn, err = c.dial(ctx, p); err != nil {
			return answer{}, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+string(p.Gateway)+path, bytes.NewReader(body))
	if err != nil {
		_ = conn.Close()
		return answer{}, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	a, err := roundTrip(conn, req)
	switch {
	case err == nil && stop() && !a.last:
		c.kept.keep(p, conn)
		return a, nil
	case err == nil:
		_ = conn.Close()
		return a, nil
	}
	stop()
	_ = conn.Close()
	switch {
	case ctx.Err() != nil:
		err = ctx.Err()
	case old:
		return c.ask(ctx, nil, p, method, path, body)
	}
	return answer{}, fmt.Errorf("cannot %s %s: %w", method, path, err)
}

// dial connects to the gateway's socket and makes sure that it is the process's.
func (c *HTTPControl) dial(ctx context.Context, p driver.Process) (net.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	// The kernel answers at once, so a Dialer's care for time limits and several addresses would be for nothing.
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: c.socket(p.Gateway), Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := listenedBy(conn, p.PID); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// roundTrip sends the request and reads the whole answer. A redirect is an answer like any other. A gateway
// may refuse before it has read everything: then it is its answer that counts.
func roundTrip(conn net.Conn, req *http.Request) (answer, error) {
	w := bufio.NewWriterSize(conn, 2<<10)
	sent := errors.Join(req.Write(w), w.Flush())
	r := bufio.NewReaderSize(io.LimitReader(conn, maxAnswer), 2<<10)
	resp, err := http.ReadResponse(r, req)
	for err == nil && resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
		resp, err = http.ReadResponse(r, req)
	}
	if err != nil {
		return answer{}, errors.Join(sent, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	last := sent != nil || resp.Close || resp.StatusCode == http.StatusSwitchingProtocols || r.Buffered() > 0
	return answer{resp.StatusCode, body, last}, err
}

// refused keeps the stable code of a gateway's refusal, when it gives one.
func refused(status int, body []byte) error {
	var p api.Problem
	if json.Unmarshal(body, &p) == nil && p.Code != "" {
		if _, known := fault.Codes()[fault.Code(p.Code)]; known {
			return fault.New(fault.Code(p.Code), "the gateway refuses: %s", clip(p.Detail))
		}
	}
	return fmt.Errorf("the gateway answers %d %s", status, http.StatusText(status))
}

// listenedBy makes sure that the process, or one of its session, is who listens on the other side.
func listenedBy(conn net.Conn, pid int) error {
	u, ok := conn.(*net.UnixConn)
	if !ok {
		return errors.New("cannot tell who listens: not a unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return err
	}
	if credErr != nil {
		return fmt.Errorf("cannot tell who listens: %w", credErr)
	}
	if int(cred.Pid) == pid {
		return nil
	}
	if s, err := procfs.Read(int(cred.Pid)); err == nil && s.Session == pid {
		return nil
	}
	return fmt.Errorf("process %d listens on the gateway's socket, not %d", cred.Pid, pid)
}
