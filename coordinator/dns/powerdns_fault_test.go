package dns_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/coordinator/dns"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// failsAs checks that all calls of a provider fail in one way, say what to do, and keep the key to themselves.
func failsAs(t *testing.T, p dns.Provider, kind dns.Kind, remedy string) {
	t.Helper()
	_, listErr := p.List(t.Context())
	for call, err := range map[string]error{
		"Ensure": p.Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1")),
		"Remove": p.Remove(t.Context(), host(orgBoth), 7),
		"List":   listErr,
	} {
		if dns.KindOf(err) != kind || fault.CodeOf(err) != fault.DNSFailed {
			t.Errorf("%s: %v, want a failure that is %s", call, err, kind)
			continue
		}
		if message := fault.From(err).Message; !strings.Contains(message, remedy) {
			t.Errorf("%s: %q does not say %q", call, message, remedy)
		}
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, apiKey) || strings.ContainsAny(text, "\x1b\n") {
			t.Errorf("%s: the error holds the key, or what no log should: %q", call, text)
		}
	}
}

func TestPowerDNSDown(t *testing.T) {
	server := startPowerDNS(t)
	p := provider(t, server.config())
	server.stop()
	failsAs(t, p, dns.Temporary, "start it")
	must(t, server.start())
	must(t, p.Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1")))
}

func TestPowerDNSSlow(t *testing.T) {
	server := startPowerDNS(t)
	cfg := server.config()
	p := provider(t, cfg)
	cfg.PowerDNS.Timeout = 100 * time.Millisecond
	impatient := provider(t, cfg)
	server.signal(syscall.SIGSTOP)
	failsAs(t, impatient, dns.Temporary, "raise powerdns.timeout")
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	err := p.Ensure(ctx, record(host(orgBoth), 7, "192.0.2.1"))
	if dns.KindOf(err) != dns.Temporary || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the caller's time was up, and the error is %v", err)
	}
	server.signal(syscall.SIGCONT)
	must(t, p.Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1")))
	if a := server.sees(host(orgBoth), "A"); a != "5 A 192.0.2.1" {
		t.Errorf("it is %q", a)
	}
}

func TestPowerDNSRefusesTheKey(t *testing.T) {
	server := startPowerDNS(t)
	cfg := powerDNSConfig(t, server.url(), "not-the-key")
	p := provider(t, cfg)
	failsAs(t, p, dns.Refused, "put the api-key of its configuration into "+cfg.PowerDNS.KeyFile)
	must(t, os.WriteFile(cfg.PowerDNS.KeyFile, []byte(apiKey), 0o600)) // mended without a restart
	must(t, p.Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1")))
}

func TestPowerDNSKeyFileIsNoKey(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"missing":      os.Remove,
		"empty":        func(path string) error { return os.WriteFile(path, []byte(" \n"), 0o600) },
		"two lines":    func(path string) error { return os.WriteFile(path, []byte("a\nb"), 0o600) },
		"far too long": func(path string) error { return os.WriteFile(path, make([]byte, 1<<20), 0o600) },
		"a directory":  func(path string) error { return errors.Join(os.Remove(path), os.Mkdir(path, 0o700)) },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := powerDNSConfig(t, "http://127.0.0.1:1", apiKey)
			must(t, make(cfg.PowerDNS.KeyFile))
			failsAs(t, provider(t, cfg), dns.Refused, "make the file readable")
		})
	}
}

func TestPowerDNSHasNoSuchZone(t *testing.T) {
	server := startPowerDNS(t)
	cfg := server.config()
	cfg.PowerDNS.Zone = domain
	failsAs(t, provider(t, cfg), dns.Refused, "pdnsutil create-zone "+domain)
}

// fake answers as a test says, for what the real server cannot be made to do.
func fake(t *testing.T, handle http.HandlerFunc) dns.Config {
	t.Helper()
	s := httptest.NewServer(handle)
	t.Cleanup(s.Close)
	return powerDNSConfig(t, s.URL, apiKey)
}

func TestPowerDNSLies(t *testing.T) {
	t.Run("it stores nothing", func(t *testing.T) {
		cfg := fake(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			_, _ = w.Write([]byte(`{"rrsets": []}`))
		})
		err := provider(t, cfg).Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1"))
		if dns.KindOf(err) != dns.Lying || fault.CodeOf(err) != fault.DNSFailed || !strings.Contains(err.Error(), "another program writes") {
			t.Error(err)
		}
	})
	t.Run("it removes nothing", func(t *testing.T) {
		cfg := fake(t, func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodPatch {
				w.WriteHeader(http.StatusNoContent)
				return
			}
			_, _ = fmt.Fprintf(w, `{"rrsets": [{"name": "%s.", "type": "A", "ttl": 5, "records": [{"content": "192.0.2.1", "disabled": false}]}]}`, host(orgBoth))
		})
		err := provider(t, cfg).Remove(t.Context(), host(orgBoth), 7)
		if dns.KindOf(err) != dns.Lying || fault.CodeOf(err) != fault.DNSFailed || !strings.Contains(err.Error(), "still has it") {
			t.Error(err)
		}
	})
	t.Run("it stores another address", func(t *testing.T) {
		var stored atomic.Bool
		cfg := fake(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPatch:
				stored.Store(true)
				w.WriteHeader(http.StatusNoContent)
			case stored.Load():
				_, _ = fmt.Fprintf(w, `{"rrsets": [{"name": "%s.", "type": "A", "ttl": 5, "records": [{"content": "192.0.2.2"}]}]}`, host(orgBoth))
			default:
				_, _ = w.Write([]byte(`{"rrsets": []}`))
			}
		})
		err := provider(t, cfg).Ensure(t.Context(), record(host(orgBoth), 7, "192.0.2.1"))
		if dns.KindOf(err) != dns.Lying {
			t.Error(err)
		}
	})
}

func TestPowerDNSAnswersOddly(t *testing.T) {
	for name, c := range map[string]struct {
		handle http.HandlerFunc
		kind   dns.Kind
		remedy string
	}{
		"503":        {status(http.StatusServiceUnavailable), dns.Temporary, "its log says why"},
		"429":        {status(http.StatusTooManyRequests), dns.Temporary, "its log says why"},
		"403":        {status(http.StatusForbidden), dns.Refused, "webserver-allow-from"},
		"422":        {status(http.StatusUnprocessableEntity), dns.Refused, "HTTP status 422"},
		"a redirect": {redirect, dns.Refused, "set powerdns.url"},
		"HTML":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }, dns.Refused, "correct powerdns.url"},
		"nothing":    {func(http.ResponseWriter, *http.Request) {}, dns.Refused, "correct powerdns.url"},
		"no zone":    {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"status": "ok"}`)) }, dns.Refused, "correct powerdns.url"},
		"null":       {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`null`)) }, dns.Refused, "correct powerdns.url"},
		"the key, in an error": {func(w http.ResponseWriter, r *http.Request) {
			http.Error(w, "you sent\x1b[31m\n"+r.Header.Get("X-API-Key"), http.StatusBadRequest)
		}, dns.Refused, "HTTP status 400"},
		"other JSON": {func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(`{"rrsets": 1}`)) }, dns.Refused, "correct powerdns.url"},
		"half an answer": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = w.Write([]byte(`{"rrsets": [`))
		}, dns.Temporary, "cannot reach PowerDNS"},
	} {
		t.Run(name, func(t *testing.T) {
			failsAs(t, provider(t, fake(t, c.handle)), c.kind, c.remedy)
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
}

func redirect(w http.ResponseWriter, r *http.Request) {
	http.Redirect(w, r, "http://127.0.0.1:1/elsewhere", http.StatusTemporaryRedirect)
}

// What passes by itself is tried again; what does not is not.
func TestPowerDNSIsAskedAgain(t *testing.T) {
	for name, c := range map[string]struct {
		code, failures int
		calls          int32
		ok             bool
	}{
		"fails twice":         {http.StatusInternalServerError, 2, 3, true},
		"fails three times":   {http.StatusInternalServerError, 3, 3, false},
		"refuses":             {http.StatusUnprocessableEntity, 1, 1, false},
		"does not fail a bit": {http.StatusOK, 0, 1, true},
	} {
		t.Run(name, func(t *testing.T) {
			var calls atomic.Int32
			cfg := fake(t, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-API-Key") != apiKey || r.URL.Path != "/api/v1/servers/localhost/zones/"+zone+"." {
					t.Errorf("asked for %s", r.URL)
				}
				if n := calls.Add(1); n <= int32(c.failures) {
					w.WriteHeader(c.code)
					return
				}
				_, _ = w.Write([]byte(`{"rrsets": []}`))
			})
			if _, err := provider(t, cfg).List(t.Context()); (err == nil) != c.ok || calls.Load() != c.calls {
				t.Errorf("%d calls, %v", calls.Load(), err)
			}
		})
	}
}

func TestPowerDNSConfigurationIsChecked(t *testing.T) {
	cfg := powerDNSConfig(t, "ftp://127.0.0.1", apiKey)
	cfg.PowerDNS.KeyFile = filepath.Base(cfg.PowerDNS.KeyFile)
	if _, err := dns.New(dns.Options{Config: cfg, Domain: domain}); err == nil || !strings.Contains(err.Error(), "powerdns.url") || !strings.Contains(err.Error(), "key_file") {
		t.Error(err)
	}
}
