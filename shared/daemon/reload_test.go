package daemon

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/go-hclog"

	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/demiurge-platform/demiurge/shared/notify"
)

type words struct {
	Word  string         `yaml:"word"`
	Inner inner          `yaml:"inner"`
	Log   logging.Config `yaml:"log"`
}

type inner struct {
	Secret string `yaml:"secret"`
	Count  int    `yaml:"count"`
}

func (*words) Validate() error { return nil }

// Whoever edits a file learns from the log whether it is used, what it lacks, and when it is well again.
func TestAReloadSaysWhatBecameOfTheFile(t *testing.T) {
	var out bytes.Buffer
	log := hclog.New(&hclog.LoggerOptions{Output: &out})
	path := filepath.Join(t.TempDir(), "x.yaml")
	begin := func() *words { return &words{Word: "a", Log: logging.Config{Level: "info", Format: "text"}} }
	r := &reloader[*words]{
		Options: Options[*words]{Path: path, Default: begin, Log: func(w *words) *logging.Config { return &w.Log }},
		running: begin(), log: log, notifier: notify.New(log),
	}
	for _, step := range []struct{ text, want, not string }{
		{"word: a\n", "", "file"},
		{"wrod: a\n", "the changed configuration is not used", ""},
		{"word: a\n", "the configuration file is right again", "restart"},
		{"word: a\n", "", "file"},
		{"word: b\ninner: {secret: hush}\n", "keys=[\"word\", \"inner.secret\"]", "hush"},
	} {
		if err := os.WriteFile(path, []byte(step.text), 0o600); err != nil {
			t.Fatal(err)
		}
		out.Reset()
		r.now()
		if got := out.String(); !strings.Contains(got, step.want) || step.not != "" && strings.Contains(got, step.not) {
			t.Errorf("%q: the log says %q, want %q and not %q", step.text, got, step.want, step.not)
		}
	}
}
