package httpapi

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// headerCaller carries the caller's network address from the coordinator that was asked to the one that
// leads. It is believed on connections between coordinators and nowhere else.
const headerCaller = "X-Demiurge-Caller"

type forwardedKey struct{}

// forwarded reports whether another coordinator passed this request on.
func forwarded(ctx context.Context) bool { return ctx.Value(forwardedKey{}) != nil }

// PeerHandler answers what the other coordinators pass on. It must be reachable for them alone: it
// believes what they say of their caller's address and certificate.
func (s *Server) PeerHandler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		caller, err := netip.ParseAddr(r.Header.Get(headerCaller))
		if err != nil {
			writeProblem(&recorder{ResponseWriter: w, control: http.NewResponseController(w)},
				fault.New(fault.InvalidRequest, "cannot answer: this is where coordinators pass requests on to each other, and the request does not say whose it is"), 0)
			return
		}
		ctx := context.WithValue(r.Context(), forwardedKey{}, true)
		if text := r.Header.Get(headerIdentity); text != "" {
			who, err := parseIdentity(text)
			if err != nil {
				writeProblem(&recorder{ResponseWriter: w, control: http.NewResponseController(w)},
					fault.New(fault.InvalidRequest, "cannot answer: the identity that another coordinator passed on cannot be read"), 0)
				return
			}
			ctx = context.WithValue(ctx, identityKey{}, who)
		}
		r = r.WithContext(ctx)
		r.RemoteAddr = netip.AddrPortFrom(caller, 0).String()
		r.Header.Del(headerCaller)
		r.Header.Del(headerIdentity)
		s.ServeHTTP(w, r)
	})
}

// PeerServer serves PeerHandler with the limits of the public one.
func (s *Server) PeerServer() *http.Server {
	srv := s.HTTPServer()
	srv.Handler = s.PeerHandler()
	return srv
}

// elsewhere reports whether a request is for the coordinator that leads, and this one does not. A
// request that was passed on once is not passed on again: two coordinators that take each other for the
// leader would never answer.
func (s *Server) elsewhere(row *route, r *http.Request) bool {
	if s.opts.Peers == nil || row.access&public != 0 || forwarded(r.Context()) || s.opts.Cluster.IsLeader() {
		return false
	}
	// Who is a member now is known to the leader. So users have no use for an answer that may be old.
	return row.method != get || r.URL.Query().Get("consistency") != "stale" || fromUser(r)
}

// decidedElsewhere reports whether a refusal of this coordinator is left to the one that leads: only that one can record
// it, and knows all tokens. Who is too fast stays here, where it was counted, and so does who asks after this coordinator
// with a token that is not known here yet: the other one's answer would not be about it.
func (s *Server) decidedElsewhere(f *fault.Error, row *route, r *http.Request) bool {
	if s.opts.Peers == nil || forwarded(r.Context()) || s.opts.Cluster.IsLeader() {
		return false
	}
	if _, leader := s.opts.Cluster.Leader(); leader == "" {
		return false
	}
	switch f.Code {
	case fault.Unauthenticated, fault.Forbidden:
		return true
	case fault.NoLeader:
		return !row.answersAlone() && row.name != "get-node-state"
	}
	return false
}

// leaderPatience is longer than an election takes when all goes well. Asking again would take a caller longer than
// waiting does, and the coordinators more work, just when they have little to spare.
const leaderPatience = 1500 * time.Millisecond

// mostWaiting bounds the requests that wait for a leader; one more is refused at once. Nobody has looked yet who
// sent them.
const mostWaiting = 4096

// forward passes a request on to the leader as it is. The leader looks at its token: here a new one may
// not be known yet. It reports false when nothing was answered and this coordinator shall answer, as it
// can for the status, and once it leads itself.
//
// While there is no leader, or the one that was known cannot be reached, the request waits for the next one. What may
// have reached a leader is never sent to another: only the caller knows whether it may be done twice.
func (s *Server) forward(w *recorder, r *http.Request, row *route) (answered bool) {
	own := row.answersAlone()
	ctx, release := s.held(r.Context())
	defer release()
	out := r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		body := &guardedBody{body: r.Body, control: w.control, limit: row.bodyTime()}
		defer func() {
			if answered { // else it is still to be read here
				_ = body.Close()
			}
		}()
		out.Body = keptOpen{body} // a leader that cannot be reached has read nothing of it
	}
	patience, stop := context.WithTimeout(ctx, max(s.opts.LeaderPatience, 0))
	defer stop()
	for tried := ""; ; {
		leader := s.leaderOtherThan(patience, tried, own)
		switch {
		case leader == "" && s.opts.Cluster.IsLeader():
			return false
		case leader == "" && own:
			w.Header().Set(api.HeaderKnownLeader, "false")
			return false
		case leader == "":
			writeProblem(w, noLeader(nil), 0)
			return true
		}
		err := s.pass(w, out, leader, r, row)
		if err == nil {
			return true
		}
		s.log.Debug("cannot pass a request on", "leader", leader, "error", err)
		switch {
		case w.status != 0: // begun; nothing can be said any more
			return true
		case own:
			w.Header().Set(api.HeaderKnownLeader, "false")
			return false
		case unreached(err):
			tried = leader
			continue
		case r.Method == get:
			writeProblem(w, noLeader(nil), 0)
		default:
			f := fault.New(fault.NoLeader, "the leader did not answer, so it is not known whether the change took effect; make the same call again")
			f.RetryAfter = noLeader(nil).RetryAfter
			writeProblem(w, f, 0)
		}
		return true
	}
}

// leaderOtherThan is the address of the leader as soon as there is one that was not tried in vain. It is empty when
// none came in time, and when this coordinator leads.
func (s *Server) leaderOtherThan(ctx context.Context, tried string, atOnce bool) string {
	entered := false
	for {
		changed := s.opts.Cluster.LeaderChanged()
		_, leader := s.opts.Cluster.Leader()
		switch {
		case s.opts.Cluster.IsLeader():
			return ""
		case leader != "" && leader != tried:
			return leader
		case atOnce || ctx.Err() != nil:
			return ""
		}
		if !entered {
			entered = true
			defer s.waiting.Add(-1)
			if s.waiting.Add(1) > mostWaiting {
				return ""
			}
		}
		if leader == "" {
			tried = "" // whoever leads next was not tried as such, be it the same one
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
}

// pass sends a request to a leader and its answer back. The error is why there is no answer, or not a whole one.
func (s *Server) pass(w *recorder, out *http.Request, leader string, r *http.Request, row *route) (failed error) {
	var to http.ResponseWriter = w
	streams := row.path == streamPath
	if streams {
		b := newBeating(w, func() bool {
			_, leads := s.opts.Cluster.Leader()
			return leads == leader
		})
		defer b.stop()
		to = b
	}
	proxy := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "https", leader
			p.Out.Header.Set(headerCaller, addressOf(r))
			p.Out.Header.Del(headerIdentity) // a caller can write anything there
			p.Out.Header.Del(headerBeats)
			if streams {
				p.Out.Header.Set(headerBeats, "made here")
			}
			if who, ok := identityOf(r); ok {
				p.Out.Header.Set(headerIdentity, who.header())
			}
		},
		Transport:     s.opts.Peers,
		FlushInterval: -1, // streams pass as they come
		ErrorLog:      s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		ErrorHandler:  func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(to, out)
	return failed
}

// unreached reports whether a request came to no coordinator at all.
func unreached(err error) bool {
	var op *net.OpError
	return errors.As(err, &op) && op.Op == "dial"
}

// keptOpen is a body that can be sent again as long as nothing was read of it: a transport closes what it could not
// send. The server closes the body itself.
type keptOpen struct{ io.Reader }

// Close implements io.Closer.
func (keptOpen) Close() error { return nil }
