package reconcile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/demiurge-platform/demiurge/agent/journal"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// FuzzAssignment: whatever a coordinator assigns is understood as what can be journalled and read as the same, or refused
// with what is wrong with it.
func FuzzAssignment(f *testing.F) {
	for _, s := range []string{
		`{"gateway_id":"gw-aaaaaaaaaa","target":"run","incarnation":1,"pool":"default","limits":{"body_bytes":1048576}}`,
		`{"gateway_id":"gw-aaaaaaaaaa","target":"run","incarnation":7,"release":"1.2.3","drain":"30s","lease":"8s","grant":{"organization_id":"6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11",` +
			`"allocation_id":"al-aaaaaaaaaaaaaaaa","epoch":9,"name":"x","hostname":"org-6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11.example.org","members":[{"user_id":"ada","role":"owner"}],"projects":[{"project_id":"p"}],"version":9}}`,
		`{"gateway_id":"gw-aaaaaaaaaa","target":"gone","incarnation":18446744073709551615}`,
		`{"gateway_id":"../x","target":"run","incarnation":1}`,
		`{"gateway_id":"gw-aaaaaaaaaa","target":"run","incarnation":1,"pool":"../../x","drain":"2562047h47m16.854775807s"}`,
		`{"gateway_id":"gw-aaaaaaaaaa","target":"run","incarnation":1,"lease":"-1s"}`,
		`{"gateway_id":"gw-aaaaaaaaaa","target":"run","incarnation":1,"grant":{"organization_id":"6F1C0A2E-58a5-4a3e-9a55-0a5a1f5c7b11","allocation_id":"al-aaaaaaaaaaaaaaaa","epoch":1}}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var g api.GatewayAssignment
		if json.Unmarshal([]byte(text), &g) != nil {
			return
		}
		gw, w, err := parse(g)
		if err != nil {
			if len(err.Error()) > 1000 || !strings.HasPrefix(err.Error(), "cannot use ") {
				t.Fatalf("refused with %v", err)
			}
			return
		}
		if again, err := id.ParseGateway(string(gw)); err != nil || again != gw {
			t.Fatalf("%q is a gateway", gw)
		}
		if w.Drain < 0 || w.Lease < 0 || w.Limits.BodyBytes < 0 {
			t.Fatalf("%+v is wanted", w.Wanted)
		}
		if _, err := id.ParsePool(w.Pool); w.Pool != "" && err != nil {
			t.Fatalf("%q is a pool", w.Pool)
		}
		raw, err := json.Marshal(w.Wanted)
		var back journal.Wanted
		if err == nil {
			err = json.Unmarshal(raw, &back)
		}
		if err != nil || !reflect.DeepEqual(back, w.Wanted) {
			t.Fatalf("%+v is journalled as %s and read as %+v, %v", w.Wanted, raw, back, err)
		}
		if w.grant == nil {
			return
		}
		if org, err := id.ParseOrganization(string(w.grant.organization)); err != nil || org != w.grant.organization || w.grant.body.OrganizationID != string(org) || w.grant.epoch == 0 {
			t.Fatalf("%+v is granted", w.grant)
		}
	})
}

// said is a connection on which everything has been said already.
type said struct {
	net.Conn
	io.Reader
}

func (s said) Read(p []byte) (int, error)  { return s.Reader.Read(p) }
func (s said) Write(p []byte) (int, error) { return len(p), nil }

// FuzzAnswer: whatever a gateway's program answers is read within its bound, and its refusal is one of ours or none.
func FuzzAnswer(f *testing.F) {
	for _, s := range []string{
		"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
		"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
		"HTTP/1.1 409 Conflict\r\nConnection: close\r\n\r\n" + `{"code":"stale_epoch","detail":"no"}`,
		"HTTP/1.1 500 x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\nx",
		"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\nmore", "HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n", "", "\n",
		"HTTP/1.1 400 Bad\r\nContent-Length: 24\r\n\r\n" + `{"code":"stale_epoch ;"}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		req, err := http.NewRequest(http.MethodPost, "http://gw-aaaaaaaaaa/control/activate", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		// It goes on for ever: what is not bounded does not end.
		a, err := roundTrip(said{Reader: io.MultiReader(bytes.NewReader(text), endless{})}, req)
		if len(a.body) > maxAnswer {
			t.Fatalf("%d bytes were read", len(a.body))
		}
		if err != nil || a.status/100 == 2 {
			return
		}
		var known *fault.Error
		if err := refused(a.status, a.body); err == nil || len(err.Error()) > 1000 {
			t.Fatalf("a refusal of %d is %v", a.status, err)
		} else if errors.As(err, &known) {
			if _, ok := fault.Codes()[known.Code]; !ok {
				t.Fatalf("%q is a code", known.Code)
			}
		}
	})
}

// endless is a reader without an end.
type endless struct{}

func (endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

// FuzzIdentity: an answer on the host name of an organization is its gateway's only if every part of it says so.
func FuzzIdentity(f *testing.F) {
	const gateway, org = "gw-aaaaaaaaaa", "6f1c0a2e-58a5-4a3e-9a55-0a5a1f5c7b11"
	f.Add(200, gateway, "7", `{"gateway_id":"`+gateway+`","epoch":7,"organization_id":"`+org+`","boot_id":"b"}`)
	f.Add(200, gateway, "07", `{"gateway_id":"`+gateway+`","epoch":7,"organization_id":"`+org+`","boot_id":"b"}`)
	f.Add(502, "", "", "<html>")
	f.Add(200, gateway, "7", `{"gateway_id":"`+gateway+`","Gateway_ID":"x","epoch":18446744073709551616}`)
	f.Fuzz(func(t *testing.T, status int, header, epoch, body string) {
		resp := &http.Response{StatusCode: status, Body: io.NopCloser(strings.NewReader(body)), Header: http.Header{}}
		resp.Header.Set(api.HeaderGateway, header)
		resp.Header.Set(api.HeaderEpoch, epoch)
		err := sameIdentity(resp, identity{organization: org, gateway: gateway, epoch: 7, bootID: "b"})
		if err != nil {
			if len(err.Error()) > 2000 {
				t.Fatalf("a reason of %d bytes", len(err.Error()))
			}
			return
		}
		if status != http.StatusOK || header != gateway || epoch != "7" || !strings.Contains(body, org) || len(body) > 64<<10 {
			t.Fatalf("%d %q %q %q is taken for the gateway's", status, header, epoch, body)
		}
	})
}

// FuzzLastLines: whatever a gateway wrote to its log, what is told of its end is text on one line, at most three lines of
// the log and none that began before.
func FuzzLastLines(f *testing.F) {
	for _, s := range []string{"", "\n", "one", "cut\none\ntwo\nthree\nfour\n", "cut\n", "cut", "\xff\nx\xc3", "a\r\nb\x1b[31m\x00c\n", "\n\n\n"} {
		f.Add([]byte(s), true)
		f.Add([]byte(s), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, cut bool) {
		told := lastLines(b, cut)
		if len(told) > len(b)+2*len(" | ") || !utf8.ValidString(told) || strings.Contains(told, "\n") {
			t.Fatalf("%q is told as %q", b, told)
		}
		if _, rest, more := bytes.Cut(b, []byte("\n")); cut && more && len(rest) > 0 && told != lastLines(rest, false) {
			t.Fatalf("%q is told with its cut beginning: %q", b, told)
		}
	})
}
