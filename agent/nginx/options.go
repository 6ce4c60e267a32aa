package nginx

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

// Options is everything an engine is told once.
type Options struct {
	DataDir string // <data>/nginx: configuration, routes, logs; made with mode 0700
	RunDir  string // <run>/nginx: pid file and generation sockets; made with mode 0700
	Binary  string // the nginx program; default: found in PATH, /usr/sbin or /usr/local/sbin
	Domain  string // organizations are org-<uuid>.<Domain>, with every name below it

	Listen          []netip.AddrPort // plain HTTP listeners
	ListenTLS       []netip.AddrPort // HTTPS and HTTP/2 listeners; they need CertificateFile
	CertificateFile string           // key and chain in one PEM file

	AgentSocket    string         // unix socket of the agent's tenant HTTP; "": its paths answer 404
	AccessSocket   string         // unix socket that decides about requests to user containers; "": their names are the gateways'
	PassSocket     string         // unix socket that carries those that may last, and answers those that do not pass; goes with AccessSocket
	SocketDir      string         // gateways listen at <SocketDir>/<gateway>/http.sock
	TrustedProxies []netip.Prefix // whose X-Forwarded-For and X-Forwarded-Proto are believed

	Workers            int // nginx workers; 0: one per core, at least 2
	MaxDrainingWorkers int // old workers that may still hold connections before generations are slowed; 0: 4

	FS     fsx.FS           // default: the real one, confined to DataDir and RunDir
	Logger hclog.Logger     // default: none
	Now    func() time.Time // default: time.Now
	Events func(Event)      // told of everything worth an event; called in order, must not block
}

// socketLimit is the longest path of a unix socket on Linux without its final zero byte.
const socketLimit = 107

// plainPath is what may stand in a path that reaches the configuration: no blank, quote, brace,
// semicolon, dollar or pattern character.
var plainPath = regexp.MustCompile(`^/[A-Za-z0-9/._@+-]*$`)

// withDefaults checks the options and fills what was left out. It touches no file but to look for them.
func (o Options) withDefaults() (Options, error) {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	o.Logger = o.Logger.Named("nginx")
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Events == nil {
		o.Events = func(Event) {}
	}
	if o.Workers <= 0 {
		o.Workers = max(2, runtime.NumCPU())
	}
	if o.MaxDrainingWorkers <= 0 {
		o.MaxDrainingWorkers = 4
	}
	if _, err := id.ParseDomain(o.Domain); err != nil {
		return o, err
	}
	if err := o.findBinary(); err != nil {
		return o, err
	}
	return o, o.check()
}

func (o *Options) findBinary() error {
	if o.Binary != "" {
		if _, err := exec.LookPath(o.Binary); err != nil {
			return fmt.Errorf("cannot find nginx at %s: install nginx or correct the path: %w", o.Binary, err)
		}
	} else {
		for _, name := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
			if path, err := exec.LookPath(name); err == nil {
				o.Binary = path
				break
			}
		}
		if o.Binary == "" {
			return errors.New("cannot find nginx in PATH, /usr/sbin or /usr/local/sbin: install the package nginx")
		}
	}
	path, err := filepath.Abs(o.Binary)
	if err != nil {
		return fmt.Errorf("cannot resolve the path of nginx %s: %w", o.Binary, err)
	}
	o.Binary = path
	return nil
}

func (o *Options) check() error {
	if len(o.Listen)+len(o.ListenTLS) == 0 {
		return errors.New("cannot configure nginx without a listener: give at least one address and port")
	}
	if err := checkListeners(o.Listen, o.ListenTLS); err != nil {
		return err
	}
	if len(o.ListenTLS) > 0 && o.CertificateFile == "" {
		return errors.New("cannot listen for HTTPS without a certificate file")
	}
	if (o.AccessSocket == "") != (o.PassSocket == "") {
		return errors.New("cannot serve user containers with only one of access socket and pass socket: give both or none")
	}
	paths := map[string]*string{
		"data directory": &o.DataDir, "run directory": &o.RunDir, "socket directory": &o.SocketDir,
		"agent socket": &o.AgentSocket, "access socket": &o.AccessSocket, "pass socket": &o.PassSocket, "certificate file": &o.CertificateFile,
	}
	for what, path := range paths {
		if *path == "" && (path == &o.AgentSocket || path == &o.AccessSocket || path == &o.PassSocket || path == &o.CertificateFile) {
			continue
		}
		abs, err := filepath.Abs(*path)
		if err != nil || *path == "" || !plainPath.MatchString(abs) {
			return fmt.Errorf("cannot use %q as the %s of nginx: want a path of letters, digits and ./_@+-", *path, what)
		}
		*path = abs
	}
	sockets := []string{o.RunDir + "/gen-000000000.fence", o.SocketDir + "/gw-0123456789/http.sock", o.AgentSocket, o.AccessSocket, o.PassSocket}
	for _, socket := range sockets {
		if len(socket) > socketLimit {
			return fmt.Errorf("cannot use unix socket %s: its path has %d characters and the system allows %d; choose a shorter directory",
				socket, len(socket), socketLimit)
		}
	}
	return nil
}

// checkListeners refuses what nginx would accept in a test and could never bind together.
func checkListeners(lists ...[]netip.AddrPort) error {
	var seen []netip.AddrPort
	for _, list := range lists {
		for _, a := range list {
			if !a.IsValid() || a.Port() == 0 || a.Addr().Zone() != "" {
				return fmt.Errorf("cannot listen on %q: want an address and a port other than 0", a)
			}
			for _, b := range seen {
				if clash(a, b) {
					return fmt.Errorf("cannot listen on both %s and %s: they are the same port of the same address", b, a)
				}
			}
			seen = append(seen, a)
		}
	}
	return nil
}

// clash tells whether two listeners cannot be bound at the same time.
func clash(a, b netip.AddrPort) bool {
	if a.Port() != b.Port() || a.Addr().Unmap().Is4() != b.Addr().Unmap().Is4() {
		return false
	}
	return a.Addr().Unmap() == b.Addr().Unmap() || a.Addr().IsUnspecified() || b.Addr().IsUnspecified()
}

// prepareDirs makes the directories and resolves symbolic links in their paths: nginx compares the real
// path of a route with the configured one.
func (o *Options) prepareDirs() error {
	for _, dir := range []*string{&o.DataDir, &o.RunDir} {
		if err := os.MkdirAll(*dir, 0o700); err != nil {
			return fmt.Errorf("cannot make directory %s for nginx: %w", *dir, err)
		}
		real, err := filepath.EvalSymlinks(*dir)
		if err != nil {
			return fmt.Errorf("cannot resolve directory %s: %w", *dir, err)
		}
		if !plainPath.MatchString(real) || len(real)+len("/gen-000000000.fence") > socketLimit && dir == &o.RunDir {
			return fmt.Errorf("cannot use directory %s (really %s) for nginx: its path is too long or has characters other than letters, digits and ./_@+-", *dir, real)
		}
		*dir = real
	}
	return nil
}
