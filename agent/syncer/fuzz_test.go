package syncer

import (
	"context"
	"encoding/json"
	"io"
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
