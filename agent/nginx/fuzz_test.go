package nginx

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/shared/fsx"
	"github.com/demiurge-platform/demiurge/shared/id"
)

const (
	ada = id.Organization("00000000-0000-4000-8000-00000000000a")
	bob = id.Organization("00000000-0000-4000-8000-00000000000b")
)

// FuzzBlame: whatever nginx says, what is left out for it is a part that is there, so that looking for what is refused
// comes to an end.
func FuzzBlame(f *testing.F) {
	r := testRenderer()
	cfg := Config{
		Slots: []Slot{{Gateway: "gw-aaaaaaaaaa", MaxBody: 1}, {Gateway: "gw-bbbbbbbbbb", MaxBody: 2}},
		Sites: []Site{{Organization: ada, Domains: []string{"a.test"}, Certificate: true}},
	}
	files := r.renderTo("scratch", 0, cfg)
	for _, s := range []string{
		`nginx: [emerg] invalid parameter in /data/nginx/scratch/sites/` + string(ada) + `.conf:3`,
		`nginx: [emerg] invalid parameter in /data/nginx/scratch/sites/` + string(bob) + `.conf:3`,
		`nginx: [emerg] x in /data/nginx/scratch/slots.conf:2`, `x in /data/nginx/scratch/slots.conf:99999999999999999999`, `x in /slots.conf:0`,
		`cannot load certificate "` + r.l.certificate(ada) + `": no`, `x in /sites/------------------------------------.conf:1`, "",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, message string) {
		if part := r.blame(message, files, cfg); part != "" && !slices.Contains(partNames(cfg), part) {
			t.Fatalf("%q is said of %q, which is not there", message, part)
		}
	})
}

// FuzzReadBack: what is read back from the files of a generation is gateways and listeners that can be written again.
func FuzzReadBack(f *testing.F) {
	r := testRenderer()
	files := r.renderTo("scratch", 0, Config{Slots: []Slot{{Gateway: "gw-aaaaaaaaaa", MaxBody: 1 << 20}, {Gateway: "gw-bbbbbbbbbb", MaxBody: 2}}})
	f.Add(files["slots.conf"], files["http.conf"])
	f.Add([]byte("upstream gw-aaaaaaaaaa---- { \n    gw-aaaaaaaaaa 9999999999999;\n"), []byte("    listen [fe80::1%x]:80 default_server;\n    client_max_body_size 0000000000001;\n"))
	f.Fuzz(func(t *testing.T, slots, http []byte) {
		files := tree{"slots.conf": slots, "http.conf": http}
		for _, s := range parseSlots(files) {
			if _, err := id.ParseGateway(string(s.Gateway)); err != nil || s.MaxBody < 0 {
				t.Fatalf("%+v is read", s)
			}
		}
		for _, l := range listeners(files) {
			if !l.addr.IsValid() {
				t.Fatalf("%v is read", l.addr)
			}
		}
	})
}

// FuzzProc: whatever stands where the system tells of a process, it is read as what is written there or refused.
func FuzzProc(f *testing.F) {
	f.Add([]byte("17 (nginx) S 1 17 17 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 1 2 3\n"), []byte("Limit                     Soft Limit           Hard Limit           Units     \nMax open files            1024                 524288               files     \n"))
	f.Add([]byte("17 (a) b) Z 1 17 17 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 18446744073709551616 1 2 3"), []byte("Max open files            unlimited            unlimited            files\n"))
	f.Add([]byte(") "), []byte("Max open files\n"))
	f.Fuzz(func(t *testing.T, stat, limits []byte) {
		if p, err := parseProcess(17, stat); err == nil {
			after := stat[strings.LastIndex(string(stat), ") ")+1:]
			if p.pid != 17 || !strings.Contains(string(after), string(p.state)) {
				t.Fatalf("%q is read as %+v", stat, p)
			}
		} else if !strings.Contains(err.Error(), "of process 17") {
			t.Fatalf("refused with %v", err)
		}
		if n, err := parseDescriptorLimit(17, limits); err == nil && n != 0 && !strings.Contains(string(limits), "Max open files") {
			t.Fatalf("%q is read as %d", limits, n)
		} else if err != nil && !strings.Contains(err.Error(), "of process 17") {
			t.Fatalf("refused with %v", err)
		}
	})
}

// FuzzQuarantine: whatever lies where refused parts are noted, what is taken stands in the file that it belongs to, what is
// not taken is removed, and nothing beside it is.
func FuzzQuarantine(f *testing.F) {
	dir := f.TempDir()
	l := layout{data: dir, run: dir}
	beside := filepath.Join(dir, "beside")
	if err := os.WriteFile(beside, nil, 0o600); err != nil {
		f.Fatal(err)
	}
	if err := os.Mkdir(l.quarantine(), 0o700); err != nil {
		f.Fatal(err)
	}
	files, err := fsx.NewOS(dir)
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = files.Close() })
	part := sitePart(ada)
	f.Add(filepath.Base(quarantineFile(l, part)), []byte(`{"part":"`+part+`","digest":"x","message":"no","since":"2026-01-01T00:00:00Z"}`))
	f.Add("x.json", []byte(`{"part":"../beside"}`))
	f.Add(".._beside.json", []byte(`{"part":"../beside","since":"x"}`))
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		path := filepath.Join(l.quarantine(), name)
		if filepath.Base(path) != name || filepath.Dir(path) != l.quarantine() || os.WriteFile(path, data, 0o600) != nil {
			return
		}
		got, err := loadQuarantine(files, l)
		if err != nil {
			t.Fatal(err)
		}
		for part := range got {
			if quarantineFile(l, part) != path {
				t.Fatalf("%q in %q is read", part, path)
			}
		}
		if _, err := os.Stat(beside); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Stat(path); (err == nil) != (len(got) == 1) {
			t.Fatalf("%d parts are read of %q, %v", len(got), data, err)
		}
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
	})
}
