package reconcile

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// HTTPControl is the Control over the gateways' unix sockets. One transport serves all gateways. Every
// call dials anew, because who listens is part of the question: the kernel tells which process it was.
type HTTPControl struct {
	client *http.Client
}

type processKey struct{}

// NewHTTPControl makes the Control for the sockets that a function names.
func NewHTTPControl(socket func(id.Gateway) string) *HTTPControl {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		p, ok := ctx.Value(processKey{}).(driver.Process)
		if !ok {
			return nil, errors.New("cannot dial a gateway: no process is named")
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", socket(p.Gateway))
		if err != nil {
			return nil, err
		}
		if err := listenedBy(conn, p.PID); err != nil {
			_ = conn.Close()
			return nil, err
		}
		return conn, nil
	}
	return &HTTPControl{client: &http.Client{
		Transport: &http.Transport{
			DialContext: dial, DisableKeepAlives: true, DisableCompression: true,
			MaxResponseHeaderBytes: 64 << 10, ReadBufferSize: 2 << 10, WriteBufferSize: 2 << 10,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Health implements Control.
func (c *HTTPControl) Health(ctx context.Context, p driver.Process) (api.GatewayHealth, error) {
	var h api.GatewayHealth
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

// maxAnswer bounds what is read of a gateway's answer.
const maxAnswer = 1 << 20

func (c *HTTPControl) call(ctx context.Context, p driver.Process, method, path string, body any) ([]byte, error) {
	var r io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		r = bytes.NewReader(b)
	}
	ctx = context.WithValue(ctx, processKey{}, p)
	// The host name is of no use on a unix socket; it keeps connections to different processes apart.
	u := fmt.Sprintf("http://%s.%d.%d%s", p.Gateway, p.PID, p.StartTime, path)
	req, err := http.NewRequestWithContext(ctx, method, u, r)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return nil, fmt.Errorf("the answer to %s %s broke off: %w", method, path, err)
	}
	if resp.StatusCode/100 != 2 {
		return nil, refused(resp, b)
	}
	return b, nil
}

// refused keeps the stable code of a gateway's refusal, when it gives one.
func refused(resp *http.Response, body []byte) error {
	var p api.Problem
	if json.Unmarshal(body, &p) == nil && p.Code != "" {
		if _, known := fault.Codes()[fault.Code(p.Code)]; known {
			return fault.New(fault.Code(p.Code), "the gateway refuses: %s", clip(p.Detail))
		}
	}
	return fmt.Errorf("the gateway answers %s", resp.Status)
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
	if int(cred.Pid) == pid || session(int(cred.Pid)) == pid {
		return nil
	}
	return fmt.Errorf("process %d listens on the gateway's socket, not %d", cred.Pid, pid)
}

// session is the session of a process; 0 when it cannot be told.
func session(pid int) int {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name in parentheses may hold anything, so what follows its last one counts.
	fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	const sessionField = 3 // state, parent, group, session
	if len(fields) <= sessionField {
		return 0
	}
	n, _ := strconv.Atoi(fields[sessionField])
	return n
}
