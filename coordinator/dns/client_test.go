package dns

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/demiurge-platform/demiurge/shared/fault"
)

func TestAnswersOfPowerDNSAreBounded(t *testing.T) {
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		rest := []byte(strings.Repeat("x", 4096))
		_, err := w.Write([]byte(`{"rrsets": [{"name": "`))
		for err == nil {
			_, err = w.Write(rest)
		}
	}))
	defer endless.Close()
	file := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(file, []byte("a-key"), 0o600); err != nil {
		t.Fatal(err)
	}
	c := newClient(PowerDNSConfig{URL: endless.URL, KeyFile: file, Timeout: time.Minute}, testDomain, 100_000)
	_, err := c.sets(t.Context(), "")
	if KindOf(err) != Refused || !strings.Contains(fault.From(err).Message, "longer than 100000 bytes") {
		t.Error(err)
	}
}
