package nginx

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// askGeneration asks a generation socket which generation answers there.
func askGeneration(ctx context.Context, socket string) (uint64, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err != nil {
		return 0, err
	}
	defer func() { _ = conn.Close() }()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return 0, err
	}
	b, err := io.ReadAll(io.LimitReader(conn, 4096))
	if err != nil {
		return 0, err
	}
	n, ok := parseAnswer(b)
	if !ok {
		return 0, fmt.Errorf("cannot understand the answer of %s: %.80q", socket, b)
	}
	return n, nil
}

// parseAnswer reads the whole answer on a generation socket: fence.conf has its text.
func parseAnswer(b []byte) (uint64, bool) {
	head, body, whole := strings.Cut(string(b), "\r\n\r\n")
	n, ok := parseNumber(strings.TrimSuffix(body, "\n"))
	return n, ok && whole && strings.HasPrefix(head, "HTTP/1.1 200 ")
}

// patience is how long nginx may take to say which generation it is.
const patience = 500 * time.Millisecond

// answers tells whether nginx answers as a generation. A socket can accept and never answer: the master
// holds it open although no worker lives, so the question has its own time limit.
func (e *Engine) answers(ctx context.Context, n uint64, limit time.Duration) bool {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	got, err := askGeneration(ctx, e.l.socket(n))
	return err == nil && got == n
}

// refuses tells whether nobody listens on a socket any more: every process that held it has closed it.
// A connection that is merely not accepted does not count.
func refuses(ctx context.Context, socket string) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "unix", socket)
	if err == nil {
		_ = conn.Close()
		return false
	}
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist)
}

// poll calls done every few milliseconds until it answers true, fails, or ctx ends.
func poll(ctx context.Context, done func() (bool, error)) error {
	wait := 250 * time.Microsecond
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		if !sleep.For(ctx, wait) {
			return ctx.Err()
		}
		wait = min(wait*2, time.Millisecond)
	}
}

// logTail reads what nginx has written to its error log since a position: to explain a failure, and to
// see one early. It is never a proof of success.
type logTail struct {
	path string
	from int64
}

func tailFrom(path string) logTail {
	info, err := os.Stat(path)
	if err != nil {
		return logTail{path: path}
	}
	return logTail{path: path, from: info.Size()}
}

// lines returns what the process wrote since then, at most the last 64 KiB of it.
func (t logTail) lines(pid int) []string {
	f, err := os.Open(t.path)
	if err != nil {
		return nil
	}
	defer func() { _ = f.Close() }()
	from := t.from
	if info, err := f.Stat(); err == nil {
		from = max(from, info.Size()-64<<10)
	}
	b, err := io.ReadAll(io.NewSectionReader(f, from, 64<<10))
	if err != nil {
		return nil
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, fmt.Sprintf(" %d#", pid)) {
			out = append(out, strings.TrimSpace(line))
		}
	}
	return out
}

// verdict looks for the lines after which waiting is useless. Bind errors are not among them until
// nginx itself has given up; "[alert] setrlimit" stands in healthy logs too.
func verdict(lines []string) (reason string, bind bool) {
	for _, line := range lines {
		switch {
		case strings.Contains(line, "still could not bind()"):
			return "nginx could not bind: " + firstBind(lines), true
		case strings.Contains(line, "[emerg]") && !strings.Contains(line, "bind() to "):
			return message(line), false
		case strings.Contains(line, "cannot be respawned"):
			return message(line), false
		}
	}
	return "", false
}

func firstBind(lines []string) string {
	for _, line := range lines {
		if strings.Contains(line, "bind() to ") {
			return message(line)
		}
	}
	return "no reason in its log"
}

var processMark = regexp.MustCompile(`^(\[[a-z]+\]) [0-9]+#[0-9]+: (?:\*[0-9]+ )?`)

// message is a line of nginx's log without time and process, so that the same refusal reads the same.
func message(line string) string {
	if i := strings.Index(line, "["); i >= 0 {
		line = line[i:]
	}
	return clip(processMark.ReplaceAllString(line, "$1 "))
}
