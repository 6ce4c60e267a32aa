package version

import (
	"runtime"
	"runtime/debug"
	"testing"
)

func TestFrom(t *testing.T) {
	vcs := func(version, revision, modified string) *debug.BuildInfo {
		return &debug.BuildInfo{
			Main: debug.Module{Version: version},
			Settings: []debug.BuildSetting{
				{Key: "vcs.revision", Value: revision},
				{Key: "vcs.modified", Value: modified},
			},
		}
	}
	tests := []struct {
		name   string
		linked string
		build  *debug.BuildInfo
		want   string
	}{
		{"nothing known", "", nil, "dev"},
		{"development build", "", vcs("(devel)", "", "false"), "dev"},
		{"module version", "", vcs("v1.4.0", "", "false"), "v1.4.0"},
		{"long revision is cut", "", vcs("(devel)", "0123456789abcdef0123", "false"), "dev (0123456789ab)"},
		{"local changes show", "", vcs("v1.4.0", "0123456789ab", "true"), "v1.4.0 (0123456789ab, modified)"},
		{"the linker wins", "v2.0.0", vcs("v1.4.0", "0123456789ab", "false"), "v2.0.0 (0123456789ab)"},
		{"the linker alone", "v2.0.0", nil, "v2.0.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got, want := from(tt.linked, tt.build).String(), tt.want+" "+runtime.Version(); got != want {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	}
}

func TestRunningProgramHasAVersion(t *testing.T) {
	if String() == "" {
		t.Error("a program without a version")
	}
	if Get().Go != runtime.Version() {
		t.Errorf("Go = %q, want %q", Get().Go, runtime.Version())
	}
}
