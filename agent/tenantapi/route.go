package tenantapi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/agent/keyed"
	"github.com/demiurge-platform/demiurge/agent/permission"
	"github.com/demiurge-platform/demiurge/agent/tenant"
	"github.com/demiurge-platform/demiurge/shared/fault"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Caller is who may call a route.
type Caller string

// The callers of routes. A row without one is refused, so nothing is open because somebody forgot to say.
const (
	// Anyone: the answer tells nothing about anybody.
	Anyone Caller = "anyone"
	// Proven: the handler has its callers prove who they are, by what the route's own standard says.
	Proven Caller = "proven"
	// Member: a member of the organization whom the row's action is allowed on the row's resource.
	Member Caller = "member"
)

// Route is one row of the table of everything that is answered on organizations' host names.
type Route struct {
	Method string
	Path   string // an element in braces is a parameter, as in "/roles/{role}"
	Caller Caller
	Action permission.Permission // of Member
	// Project is the parameter that names the project in which the action must be allowed; empty: in the whole
	// organization. The handler finds it in Call.Resource, so both can only mean the same.
	Project string
	// Locate finds that project where the path does not name it: by what the path names, or in the body. It is
	// called when it is known who asks. What it looked at it leaves in Call.Found for the handler.
	Locate func(*Call) (id.Project, error)
	// Hosted lets in the container that the path names too, by its hosting token (Call.Hosting), which the handler
	// checks.
	Hosted bool
	// Keyed: the call creates, and a repeat with the same Idempotency-Key has the same answer (Call.keyed).
	Keyed bool
	Serve func(*Call) error
	Doc   Doc
}

// Call is one request that the table let through.
type Call struct {
	W        http.ResponseWriter
	R        *http.Request
	Tenant   *tenant.Tenant
	Subject  permission.Subject  // who asks, on a route of Member
	Resource permission.Resource // what was checked, on a route of Member
	Found    any                 // what Locate looked at
	Hosting  string              // the hosting token of a container that calls a route for it
	caller   string              // who asks, and with which client: nobody else's keys are his
	params   map[string]string
}

// Param is the value of an element of the path.
func (c *Call) Param(name string) string { return c.params[name] }

// table is the rows by path.
type table struct {
	rows  []Route
	exact map[string][]*Route
	open  []pattern // paths with parameters
}

type pattern struct {
	elements []string // a parameter is in braces
	routes   []*Route
}

// newTable checks the rows.
func newTable(rows []Route) (*table, error) {
	t := &table{rows: rows, exact: map[string][]*Route{}}
	seen := map[string]bool{}
	for i := range rows {
		r := &rows[i]
		if err := r.check(); err != nil {
			return nil, err
		}
		key := r.Method + " " + r.Path
		if seen[key] {
			return nil, fmt.Errorf("cannot serve %s twice", key)
		}
		seen[key] = true
		if !strings.Contains(r.Path, "{") {
			t.exact[r.Path] = append(t.exact[r.Path], r)
			continue
		}
		elements := strings.Split(r.Path, "/")
		if at := slices.IndexFunc(t.open, func(p pattern) bool { return slices.Equal(p.elements, elements) }); at >= 0 {
			t.open[at].routes = append(t.open[at].routes, r)
		} else {
			t.open = append(t.open, pattern{elements, []*Route{r}})
		}
	}
	return t, nil
}

func (r *Route) check() error {
	name := r.Method + " " + r.Path
	switch {
	case r.Method == "" || !strings.HasPrefix(r.Path, "/") || r.Serve == nil:
		return fmt.Errorf("cannot serve %q: it needs a method, a path and a handler", name)
	case r.Caller != Anyone && r.Caller != Proven && r.Caller != Member:
		return fmt.Errorf("cannot serve %s: it does not say who may call it", name)
	case (r.Caller == Member) != (r.Action != permission.Permission{}):
		return fmt.Errorf("cannot serve %s: an action is named for members, and only for them", name)
	case (r.Locate != nil || r.Hosted) && (r.Caller != Member || r.Project != ""):
		return fmt.Errorf("cannot serve %s: its project is found in two ways, or is nobody's matter", name)
	case r.Keyed && (r.Method != http.MethodPost || r.Caller != Member):
		return fmt.Errorf("cannot serve %s: keys are for members' calls that create", name)
	case r.Project != "" && (r.Caller != Member || !strings.Contains(r.Path, "{"+r.Project+"}")):
		return fmt.Errorf("cannot serve %s: its project is not part of its path", name)
	}
	return nil
}

// find gives the row of a request. Without one it says what would have been allowed at that path.
func (t *table) find(method, path string) (route *Route, params map[string]string, allowed []string) {
	candidates := t.exact[path]
	if candidates == nil {
		elements := strings.Split(path, "/")
		for _, p := range t.open {
			if params = p.match(elements); params != nil {
				candidates = p.routes
				break
			}
		}
	}
	for _, r := range candidates {
		if r.Method == method {
			return r, params, nil
		}
		allowed = append(allowed, r.Method)
	}
	return nil, nil, allowed
}

func (p pattern) match(elements []string) map[string]string {
	if len(elements) != len(p.elements) {
		return nil
	}
	params := map[string]string{}
	for i, want := range p.elements {
		if name, ok := strings.CutPrefix(want, "{"); ok && elements[i] != "" {
			params[strings.TrimSuffix(name, "}")] = elements[i]
		} else if want != elements[i] {
			return nil
		}
	}
	return params
}

// resource is what the action of a row must be allowed on.
func (r *Route) resource(org id.Organization, params map[string]string) (permission.Resource, error) {
	out := permission.Resource{Organization: org}
	if r.Project != "" {
		project, err := id.ParseProject(params[r.Project])
		if err != nil {
			return out, fault.New(fault.NotFound, "there is no project %.40q", params[r.Project])
		}
		out.Project = project
	}
	return out, nil
}

// maxBody bounds a JSON body.
const maxBody = 64 << 10

// Decode reads the JSON body of a call strictly: one value, known fields only.
func (c *Call) Decode(into any) error {
	if kind, _, err := mime.ParseMediaType(c.R.Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return fault.New(fault.InvalidRequest, "cannot read a body of type %.60q: send application/json", c.R.Header.Get("Content-Type"))
	}
	d := json.NewDecoder(http.MaxBytesReader(c.W, c.R.Body, maxBody))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, err = d.Token(); errors.Is(err, io.EOF) {
			return nil
		}
		err = errors.New("there is more behind the first value")
	}
	if over := (*http.MaxBytesError)(nil); errors.As(err, &over) {
		return fault.New(fault.TooLarge, "the body is longer than %d bytes", maxBody)
	}
	return fault.New(fault.InvalidRequest, "cannot read the body: %v: send one JSON object as documented", err)
}

// keyed reads the Idempotency-Key of a call whose body is this.
func (c *Call) keyed(body any) (keyed.Request, error) {
	return keyed.New(c.R.Header, c.caller, c.R.Method+" "+c.R.URL.Path, body)
}

// Answer writes JSON.
func (c *Call) Answer(status int, body any) error {
	form, err := json.Marshal(body)
	if err != nil {
		return err
	}
	c.W.Header().Set("Content-Type", "application/json")
	c.W.WriteHeader(status)
	_, _ = c.W.Write(append(form, '\n')) // the caller is gone: nobody is left to tell
	return nil
}
