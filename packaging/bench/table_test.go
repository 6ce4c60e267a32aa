package main

import (
	"bufio"
	"strings"
	"testing"
)

const printed = `goos: linux
pkg: github.com/demiurge-platform/demiurge/coordinator/state
cpu: some
BenchmarkReserve-2   	     100	     11000 ns/op	      64 B/op	       2 allocs/op
BenchmarkReserve-2   	     100	     13000 ns/op	      64 B/op	       2 allocs/op
BenchmarkReserve-2   	     100	     90000 ns/op	      64 B/op	       2 allocs/op
BenchmarkOdd garbage
PASS
pkg: github.com/demiurge-platform/demiurge/agent/nginx
BenchmarkRouteSwitch/routes=10000-2  	       1	1230000 ns/op	 0.07100 p50-ms	 0.1200 p99-ms
PASS
`

const wanted = `| package           | benchmark                | figures                              |
|-------------------|--------------------------|--------------------------------------|
| coordinator/state | Reserve                  | 13000 ns/op, 64 B/op, 2 allocs/op  |
| agent/nginx       | RouteSwitch/routes=10000 | 0.071 p50-ms, 0.12 p99-ms            |
`

// The table keeps the median of several runs, and of a benchmark with figures of its own only those.
func TestTable(t *testing.T) {
	rows, err := parse(bufio.NewScanner(strings.NewReader(printed)))
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	printTable(&out, rows)
	squeeze := func(s string) string { return strings.Join(strings.Fields(strings.ReplaceAll(s, "-", "")), " ") }
	if squeeze(out.String()) != squeeze(wanted) {
		t.Errorf("got\n%s\nwant\n%s", out.String(), wanted)
	}
}
