package logging_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/logging"
	"github.com/goccy/go-yaml"
	"github.com/hashicorp/go-hclog"
)

func TestFormats(t *testing.T) {
	t.Run("json", func(t *testing.T) {
		var out bytes.Buffer
		log, err := logging.New(logging.Options{Name: "agent", Format: logging.FormatJSON, Output: &out})
		if err != nil {
			t.Fatal(err)
		}
		log.Named("nginx").Info("generation is live", "generation", 7)
		var line map[string]any
		if err := json.Unmarshal(out.Bytes(), &line); err != nil {
			t.Fatalf("not JSON: %v: %s", err, out.String())
		}
		if line["@module"] != "agent.nginx" || line["@message"] != "generation is live" || line["generation"] != 7.0 {
			t.Errorf("line = %v", line)
		}
		at, err := time.Parse(time.RFC3339, fmt.Sprint(line["@timestamp"]))
		if err != nil || at.Location() != time.UTC {
			t.Errorf("timestamp = %v (%v), want RFC 3339 in UTC", line["@timestamp"], err)
		}
	})
	t.Run("text", func(t *testing.T) {
		var out bytes.Buffer
		log, err := logging.New(logging.Options{Name: "agent", Level: "warn", Output: &out})
		if err != nil {
			t.Fatal(err)
		}
		log.Info("below the level")
		log.Warn("seen", "key", "value")
		if got := out.String(); strings.Contains(got, "below") || !strings.Contains(got, "agent: seen: key=value") {
			t.Errorf("lines = %q", got)
		}
	})
}

func TestLevels(t *testing.T) {
	for s, want := range map[string]hclog.Level{
		"": hclog.Info, "trace": hclog.Trace, "DEBUG": hclog.Debug, "info": hclog.Info, "warn": hclog.Warn, "error": hclog.Error, "off": hclog.Off,
	} {
		if got, err := logging.ParseLevel(s); err != nil || got != want {
			t.Errorf("ParseLevel(%q) = %v, %v, want %v", s, got, err, want)
		}
	}
}

func TestWrongOptionsAreRefusedWithTheRemedy(t *testing.T) {
	for _, opts := range []logging.Options{{Level: "loud"}, {Format: "xml"}} {
		if _, err := logging.New(opts); err == nil || !strings.Contains(err.Error(), "want ") {
			t.Errorf("New(%+v) = %v, want a refusal that names what is allowed", opts, err)
		}
	}
}

func TestSecretNeverPrints(t *testing.T) {
	const canary = "canary-3f9a"
	secret := logging.NewSecret(canary)
	type hidden struct{ inner logging.Secret } // fmt asks no method of an unexported field
	type shown struct {
		Token logging.Secret `json:"token" yaml:"token"`
	}
	holders := map[string]any{
		"secret": secret, "pointer": &secret, "field": shown{secret}, "unexported field": hidden{secret},
		"pointer to a struct": &hidden{secret}, "slice": []logging.Secret{secret}, "map": map[string]logging.Secret{"a": secret},
	}
	for name, v := range holders {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%10s", "%T", "%p", "%w"} {
			if got := fmt.Sprintf(verb, v); strings.Contains(got, canary) || strings.Contains(got, fmt.Sprintf("%x", canary)) {
				t.Errorf("%s of %s prints the secret: %s", verb, name, got)
			}
		}
		if b, err := json.Marshal(v); err != nil || bytes.Contains(b, []byte(canary)) {
			t.Errorf("JSON of %s: %s, %v", name, b, err)
		}
		if b, err := yaml.Marshal(v); err != nil || bytes.Contains(b, []byte(canary)) {
			t.Errorf("YAML of %s: %s, %v", name, b, err)
		}
		for _, format := range []string{logging.FormatText, logging.FormatJSON} {
			var out bytes.Buffer
			log, err := logging.New(logging.Options{Format: format, Output: &out})
			if err != nil {
				t.Fatal(err)
			}
			log.Info("message", "key", v)
			if strings.Contains(out.String(), canary) {
				t.Errorf("log line (%s) of %s: %s", format, name, out.String())
			}
		}
	}
	if got := fmt.Sprint(secret); got != "[redacted]" {
		t.Errorf("a secret prints as %q", got)
	}
	if secret.Reveal() != canary || secret.IsZero() {
		t.Error("the secret is lost")
	}
}

func TestSecretIsRead(t *testing.T) {
	var v struct {
		Token logging.Secret `json:"token" yaml:"token"`
		None  logging.Secret `json:"none" yaml:"none"`
	}
	if err := json.Unmarshal([]byte(`{"token": "abc"}`), &v); err != nil || v.Token.Reveal() != "abc" {
		t.Errorf("JSON: %v, %q", err, v.Token.Reveal())
	}
	if err := yaml.Unmarshal([]byte("token: def"), &v); err != nil || v.Token.Reveal() != "def" {
		t.Errorf("YAML: %v, %q", err, v.Token.Reveal())
	}
	if !v.None.IsZero() || v.None.Reveal() != "" || !logging.NewSecret("").IsZero() {
		t.Error("an absent secret is not zero")
	}
}
