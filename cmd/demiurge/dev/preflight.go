package dev

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/failpoint"
)

// programs are the paths of what a system is made of.
type programs struct {
	coordinator, agent, gateway, nginx string
}

// findPrograms looks beside this program for the others, and for nginx where systems keep it.
func findPrograms(executable string) (programs, error) {
	if real, err := filepath.EvalSymlinks(executable); err == nil {
		executable = real
	}
	dir, err := filepath.Abs(filepath.Dir(executable))
	if err != nil {
		return programs{}, fmt.Errorf("cannot tell where this program is: %w", err)
	}
	p := programs{
		coordinator: filepath.Join(dir, "demiurge-coordinator"),
		agent:       filepath.Join(dir, "demiurge-agent"),
		gateway:     filepath.Join(dir, "demiurge-gateway"),
	}
	var missing []string
	for _, path := range []string{p.coordinator, p.agent, p.gateway} {
		if _, err := exec.LookPath(path); err != nil {
			missing = append(missing, filepath.Base(path))
		}
	}
	if len(missing) > 0 {
		return p, fmt.Errorf("cannot find %s in %s, beside this program: build all programs with 'make build', or install the package", strings.Join(missing, ", "), dir)
	}
	for _, name := range []string{"nginx", "/usr/sbin/nginx", "/usr/local/sbin/nginx"} {
		if path, err := exec.LookPath(name); err == nil {
			p.nginx, err = filepath.Abs(path)
			return p, err
		}
	}
	return p, errors.New("cannot find nginx in PATH, /usr/sbin or /usr/local/sbin: install the package nginx (Debian: apt-get install nginx-light)")
}

// cleanEnvironment is what the programs inherit: not what would configure them or tie them to the service
// manager that started this one.
func cleanEnvironment(environ []string) []string {
	var out []string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		switch {
		case failpoint.Enabled && strings.HasPrefix(name, failpoint.Variable):
			out = append(out, v) // a build for crash tests hands them to the programs
		case strings.HasPrefix(name, "DEMIURGE_"), strings.HasPrefix(name, "LISTEN_"), strings.HasPrefix(name, "WATCHDOG_"), name == "NOTIFY_SOCKET", name == "NGINX":
		default:
			out = append(out, v)
		}
	}
	return out
}
