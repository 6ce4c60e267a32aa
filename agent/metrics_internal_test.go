package agent

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestWhoAsksForMetricsGetsLittleRoomAndTime(t *testing.T) {
	s := httptest.NewUnstartedServer(nil)
	s.Config = metricsServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
		}
	}))
	s.Start()
	defer s.Close()
	for want, edit := range map[int]func(*http.Request){
		http.StatusOK:                          func(*http.Request) {},
		http.StatusRequestHeaderFieldsTooLarge: func(r *http.Request) { r.Header.Set("X", strings.Repeat("x", 32<<10)) },
		http.StatusRequestEntityTooLarge:       func(r *http.Request) { r.Body = io.NopCloser(strings.NewReader(strings.Repeat("x", 5<<10))) },
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		edit(r)
		resp, err := s.Client().Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("it answers %d, want %d", resp.StatusCode, want)
		}
	}
	if c := s.Config; c.ReadHeaderTimeout <= 0 || c.ReadTimeout <= 0 || c.WriteTimeout <= 0 || c.IdleTimeout <= 0 {
		t.Error("somebody slow may stay for as long as it likes")
	}
}
