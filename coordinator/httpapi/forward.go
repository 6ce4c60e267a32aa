package httpapi

import (
	"context"
	"net/http"
	"net/http/httputil"
	"net/netip"

	"github.com/hashicorp/go-hclog"

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

// forward passes a request on to the leader as it is. The leader looks at its token: here a new one may
// not be known yet. It reports false when nothing was answered and this coordinator shall answer, as it
// can for the status.
func (s *Server) forward(w *recorder, r *http.Request, row *route) (answered bool) {
	own := row.answersAlone()
	_, leader := s.opts.Cluster.Leader()
	if leader == "" && own {
		return false
	}
	if leader == "" {
		writeProblem(w, noLeader(nil), 0)
		return true
	}
	ctx, release := s.held(r.Context())
	defer release()
	local := false
	out := r.WithContext(ctx)
	if r.Body != nil && r.Body != http.NoBody {
		out.Body = &guardedBody{body: r.Body, control: w.control, limit: row.bodyTime()}
	}
	proxy := httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) {
			p.Out.URL.Scheme, p.Out.URL.Host = "https", leader
			p.Out.Header.Set(headerCaller, addressOf(r))
			p.Out.Header.Del(headerIdentity) // a caller can write anything there
			if who, ok := identityOf(r); ok {
				p.Out.Header.Set(headerIdentity, who.header())
			}
		},
		Transport:     s.opts.Peers,
		FlushInterval: -1, // streams pass as they come
		ErrorLog:      s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) {
			s.log.Debug("cannot pass a request on", "leader", leader, "error", err)
			switch {
			case w.status != 0: // begun; nothing can be said any more
			case own:
				local = true
			case r.Method == get:
				writeProblem(w, noLeader(nil), 0)
			default:
				f := fault.New(fault.NoLeader, "the leader could not be asked, or did not answer, so it is not known whether the change took effect; make the same call again")
				f.RetryAfter = noLeader(nil).RetryAfter
				writeProblem(w, f, 0)
			}
		},
	}
	proxy.ServeHTTP(w, out)
	return !local
}
