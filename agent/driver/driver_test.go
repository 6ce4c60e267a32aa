package driver_test

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/agent/driver"
)

func spec() driver.Spec {
	return driver.Spec{
		Gateway: "gw-aaaaaaaaaa", Program: "/bin/gateway", Listen: "/run/gw.sock", Control: "/run/c.sock", StateDir: "/var/gw", LogFile: "/log/gw.log",
	}
}

func TestCheckNamesWhatIsWrong(t *testing.T) {
	if err := spec().Check(); err != nil {
		t.Fatal(err)
	}
	tests := map[string]func(*driver.Spec){
		"gateway id":      func(s *driver.Spec) { s.Gateway = "gw-../../etc" },
		"program":         func(s *driver.Spec) { s.Program = "gateway" },
		"listen socket":   func(s *driver.Spec) { s.Listen = "" },
		"control socket":  func(s *driver.Spec) { s.Control = "c.sock" },
		"state directory": func(s *driver.Spec) { s.StateDir = "./state" },
		"log file":        func(s *driver.Spec) { s.LogFile = "" },
	}
	for want, change := range tests {
		s := spec()
		change(&s)
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Check = %v, want an error that names the %s", err, want)
		}
	}
}

func TestEnvironCannotBeReplaced(t *testing.T) {
	s := spec()
	s.Env = []string{"DEMIURGE_GATEWAY_ID=gw-bbbbbbbbbb", "GOMAXPROCS=1"}
	env := s.Environ()
	want := []string{"DEMIURGE_GATEWAY_ID=gw-aaaaaaaaaa", "DEMIURGE_LISTEN=/run/gw.sock", "DEMIURGE_STATE_DIR=/var/gw", "DEMIURGE_CONTROL=/run/c.sock"}
	if !slices.Equal(env, append(slices.Clone(s.Env), want...)) {
		t.Errorf("Environ = %v", env)
	}
	s.Control = ""
	for _, kv := range s.Environ() {
		if strings.HasPrefix(kv, driver.EnvControl) {
			t.Errorf("a control socket that is not there is set: %s", kv)
		}
	}
}

func TestExitSaysHow(t *testing.T) {
	tests := []struct {
		exit  driver.Exit
		want  string
		clean bool
	}{
		{driver.Exit{Known: true}, "exited with code 0", true},
		{driver.Exit{Known: true, Code: 3}, "exited with code 3", false},
		{driver.Exit{Known: true, Signal: "SIGKILL"}, "ended by SIGKILL", false},
		{driver.Exit{}, "ended, nobody saw how", false},
	}
	for _, tt := range tests {
		if got := tt.exit.String(); got != tt.want || tt.exit.Clean() != tt.clean {
			t.Errorf("%+v: %q clean %v", tt.exit, got, tt.exit.Clean())
		}
	}
}

func TestProcessJSON(t *testing.T) {
	p := driver.Process{Gateway: "gw-aaaaaaaaaa", PID: 7, StartTime: 8, MachineBoot: "b"}
	b, err := json.Marshal(p)
	if err != nil || string(b) != `{"gateway":"gw-aaaaaaaaaa","pid":7,"start_time":8,"machine_boot":"b"}` {
		t.Fatalf("%s, %v", b, err)
	}
	var back driver.Process
	if err := json.Unmarshal(b, &back); err != nil || back != p {
		t.Errorf("%+v, %v", back, err)
	}
}
