package gateway

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/hashicorp/go-hclog"
)

// A gateway with many requests at a time says so, once; one with many after each other does not.
func TestManyRequestsAtATimeAreBusy(t *testing.T) {
	dir, err := os.MkdirTemp("", "dm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	said := 0
	g, err := New(Options{
		Gateway: "gw-aaaaaaaaaa", Listen: filepath.Join(dir, "s"), StateDir: dir, Logger: hclog.NewNullLogger(), Busy: func() { said++ },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Stop(context.Background()) }()
	begun, end := make(chan struct{}), make(chan struct{})
	g.table = append(g.table, route{http.MethodGet, "/hold", private, "", func(http.ResponseWriter, *http.Request) {
		begun <- struct{}{}
		<-end
	}})
	var requests sync.WaitGroup
	open := func(path string) {
		requests.Go(func() { g.serve(httptest.NewRecorder(), httptest.NewRequest(http.MethodGet, path, nil)) })
	}
	for range busyAt - 1 {
		open("/hold")
		<-begun
	}
	if said != 0 {
		t.Fatalf("it is busy with %d requests", busyAt-1)
	}
	for range 3 {
		open("/hold")
		<-begun
	}
	close(end)
	requests.Wait()
	if said != 1 {
		t.Errorf("it said %d times that it is busy, want once", said)
	}
	if n := g.open.Load(); n != 0 {
		t.Errorf("%d requests are open at the end", n)
	}
}
