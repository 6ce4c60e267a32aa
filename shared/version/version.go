// Package version tells which build is running. A release sets the version with the linker
//
//	-ldflags "-X github.com/demiurge-platform/demiurge/shared/version.linked=v1.2.3"
//
// and every other build answers from what the Go toolchain recorded in the binary.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// linked is the one package variable here, because the linker can set nothing else. Nothing writes it.
var linked string

// unknown is the version of a build that carries no information at all, such as a test binary.
const unknown = "dev"

// Info is what is known of a build.
type Info struct {
	Version  string // "v1.2.3", a pseudo-version, or "dev"
	Revision string // commit, empty when it was built outside a checkout
	Modified bool   // built from a checkout with local changes
	Go       string // toolchain
}

// Get returns what is known of the running program.
func Get() Info {
	build, _ := debug.ReadBuildInfo()
	return from(linked, build)
}

// String is the version of the running program alone, for headers, reports and logs.
func String() string { return Get().Version }

// String prints the build on one line, as --version does.
func (i Info) String() string {
	out := i.Version
	if i.Revision != "" {
		out += " (" + i.Revision
		if i.Modified {
			out += ", modified"
		}
		out += ")"
	}
	return fmt.Sprintf("%s %s", out, i.Go)
}

// from decides between the two sources; build is nil where the toolchain recorded nothing.
func from(linked string, build *debug.BuildInfo) Info {
	info := Info{Version: unknown, Go: runtime.Version()}
	if build != nil {
		if v := build.Main.Version; v != "" && v != "(devel)" {
			info.Version = v
		}
		for _, s := range build.Settings {
			switch s.Key {
			case "vcs.revision":
				info.Revision = s.Value
				if len(info.Revision) > 12 {
					info.Revision = info.Revision[:12]
				}
			case "vcs.modified":
				info.Modified = s.Value == "true"
			}
		}
	}
	if linked != "" {
		info.Version = linked
	}
	return info
}
