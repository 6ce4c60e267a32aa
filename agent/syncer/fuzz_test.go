package syncer

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
)

// saying answers every request with the same.
type saying struct {
	status int
	body   string
}

func (s saying) RoundTrip(r *http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: s.status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(s.body)), Request: r}, nil
}

// following takes frames.
type following struct{ frames []api.AssignmentFrame }

func (f *following) Apply(frame api.AssignmentFrame) error {
	f.frames = append(f.frames, frame)
	return nil
}

// unleased has no leases.
type unleased struct{}

func (unleased) Shortest() time.Duration       { return 0 }
func (unleased) Now() time.Duration            { return 0 }
func (unleased) Renewed(time.Duration, uint64) {}

// FuzzStream: whatever a coordinator sends on the stream, the frames before the first that is none are taken, a full one
// first, and then the stream ends with a reason.
func FuzzStream(f *testing.F) {
	full := `{"index":7,"full":true,"domain":"example.org","gateways":[{"gateway_id":"gw-aaaaaaaaaa","target":"run","incarnation":1}]}` + "\n"
	for _, s := range []string{full, full + `{"index":8,"ask":true}` + "\n", `{"index":8}`, full + full[:30], full + strings.Repeat("[", 20000), full + `{"index":-1}`, "", "null", full + "null null", "\x00"} {
		f.Add(200, s)
	}
	f.Add(503, `{"code":"no_leader","detail":"x"}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		took := &following{}
		s, err := New(Options{
			Logger: hclog.NewNullLogger(), Host: "h1", Coordinators: []string{"192.0.2.1:7400"}, Client: &http.Client{Transport: saying{status, body}},
			Queue: NewQueue(time.Now), Source: all{}, Follower: took, Leases: unleased{},
		})
		if err != nil {
			t.Fatal(err)
		}
		n, err := s.stream(context.Background(), &url.URL{Scheme: "https", Host: "192.0.2.1:7400"})
		if err == nil || err.Error() == "" || n != len(took.frames) || n > 0 && (status != http.StatusOK || !took.frames[0].Full) {
			t.Fatalf("%d of %d frames of %q, %v", n, len(took.frames), body, err)
		}
		dec := json.NewDecoder(strings.NewReader(body))
		for i := range n {
			var want api.AssignmentFrame
			if err := dec.Decode(&want); err != nil || want.Index != took.frames[i].Index {
				t.Fatalf("frame %d of %q is %+v, %v", i, body, took.frames[i], err)
			}
		}
	})
}

// endless has something said and goes on for ever. It counts what is read of it.
type endless struct {
	net.Conn
	said string
	read int
}

func (e *endless) Write(p []byte) (int, error) { return len(p), nil }
func (e *endless) Close() error                { return nil }
func (e *endless) SetDeadline(time.Time) error { return nil }
func (e *endless) Read(p []byte) (int, error) {
	n := copy(p, e.said[min(e.read, len(e.said)):])
	for i := n; i < len(p); i++ {
		p[i] = 'x'
	}
	e.read += len(p)
	return len(p), nil
}

// FuzzLine: whatever comes as the answer to a report, no more of it is read than its bound, the last head counts, and the
// line is kept only if nothing is left on it.
func FuzzLine(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "HTTP/1.1 204 No Content\r\n\r\n", "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n", "HTTP/1.1 200 OK\r\nX: ", "", "HTTP/1.1 101 x\r\nUpgrade: x\r\n\r\n",
		"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, said string) {
		conn := &endless{said: said}
		more := &io.LimitedReader{R: conn}
		l := &lines{}
		req, err := http.NewRequest(http.MethodPost, "https://192.0.2.1:7400/", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := l.ask(&line{Conn: conn, more: more, in: bufio.NewReaderSize(more, 2<<10)}, req)
		if conn.read > maxHead+maxReply {
			t.Fatalf("%d bytes were read", conn.read)
		}
		if err != nil {
			if len(err.Error()) > 1000 || l.idle != nil {
				t.Fatalf("%v, and %v is kept", err, l.idle)
			}
			return
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil || len(body) > maxReply || resp.StatusCode < 200 || l.idle != nil && (resp.Close || l.idle.in.Buffered() > 0) {
			t.Fatalf("%q is answered with %d and %d bytes, %v, and %v is kept", said, resp.StatusCode, len(body), err, l.idle)
		}
	})
}

// leased depends on a lease, and counts how often it was renewed.
type leased struct {
	renewed int
	index   uint64
}

func (*leased) Shortest() time.Duration { return time.Minute }
func (*leased) Now() time.Duration      { return 1 }

func (l *leased) Renewed(_ time.Duration, index uint64) { l.renewed++; l.index = index }

// FuzzReply: whatever is answered to a report, the lease goes on only by the word of a coordinator that names the index
// at which it spoke.
func FuzzReply(f *testing.F) {
	for _, s := range []string{`{"index":7}`, `{"index":0}`, `{}`, `null`, ``, `{"index":-1}`, `{"index":18446744073709551616}`, `{"index":7}x`, `[7]`, `{"Index":7,"index":null}`} {
		f.Add(200, s)
	}
	f.Add(503, `{"code":"no_leader","detail":"x","index":7}`)
	f.Add(302, `{"index":7}`)
	f.Fuzz(func(t *testing.T, status int, body string) {
		leases := &leased{}
		s := &Syncer{o: Options{Host: "h1", Client: &http.Client{Transport: saying{status, body}}, Leases: leases, Timing: Timing{}.withDefaults()}}
		err := s.post(context.Background(), "https://192.0.2.1:7400/v1/agent/observations", api.Observation{})
		var want api.Observed
		said := status/100 == 2 && json.Unmarshal([]byte(body), &want) == nil && want.Index > 0
		if said != (err == nil) || said != (leases.renewed == 1) || leases.renewed > 1 || said && leases.index != want.Index {
			t.Fatalf("%d %q renews the lease %d times at %d: %v", status, body, leases.renewed, leases.index, err)
		}
	})
}

// A frame that does not end is not read for ever, and each frame has the whole bound.
func TestFramesAreBounded(t *testing.T) {
	b := &bounded{r: strings.NewReader(strings.Repeat("x", 100)), left: 60}
	first, err := io.ReadAll(b)
	if len(first) != 60 || err == nil || !strings.Contains(err.Error(), "too long") {
		t.Fatalf("%d bytes, %v", len(first), err)
	}
	b.left = 60
	if rest, err := io.ReadAll(b); len(rest) != 40 || err != nil {
		t.Fatalf("%d bytes, %v", len(rest), err)
	}
}
