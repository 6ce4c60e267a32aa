package tenantapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Door is the agent's socket of one gateway, and the organization that the gateway may ask about.
type Door struct {
	Gateway      id.Gateway
	Socket       string
	Organization id.Organization
	Epoch        id.Epoch
}

// goodFor is how long an answer may be kept: a credential that has ended is noticed within it.
const goodFor = time.Second

// longestWait bounds a question that waits for a change.
const longestWait = 30 * time.Second

// doors are the sockets of this host's gateways, and one server behind all of them.
type doors struct {
	server *Server
	http   *http.Server

	mu   sync.Mutex
	open map[id.Gateway]*door
	at   map[string]*door         // by socket
	used map[string]chan struct{} // by socket; closed when who has it, or had it last, is done with it
	over bool
	wg   sync.WaitGroup // of the listeners' goroutines
}

type door struct {
	Door
	listener net.Listener  // nil: not yet, or not any more
	shut     chan struct{} // closed when it is
}

// isShut reports whether a door is.
func (d *door) isShut() bool {
	select {
	case <-d.shut:
		return true
	default:
		return false
	}
}

// doorKey is the key of a connection's context under which its door is.
type doorKey struct{}

func newDoors(s *Server) *doors {
	d := &doors{server: s, open: map[id.Gateway]*door{}, at: map[string]*door{}, used: map[string]chan struct{}{}}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/check", d.check)
	mux.HandleFunc("GET /v1/changes", d.changes)
	d.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: 10 * time.Second, ReadTimeout: time.Minute, WriteTimeout: longestWait + 10*time.Second,
		IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10,
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, doorKey{}, c.LocalAddr().String())
		},
		ErrorLog: s.opts.Logger.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
	}
	return d
}

// Open answers a gateway's questions about its organization. It does not wait.
func (s *Server) Open(d Door) {
	all := s.doors
	all.mu.Lock()
	defer all.mu.Unlock()
	if old := all.open[d.Gateway]; old != nil {
		if old.Door == d {
			return
		}
		old.end()
	}
	if all.over {
		return
	}
	made := &door{Door: d, shut: make(chan struct{})}
	all.open[d.Gateway], all.at[d.Socket] = made, made
	before, done := all.used[d.Socket], make(chan struct{})
	all.used[d.Socket] = done
	all.wg.Go(func() { // ended by end, waited for by close
		if before != nil {
			<-before // it is shut; two at one socket would take it from each other
		}
		all.keep(made)
		all.mu.Lock()
		defer all.mu.Unlock()
		close(done)
		if all.used[d.Socket] == done {
			delete(all.used, d.Socket)
		}
	})
}

// Shut ends the answers to a gateway.
func (s *Server) Shut(g id.Gateway) {
	s.doors.mu.Lock()
	defer s.doors.mu.Unlock()
	if d := s.doors.open[g]; d != nil {
		d.end()
		delete(s.doors.open, g)
		delete(s.doors.at, d.Socket)
	}
}

// end closes a door. The mu of doors is held.
func (d *door) end() {
	if d.isShut() {
		return
	}
	close(d.shut)
	if d.listener != nil {
		_ = d.listener.Close() // its goroutine sees it, and who asks meanwhile is refused by the epoch
	}
}

// keep serves one door until it is shut. While its socket cannot be made nobody is let in, so that is tried again.
func (d *doors) keep(one *door) {
	const first, longest = 50 * time.Millisecond, 5 * time.Second
	for pause := first; ; pause = min(2*pause, longest) {
		err := d.listen(one)
		if one.isShut() {
			return
		}
		d.server.opts.Logger.Error("a gateway's socket cannot be made; it is tried again", "gateway", one.Gateway, "error", err)
		timer := time.NewTimer(pause)
		select {
		case <-one.shut:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// listen serves one door until it is shut, or something fails.
func (d *doors) listen(one *door) error {
	// What is there is of an earlier agent: the directory is this gateway's, and this agent's alone.
	if err := os.Remove(one.Socket); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: one.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	d.mu.Lock()
	one.listener = l
	shut := one.isShut()
	d.mu.Unlock()
	if shut {
		return l.Close()
	}
	if err := os.Chmod(one.Socket, 0o600); err != nil {
		return errors.Join(fmt.Errorf("it cannot be protected: %w", err), l.Close())
	}
	return d.http.Serve(l) // ends with the listener
}

// close ends all doors.
func (d *doors) close() {
	d.mu.Lock()
	d.over = true
	for _, one := range d.open {
		one.end()
	}
	d.mu.Unlock()
	_ = d.http.Close()
	d.wg.Wait()
}

// of finds the door that a request came through.
func (d *doors) of(r *http.Request) (Door, bool) {
	path, _ := r.Context().Value(doorKey{}).(string)
	d.mu.Lock()
	defer d.mu.Unlock()
	if one := d.at[path]; one != nil && !one.isShut() {
		return one.Door, true
	}
	return Door{}, false
}

// call makes a call of the organization that a gateway asks about.
func (d *doors) call(w http.ResponseWriter, r *http.Request) (*Call, error) {
	one, ok := d.of(r)
	if !ok {
		return nil, fault.New(fault.StaleEpoch, "this gateway has no organization any more")
	}
	t, err := d.server.opts.Tenants.Get(one.Organization, one.Epoch)
	if err != nil {
		return nil, err
	}
	return &Call{W: w, R: r, Tenant: t}, nil
}

// check answers POST /v1/check.
func (d *doors) check(w http.ResponseWriter, r *http.Request) {
	answer, err := d.decide(w, r)
	if err != nil {
		d.server.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer)
}

func (d *doors) decide(w http.ResponseWriter, r *http.Request) (api.Checked, error) {
	out := api.Checked{GoodFor: api.Duration(goodFor)}
	c, err := d.call(w, r)
	if err != nil {
		return out, err
	}
	var body api.Check
	if err := c.Decode(&body); err != nil {
		return out, err
	}
	action, err := permission.Parse(body.Action)
	if err != nil {
		return out, fault.New(fault.InvalidRequest, "%v", err)
	}
	about := permission.Resource{Organization: c.Tenant.Organization()}
	if body.ProjectID != "" {
		if about.Project, err = id.ParseProject(body.ProjectID); err != nil {
			return out, fault.New(fault.InvalidRequest, "%v", err)
		}
	}
	// The version comes first: what changes after it makes this answer old.
	if out.Version, _, err = c.Tenant.Version(); err != nil {
		return out, err
	}
	c.R = (&http.Request{Method: http.MethodGet, Header: http.Header{}}).WithContext(r.Context())
	if len(body.Authorization) > 0 {
		c.R.Header["Authorization"] = body.Authorization
	}
	if len(body.Cookie) > 0 {
		c.R.Header["Cookie"] = body.Cookie
	}
	who, err := d.server.whoCalls(c)
	if fault.Is(err, fault.Unauthenticated) {
		out.Reason = fault.From(err).Message
		return out, nil
	}
	if err != nil {
		return out, err
	}
	policy, err := c.Tenant.Policy()
	if err != nil {
		return out, err
	}
	decision := policy.Check(who.Subject, action, about)
	out.Known, out.Allowed, out.Reason, out.UserID = true, decision.Allowed, decision.Reason, string(who.User)
	out.Username, _ = c.Tenant.Member(who.User)
	return out, nil
}

// changes answers GET /v1/changes.
func (d *doors) changes(w http.ResponseWriter, r *http.Request) {
	c, err := d.call(w, r)
	if err != nil {
		d.server.refuse(w, r, err)
		return
	}
	known, _ := strconv.ParseUint(r.URL.Query().Get("version"), 10, 64) // none: whatever there is
	wait, _ := time.ParseDuration(r.URL.Query().Get("wait"))
	version, changed, err := c.Tenant.Version()
	if err != nil {
		d.server.refuse(w, r, err)
		return
	}
	if version == known {
		timer := time.NewTimer(min(max(wait, 0), longestWait))
		defer timer.Stop()
		select {
		case <-changed:
			version, _, err = c.Tenant.Version()
		case <-timer.C:
		case <-r.Context().Done():
			return
		}
	}
	if err != nil {
		d.server.refuse(w, r, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(api.Changes{Version: version})
}
