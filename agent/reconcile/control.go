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
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/demiurge-platform/demiurge/agent/driver"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// HTTPControl is the Control over the gateways' unix sockets. Every call dials anew, because who listens is
// part of the question: the kernel tells which process it was. A call is one connection and no goroutine,
// because hundreds of gateways are asked for their health all the time: net/http's client takes three.
type HTTPControl struct {
	socket func(id.Gateway) string
}

// NewHTTPControl makes the Control for the sockets that a function names.
func NewHTTPControl(socket func(id.Gateway) string) *HTTPControl { return &HTTPControl{socket: socket} }

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
	req, err := http.NewRequestWithContext(ctx, method, "http://"+string(p.Gateway)+path, r)
	if err != nil {
		return nil, err
	}
	req.Close = true
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	conn, err := c.dial(ctx, p)
	if err != nil {
		return nil, err
	}
	defer func() { _ = conn.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	status, b, err := roundTrip(conn, req)
	if err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("cannot %s %s: %w", method, path, err)
	}
	if status/100 != 2 {
		return nil, refused(status, b)
	}
	return b, nil
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
func roundTrip(conn net.Conn, req *http.Request) (status int, body []byte, err error) {
	w := bufio.NewWriterSize(conn, 2<<10)
	sent := errors.Join(req.Write(w), w.Flush())
	r := bufio.NewReaderSize(io.LimitReader(conn, maxAnswer), 2<<10)
	resp, err := http.ReadResponse(r, req)
	for err == nil && resp.StatusCode/100 == 1 && resp.StatusCode != http.StatusSwitchingProtocols {
		resp, err = http.ReadResponse(r, req)
	}
	if err != nil {
		return 0, nil, errors.Join(sent, err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err = io.ReadAll(resp.Body)
	return resp.StatusCode, body, err
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
