package config_test

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/api"
	"github.com/demiurge-platform/demiurge/shared/config"
	"github.com/demiurge-platform/demiurge/shared/logging"
)

type raft struct {
	Bind    string        `yaml:"bind"`
	Timeout time.Duration `yaml:"timeout"`
}

type peer struct {
	Name string `yaml:"name"`
	Port int    `yaml:"port"`
}

type settings struct {
	DataDir  string          `yaml:"data_dir"`
	Gateways int             `yaml:"gateways"`
	Debug    bool            `yaml:"debug"`
	Token    logging.Secret  `yaml:"token"`
	Drain    api.Duration    `yaml:"drain"`
	Join     []string        `yaml:"join"`
	Peers    []peer          `yaml:"peers"`
	Tags     map[string]int  `yaml:"tags"`
	Raft     raft            `yaml:"raft"`
	Ignored  map[string]bool `yaml:"-"`
	invalid  error
}

func (s *settings) Validate() error {
	if s.invalid != nil {
		return s.invalid
	}
	var errs []error
	if s.Gateways < 0 {
		errs = append(errs, config.Invalid("gateways", "must not be negative", "use 0 or more"))
	}
	if s.Raft.Timeout > time.Hour {
		errs = append(errs, config.Invalid("raft.timeout", "is too long", "use at most 1h"))
	}
	for i, p := range s.Peers {
		if p.Port == 0 {
			errs = append(errs, config.Invalid("peers["+string(rune('0'+i))+"].port", "is missing", "name a port"))
		}
	}
	return errors.Join(errs...)
}

func defaults() *settings {
	return &settings{DataDir: "/var/lib/x", Gateways: 3, Join: []string{"a"}, Raft: raft{Bind: "127.0.0.1:7401", Timeout: time.Second}}
}

func TestFileOverDefaults(t *testing.T) {
	s := defaults()
	text := "# settings\ngateways: 40\ndebug: true\ntoken: s3cret\ndrain: 1m30s\njoin: [b, c]\npeers:\n  - {name: x, port: 1}\ntags: {eu: 1}\nraft:\n  timeout: 250ms\n"
	loaded, err := config.Decode("agent.yaml", []byte(text), s, []string{"HOME=/root"})
	if err != nil {
		t.Fatal(err)
	}
	if s.DataDir != "/var/lib/x" || s.Gateways != 40 || !s.Debug || s.Token.Reveal() != "s3cret" || s.Drain != api.Duration(90*time.Second) ||
		!slices.Equal(s.Join, []string{"b", "c"}) || len(s.Peers) != 1 || s.Peers[0] != (peer{"x", 1}) || s.Tags["eu"] != 1 ||
		s.Raft != (raft{"127.0.0.1:7401", 250 * time.Millisecond}) {
		t.Errorf("settings = %+v", s)
	}
	if len(loaded.Overridden) != 0 || len(loaded.Unknown) != 0 {
		t.Errorf("loaded = %+v", loaded)
	}
}

func TestNothingInTheFileKeepsTheDefaults(t *testing.T) {
	for _, text := range []string{"", "\n", "# only a comment\n", "---\n", "---\n# c\n"} {
		s := defaults()
		if _, err := config.Decode("agent.yaml", []byte(text), s, nil); err != nil || s.Gateways != 3 || s.Raft.Bind == "" {
			t.Errorf("%q: %+v, %v", text, s, err)
		}
	}
}

func TestEnvironmentOverFile(t *testing.T) {
	s := defaults()
	text := "gateways: 40\njoin: [b]\nraft:\n  bind: 10.0.0.1:1\n"
	loaded, err := config.Decode("agent.yaml", []byte(text), s, []string{
		"DEMIURGE_GATEWAYS=41", "DEMIURGE_RAFT_BIND=[::1]:2", "DEMIURGE_RAFT_TIMEOUT=2s", "DEMIURGE_JOIN=x, y", "DEMIURGE_DEBUG=true",
		"DEMIURGE_TOKEN=abc", "DEMIURGE_DRAIN=5s", "DEMIURGE_PEERS=[{name: p, port: 2}]", "DEMIURGE_DATA_DIR=", "DEMIURGE_ADDR=elsewhere",
		"DEMIURGE_GATEWAYS=42", // as a flag does, the last one wins
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Gateways != 42 || s.Raft != (raft{"[::1]:2", 2 * time.Second}) || !slices.Equal(s.Join, []string{"x", "y"}) || !s.Debug ||
		s.Token.Reveal() != "abc" || s.Drain != api.Duration(5*time.Second) || len(s.Peers) != 1 || s.DataDir != "/var/lib/x" {
		t.Errorf("settings = %+v", s)
	}
	if !slices.Equal(loaded.Unknown, []string{"DEMIURGE_ADDR"}) {
		t.Errorf("unknown = %v", loaded.Unknown)
	}
	if len(loaded.Overridden) != 8 || !slices.IsSorted(loaded.Overridden) {
		t.Errorf("overridden = %v", loaded.Overridden)
	}
}

func TestRefusals(t *testing.T) {
	deep := strings.Repeat("[", 600)
	tests := []struct {
		name, text, env string
		want            []string
	}{
		{"unknown key", "data_dir: x\ngatways: 3\n", "", []string{`agent.yaml:2:1: cannot use key "gatways": there is no such key: did you mean "gateways"?`}},
		{"unknown key in a section", "raft:\n  zzzzzz: 3\n", "", []string{`agent.yaml:2:3: cannot use key "raft.zzzzzz"`, "known here are bind, timeout"}},
		{"unknown key in a list", "peers:\n  - name: a\n    prt: 1\n", "", []string{`agent.yaml:3:5: cannot use key "peers"`, `unknown field "prt"`}},
		{"all of them at once", "a: 1\nb: 2\n", "", []string{"agent.yaml:1:1", "agent.yaml:2:1"}},
		{"wrong type", "raft:\n  timeout: 1s\ngateways: many\n", "", []string{`agent.yaml:3:11: cannot use key "gateways": another kind of value is expected: a whole number: correct the value`}},
		{"wrong text of a type", "drain: soon\n", "", []string{`agent.yaml:1:8: cannot use key "drain": cannot use "soon" as a duration`}},
		{"wrong duration", "raft: {timeout: soon}\n", "", []string{`agent.yaml:1:17: cannot use key "raft.timeout"`}},
		{"value for a section", "raft: 3\n", "", []string{`agent.yaml:1:7: cannot use key "raft": keys and values are expected`}},
		{"a list at the top", "- a\n", "", []string{"agent.yaml:1:1", "keys and values are expected"}},
		{"duplicate key", "debug: true\ndebug: false\n", "", []string{"agent.yaml:2:1", "already defined", "correct the YAML"}},
		{"tab", "raft:\n\tbind: x\n", "", []string{"agent.yaml:2:1", "correct the YAML"}},
		{"open bracket", "join: [a\n", "", []string{"agent.yaml:1:7", "not found"}},
		{"no value", "raft:\n  bind:\n", "", []string{`agent.yaml:2:3`, `"bind" has no value: give it one, or remove the key`}},
		{"null", "gateways: ~\n", "", []string{"agent.yaml:1:1", "has no value"}},
		{"anchor", "data_dir: &a x\nraft: {bind: *a}\n", "", []string{"agent.yaml:1:", "anchors", "write the value out"}},
		{"tag", "data_dir: !!binary eA==\n", "", []string{"agent.yaml:1:", "tags are not supported"}},
		{"second document", "debug: true\n---\ndebug: false\n", "", []string{"agent.yaml:3:", "second document"}},
		{"deep", "join: " + deep, "", []string{"agent.yaml:1:507", "brackets"}},
		{"long line", "data_dir: " + strings.Repeat("x", 5000), "", []string{"agent.yaml:1:", "longer than"}},
		{"many marks", "join: " + strings.Repeat("- ", 600), "", []string{"agent.yaml:1:1", "list marks"}},
		{"wrong variable", "", "DEMIURGE_GATEWAYS=many", []string{`environment variable DEMIURGE_GATEWAYS: cannot use key "gateways"`, "unset the variable"}},
		{"wrong duration in a variable", "", "DEMIURGE_RAFT_TIMEOUT=soon", []string{"environment variable DEMIURGE_RAFT_TIMEOUT", "soon"}},
		{"unknown field in a variable", "", "DEMIURGE_PEERS=[{prt: 1}]", []string{"environment variable DEMIURGE_PEERS", "prt"}},
		{"invalid value in the file", "\nraft:\n  timeout: 2h\n", "", []string{`agent.yaml:3:12: cannot use key "raft.timeout": is too long: use at most 1h`}},
		{"invalid value in a variable", "gateways: 3", "DEMIURGE_GATEWAYS=-1", []string{`environment variable DEMIURGE_GATEWAYS: cannot use key "gateways": must not be negative`}},
		{"invalid part of a list", "peers:\n  - name: a\n", "", []string{`agent.yaml:2:`, `"peers[0].port": is missing: name a port`}},
		{"two invalid values", "gateways: -1\nraft: {timeout: 2h}", "", []string{"agent.yaml:1:11", "agent.yaml:2:17"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := config.Decode("agent.yaml", []byte(tt.text), defaults(), []string{tt.env})
			if err == nil {
				t.Fatal("accepted")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q\ndoes not say %q", err, want)
				}
			}
		})
	}
}

func TestInvalidValueThatIsNotSetNamesTheVariable(t *testing.T) {
	s := defaults()
	s.Gateways = -1
	_, err := config.Decode("agent.yaml", []byte("debug: true"), s, nil)
	if want := `agent.yaml: cannot use key "gateways": must not be negative (it is not set): use 0 or more, or set DEMIURGE_GATEWAYS`; err == nil || err.Error() != want {
		t.Errorf("error %v\nwant  %s", err, want)
	}
	s = defaults()
	s.invalid = errors.New("cannot do both")
	if _, err := config.Decode("agent.yaml", nil, s, nil); err == nil || err.Error() != "agent.yaml: cannot do both" {
		t.Errorf("error %v", err)
	}
}

func TestSecretsStayOutOfErrors(t *testing.T) {
	text := "token: canary-77\ngatways: 3\n"
	_, err := config.Decode("agent.yaml", []byte(text), defaults(), nil)
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("error = %v", err)
	}
	_, err = config.Decode("agent.yaml", []byte("token: canary-77\n bad\n: ["), defaults(), nil)
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Errorf("error = %v", err)
	}
}

func TestLoadFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "agent.yaml")
	if err := os.WriteFile(path, []byte("gateways: 9\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := defaults()
	if _, err := config.Load(path, s, nil); err != nil || s.Gateways != 9 {
		t.Errorf("%+v, %v", s, err)
	}
	if _, err := config.Load("", defaults(), nil); err != nil {
		t.Errorf("without a file: %v", err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none.yaml"): "create it, or name another file",
		dir:                             "name a file",
	} {
		if _, err := config.Load(path, defaults(), nil); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), path) {
			t.Errorf("Load(%s) = %v, want %q", path, err, want)
		}
	}
	big := filepath.Join(dir, "big.yaml")
	if err := os.WriteFile(big, []byte(strings.Repeat("# filler\n", 200_000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := config.Load(big, defaults(), nil); err == nil || !strings.Contains(err.Error(), "longer than") {
		t.Errorf("big file: %v", err)
	}
}

type ambiguous struct {
	A struct {
		B string `yaml:"b"`
	} `yaml:"a"`
	AB string `yaml:"a_b"`
}

func (*ambiguous) Validate() error { return nil }

type untagged struct{ A string }

func (*untagged) Validate() error { return nil }

func TestTargetsThatCannotWork(t *testing.T) {
	for want, target := range map[string]config.Target{
		"DEMIURGE_A_B":               &ambiguous{},
		"no yaml tag":                &untagged{},
		"want a pointer to a struct": (*settings)(nil),
	} {
		if _, err := config.Decode("", nil, target, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%T: %v, want %q", target, err, want)
		}
	}
}

// panicky stands for a library that panics on malformed text.
type panicky struct{}

func (*panicky) UnmarshalText([]byte) error { panic("index out of range") }

type fragile struct {
	P panicky `yaml:"p"`
}

func (*fragile) Validate() error { return nil }

func TestPanicWhileReadingIsAnError(t *testing.T) {
	_, err := config.Decode("agent.yaml", []byte("p: x"), &fragile{}, nil)
	if want := `agent.yaml:1:4: cannot use key "p": the text is malformed: correct the value`; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestKeysAreDocumented(t *testing.T) {
	keys, err := config.Keys(defaults())
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, k := range keys {
		lines = append(lines, k.Path+" "+k.Env+" "+k.Type)
	}
	for _, want := range []string{"raft.bind DEMIURGE_RAFT_BIND string", "raft.timeout DEMIURGE_RAFT_TIMEOUT time.Duration", "token DEMIURGE_TOKEN logging.Secret"} {
		if !slices.Contains(lines, want) {
			t.Errorf("keys %q lack %q", lines, want)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add("gateways: 3\nraft: {bind: x}\n", "3")
	f.Add("peers:\n  - {name: a, port: 1}\n", "[{name: a}]")
	f.Add("join: [a, &x b, *x]\n<<: {}\n", "a,b")
	f.Add("? a\n: b\n--- \n- - -\n", "{a: 1}")
	f.Add("data_dir: |\n  x\n  y\ntags: {\"a\": 0x1F}\n", "!!int 3")
	f.Fuzz(func(t *testing.T, text, value string) {
		s := defaults()
		_, err := config.Decode("f.yaml", []byte(text), s, []string{"DEMIURGE_PEERS=" + value, "DEMIURGE_TAGS=" + value, "DEMIURGE_GATEWAYS=" + value})
		if err == nil && s.Validate() != nil {
			t.Error("accepted what Validate refuses")
		}
		if err != nil && err.Error() == "" {
			t.Error("refused without a word")
		}
	})
}
