package dns

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
	"unicode"

	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/sleep"
)

// Bounds of what is asked of PowerDNS at once and of what it may answer.
const (
	tries      = 3                      // of one request, when the failure is a temporary one
	firstWait  = 100 * time.Millisecond // before the second try, four times as long before the third
	readAtOnce = 8                      // requests; its web server takes no more
	maxAnswer  = 64 << 20               // a zone with 100,000 organizations is about half of it
	maxKey     = 4 << 10
	maxReason  = 300 // of an error's text
	wholeZone  = 20  // times the time of another request: PowerDNS takes some ten seconds for 100,000 organizations
)

// rrset is all records of one name and type, as the API of PowerDNS has them.
type rrset struct {
	Name       string   `json:"name"` // with final dot
	Type       string   `json:"type"`
	TTL        int64    `json:"ttl,omitempty"`
	ChangeType string   `json:"changetype,omitempty"` // of a change: REPLACE or DELETE
	Records    []record `json:"records,omitempty"`
}

type record struct {
	Content  string `json:"content"`
	Disabled bool   `json:"disabled"`
}

// change is the body of a request that changes a zone.
type change struct {
	RRsets []rrset `json:"rrsets"`
}

// client speaks to the HTTP API of PowerDNS (version 1) about one zone. All its requests may be repeated:
// they read, or they say what shall be there afterwards.
type client struct {
	server  string // scheme and authority, for messages
	zone    string // without final dot
	domain  string // without final dot; in the zone
	url     string // of the zone
	keyFile string
	timeout time.Duration
	most    int64 // bytes of an answer
	http    *http.Client
	reads   chan struct{}
	writes  *writes
}

func newClient(cfg PowerDNSConfig, domain string, most int64) *client {
	server := strings.TrimRight(cfg.URL, "/")
	zone := cfg.zone(domain)
	c := &client{
		server: server, zone: zone, domain: domain, keyFile: cfg.KeyFile, timeout: cfg.Timeout,
		url:  server + "/api/v1/servers/localhost/zones/" + url.PathEscape(zone+"."),
		most: most, reads: make(chan struct{}, readAtOnce),
		http: &http.Client{
			// The key is for this server alone: no proxy of the environment and no redirect gets it. PowerDNS
			// closes each connection after one answer, so there is nothing to keep and nothing to close.
			Transport:     &http.Transport{DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	c.writes = newWrites(c.patch)
	return c
}

// sets returns the records of one name, or of all organizations when the name is empty: those that say where names lead.
func (c *client) sets(ctx context.Context, name string) ([]rrset, error) {
	at, patience := c.url, c.timeout
	if name != "" {
		at += "?rrset_name=" + url.QueryEscape(name+".")
	} else {
		patience *= wholeZone
		var cancel context.CancelFunc // for all tries: one that took so long is not made again at once
		ctx, cancel = context.WithTimeout(ctx, patience)
		defer cancel()
	}
	select {
	case c.reads <- struct{}{}:
		defer func() { <-c.reads }()
	case <-ctx.Done():
		return nil, c.unanswered(ctx.Err())
	}
	var kept []rrset
	err := c.call(ctx, patience, http.MethodGet, at, nil, func(body *json.Decoder) error {
		kept = nil // of a try that came to no end
		return readZone(body, func(set rrset) {
			held := canonical(set.Name)
			_, ours := split(held, c.domain)
			if ours && (name == "" || held == name) && leads(set.Type) {
				kept = append(kept, set)
			}
		})
	})
	return kept, err
}

// errNoZone is for JSON that is no zone of PowerDNS.
var errNoZone = errors.New("it is not a zone")

// readZone reads a zone, one set after the other, so that what is not kept takes no memory.
func readZone(body *json.Decoder, keep func(rrset)) error {
	var err error
	next := func(want json.Delim) {
		var token json.Token
		if token, err = body.Token(); err == nil && token != want {
			err = errNoZone
		}
	}
	next('{')
	found := false
	for err == nil && body.More() {
		var key json.Token
		if key, err = body.Token(); err != nil {
			return err
		}
		if key != "rrsets" {
			var other json.RawMessage
			err = body.Decode(&other)
			continue
		}
		found = true
		next('[')
		for err == nil && body.More() {
			var set rrset
			if err = body.Decode(&set); err == nil {
				keep(set)
			}
		}
		if err == nil {
			next(']')
		}
	}
	if err == nil {
		next('}')
	}
	if err == nil && !found {
		err = errNoZone
	}
	return err
}

// change carries out all changes, or none of them.
func (c *client) change(ctx context.Context, changes []rrset) error {
	err := c.writes.do(ctx, changes)
	if err != nil && KindOf(err) == "" {
		return c.unanswered(err) // the caller's time was up before it was sent
	}
	return err
}

// patch sends changes, of which all are carried out or none.
func (c *client) patch(ctx context.Context, changes []rrset) error {
	body, err := json.Marshal(change{RRsets: changes})
	if err != nil {
		return failed(&Error{Kind: Refused, Err: err}, "cannot encode a change for PowerDNS")
	}
	return c.call(ctx, c.timeout, http.MethodPatch, c.url, body, nil)
}

// call makes one request, several times when that may help, each with so much time.
func (c *client) call(ctx context.Context, patience time.Duration, method, at string, body []byte, into func(*json.Decoder) error) error {
	wait := firstWait
	for try := 1; ; try++ {
		err := c.once(ctx, patience, method, at, body, into)
		if KindOf(err) != Temporary || try == tries || !sleep.For(ctx, wait) {
			return err
		}
		wait *= 4
	}
}

func (c *client) once(ctx context.Context, patience time.Duration, method, at string, body []byte, into func(*json.Decoder) error) error {
	key, err := readKey(c.keyFile)
	if err != nil {
		return failed(&Error{Kind: Refused, Err: err}, "cannot read the API key of PowerDNS from %s: make the file readable for this program and put the api-key of PowerDNS into it", c.keyFile)
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, at, bytes.NewReader(body))
	if err != nil {
		return failed(&Error{Kind: Refused, Err: err}, "cannot use the address %s of PowerDNS: correct powerdns.url", c.server)
	}
	req.Header.Set("X-API-Key", key.Reveal())
	req.Header.Set("Accept", "application/json")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return c.unanswered(err)
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode/100 != 2 {
		return c.status(resp, key.Reveal())
	}
	if into == nil {
		return nil
	}
	limited := &io.LimitedReader{R: resp.Body, N: c.most}
	err = into(json.NewDecoder(limited))
	switch {
	case err == nil:
		return nil
	case limited.N == 0:
		return failed(&Error{Kind: Refused, Status: resp.StatusCode, Err: err}, "cannot read the zone %s: the answer of PowerDNS at %s is longer than %d bytes; give the organizations a zone of their own", c.zone, c.server, c.most)
	case malformed(err):
		return failed(&Error{Kind: Refused, Status: resp.StatusCode, Err: err}, "cannot understand what answers at %s: it is not the API of PowerDNS; correct powerdns.url", c.server)
	}
	return c.unanswered(err) // the connection broke
}

// malformed tells text that is no JSON, or not the JSON that is expected, from a connection that broke.
func malformed(err error) bool {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	return errors.As(err, &syntax) || errors.As(err, &kind) || errors.Is(err, io.EOF) || errors.Is(err, errNoZone)
}

// unanswered is the fault for a request without an answer.
func (c *client) unanswered(err error) error {
	cause := &Error{Kind: Temporary, Err: err}
	if errors.Is(err, context.DeadlineExceeded) {
		return failed(cause, "PowerDNS at %s did not answer in time: look at its load and its database, or raise powerdns.timeout (%s)", c.server, c.timeout)
	}
	return failed(cause, "cannot reach PowerDNS at %s: start it with api=yes and webserver=yes, or correct powerdns.url", c.server)
}

// status is the fault for an answer that is not a success.
func (c *client) status(resp *http.Response, key string) error {
	cause := &Error{Kind: Refused, Status: resp.StatusCode}
	if reason := reasonOf(resp.Body, key); reason != "" {
		cause.Err = errors.New(reason)
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized || code == http.StatusForbidden:
		return failed(cause, "PowerDNS at %s refuses the API key: put the api-key of its configuration into %s, and let webserver-allow-from name this host", c.server, c.keyFile)
	case code == http.StatusNotFound:
		return failed(cause, "PowerDNS at %s has no zone %s: create it (pdnsutil create-zone %s), or correct powerdns.zone", c.server, c.zone, c.zone)
	case code == http.StatusRequestTimeout || code == http.StatusTooManyRequests || code >= 500:
		cause.Kind = Temporary
		return failed(cause, "PowerDNS at %s fails with HTTP status %d: its log says why", c.server, code)
	case code/100 == 3:
		return failed(cause, "PowerDNS at %s sends its callers elsewhere (HTTP status %d): set powerdns.url to the address of the API itself", c.server, code)
	default:
		return failed(cause, "PowerDNS at %s refuses the change of zone %s with HTTP status %d: the log of this program has its reason", c.server, c.zone, code)
	}
}

// reasonOf reads what PowerDNS says of an error: JSON, or text. It is for the log, so it is one line, and what stands in
// the place of PowerDNS may say back what it was sent: not the key.
func reasonOf(body io.Reader, key string) string {
	text, _ := io.ReadAll(io.LimitReader(body, 4<<10)) // what was read before an error is still a hint
	var answer struct {
		Error string `json:"error"`
	}
	if json.Unmarshal(text, &answer) == nil && answer.Error != "" {
		text = []byte(answer.Error)
	}
	said := strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(string(text), "?"))
	said = strings.ReplaceAll(said, key, "[redacted]") // last: what went before could have made it
	return strings.TrimSpace(strings.ToValidUTF8(said[:min(len(said), maxReason)], ""))
}

// readKey reads the file that holds nothing but the key.
func readKey(path string) (logging.Secret, error) {
	f, err := os.Open(path)
	if err != nil {
		return logging.Secret{}, err
	}
	defer func() { _ = f.Close() }()
	text, err := io.ReadAll(io.LimitReader(f, maxKey))
	if err != nil {
		return logging.Secret{}, err
	}
	return parseKey(text)
}

// parseKey takes what can be sent as the value of a header.
func parseKey(text []byte) (logging.Secret, error) {
	key := strings.TrimSpace(string(text))
	if key == "" || len(text) == maxKey || strings.ContainsFunc(key, func(r rune) bool { return r < ' ' || r > '~' }) {
		return logging.Secret{}, errors.New("it does not hold one line of printable characters")
	}
	return logging.NewSecret(key), nil
}
