package oauth

import (
	"encoding/json"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/logging"
)

// posted sends one form to the token endpoint 64 times at the same moment, and gives the answers.
func (s *site) posted(form url.Values) []reply {
	s.t.Helper()
	var mu sync.Mutex
	var out []reply
	var all sync.WaitGroup
	begin := make(chan struct{})
	for range 64 {
		all.Go(func() {
			<-begin
			res, err := s.web.Post(s.url+"/oauth/token", "application/x-www-form-urlencoded", strings.NewReader(form.Encode()))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.t.Error(err)
				return
			}
			r := reply{Response: res}
			var body struct {
				Refresh string `json:"refresh_token"`
			}
			err = json.NewDecoder(res.Body).Decode(&body)
			_ = res.Body.Close()
			if err != nil {
				s.t.Error(err)
			}
			r.body = body.Refresh
			out = append(out, r)
		})
	}
	close(begin)
	all.Wait()
	return out
}

// given are the refresh tokens of the answers that gave one.
func given(all []reply) (tokens []string) {
	for _, r := range all {
		if r.StatusCode == http.StatusOK {
			tokens = append(tokens, r.body)
		}
	}
	return tokens
}

// P10 at the endpoint: 64 redemptions of one code at the same time give one token, and since the code came more
// than once, that one ends too.
func TestP10SixtyFourRedemptionsOfOneCode(t *testing.T) {
	s := newSite(t)
	c := publicClient(t, s.store)
	all := s.posted(exchangeOf(c, code(t, s.store, c, "ada")))
	tokens := given(all)
	if len(all) != 64 || len(tokens) != 1 {
		t.Fatalf("%d answers, %d of them with tokens", len(all), len(tokens))
	}
	if good(s.store, logging.NewSecret(tokens[0])) {
		t.Error("a code came 64 times, and what it gave lives")
	}
	s.clock.forward(time.Second) // 63 failed tries are as many as the client may have
	if r := s.post("/oauth/token", refreshOf(c, tokens[0])); r.StatusCode != http.StatusBadRequest || r.error() != "invalid_grant" {
		t.Errorf("%d %s", r.StatusCode, r.body)
	}
}

// P10 at the endpoint: 64 exchanges of one refresh token at the same time. Without grace one succeeds and the family
// is dead; within it (docs/oauth.md) all do, in one family, of which one chain goes on.
func TestP10SixtyFourExchangesOfOneRefreshToken(t *testing.T) {
	for _, grace := range []time.Duration{0, 10 * time.Second} {
		f := newFixture(t)
		f.opts.Lifetimes.Grace = grace
		f.start()
		s := newSiteOn(t, f)
		c := publicClient(t, s.store)
		all := s.posted(refreshOf(c, login(t, s.store, c, "ada").Refresh.Reveal()))
		tokens := given(all)
		if grace == 0 {
			if len(tokens) != 1 || slices.ContainsFunc(tokens, func(v string) bool { return good(s.store, logging.NewSecret(v)) }) {
				t.Errorf("without grace: %d succeeded, and their family lives or is more than one", len(tokens))
			}
			continue
		}
		if len(tokens) != 64 {
			t.Fatalf("within the grace %d succeeded", len(tokens))
		}
		if r := s.post("/oauth/token", refreshOf(c, tokens[9])); r.StatusCode != http.StatusOK {
			t.Fatalf("the chain does not go on: %d %s", r.StatusCode, r.body)
		}
		if n := len(slices.DeleteFunc(tokens, func(v string) bool { return !good(s.store, logging.NewSecret(v)) })); n != 0 {
			t.Errorf("%d chains more live", n)
		}
		s.store.mu.Lock()
		families := s.store.users["ada"].grants
		s.store.mu.Unlock()
		if families != 1 {
			t.Errorf("there are %d families", families)
		}
	}
}

func refreshOf(c ClientID, token string) url.Values {
	return url.Values{"grant_type": {"refresh_token"}, "client_id": {string(c)}, "refresh_token": {token}}
}
