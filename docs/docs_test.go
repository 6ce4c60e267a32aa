// Package docs holds the documentation, and tests that compare it with the code it speaks of.
package docs

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/demiurge-platform/demiurge/coordinator/state"
	"github.com/demiurge-platform/demiurge/shared/fault"
)

// root is the top of the tree, from the directory in which tests of this package run.
const root = ".."

// read returns a file of the tree.
func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, path))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// pages are the documents for users: the README and what lies here.
func pages(t *testing.T) []string {
	t.Helper()
	found, err := filepath.Glob("*.md")
	if err != nil || len(found) < 5 {
		t.Fatalf("found the pages %v, %v", found, err)
	}
	all := []string{"README.md"}
	for _, name := range found {
		all = append(all, "docs/"+name)
	}
	return all
}

// table reads the rows of the Markdown table behind a marker: <!-- table: codes -->.
func table(t *testing.T, page, marker string) [][]string {
	t.Helper()
	_, rest, ok := strings.Cut(read(t, page), "<!-- "+marker+" -->\n")
	if !ok {
		t.Fatalf("%s has no marker %q", page, marker)
	}
	var rows [][]string
	for line := range strings.Lines(rest) {
		if !strings.HasPrefix(line, "|") {
			break
		}
		var cells []string
		for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
			cells = append(cells, strings.Trim(strings.TrimSpace(cell), "`"))
		}
		rows = append(rows, cells)
	}
	if len(rows) < 3 {
		t.Fatalf("the table %q of %s has %d lines", marker, page, len(rows))
	}
	return rows[2:] // without head and rule
}

func TestStateTablesAreTheCodes(t *testing.T) {
	compareMoves(t, "allocation", state.AllowedAllocationMoves())
	compareMoves(t, "gateway", state.AllowedGatewayMoves())
}

// compareMoves compares a table of concepts.md with the table that the state machine refuses by.
func compareMoves[S ~string](t *testing.T, what string, moves map[S][]S) {
	t.Helper()
	documented := map[S][]S{}
	for _, row := range table(t, "docs/concepts.md", "table: "+what) {
		from := S(row[0])
		if row[0] == "(new)" {
			from = ""
		}
		for to := range strings.SplitSeq(row[1], ", ") {
			documented[from] = append(documented[from], S(to))
		}
	}
	for _, from := range slices.Sorted(maps.Keys(moves)) {
		want, got := slices.Sorted(slices.Values(moves[from])), slices.Sorted(slices.Values(documented[from]))
		if !slices.Equal(want, got) {
			t.Errorf("docs/concepts.md says that a %s goes from %q to %v; the code allows %v", what, from, got, want)
		}
		delete(documented, from)
	}
	if len(documented) > 0 {
		t.Errorf("docs/concepts.md has moves of a %s from states that the code does not know: %v", what, documented)
	}
}

func TestEveryErrorCodeIsExplained(t *testing.T) {
	codes := fault.Codes()
	for _, row := range table(t, "docs/api.md", "table: codes") {
		status, known := codes[fault.Code(row[0])]
		switch {
		case !known:
			t.Errorf("docs/api.md explains the code %q, which does not exist", row[0])
		case strconv.Itoa(status) != row[1]:
			t.Errorf("docs/api.md says that %s is %s; it is %d", row[0], row[1], status)
		case len(row[2]) < 20:
			t.Errorf("docs/api.md does not say what %s means", row[0])
		}
		delete(codes, fault.Code(row[0]))
	}
	if len(codes) > 0 {
		t.Errorf("docs/api.md does not explain the codes %v", slices.Sorted(maps.Keys(codes)))
	}
}

var (
	alertName  = regexp.MustCompile(`\bDemiurge[A-Z][A-Za-z]+\b`)
	ruleName   = regexp.MustCompile(`(?m)^ *- alert: (\w+)$`)
	metricName = regexp.MustCompile(`\bdemiurge_[a-z_]+`)
	histogram  = regexp.MustCompile(`_(bucket|sum|count)$`)
)

const rules = "packaging/prometheus/demiurge.rules.yml"

func TestEveryAlertIsExplained(t *testing.T) {
	page := read(t, "docs/monitoring.md")
	explained := alertName.FindAllString(page, -1)
	var shipped []string
	for _, match := range ruleName.FindAllStringSubmatch(read(t, rules), -1) {
		shipped = append(shipped, match[1])
		if !slices.Contains(explained, match[1]) {
			t.Errorf("docs/monitoring.md does not speak of the alert %s", match[1])
		}
	}
	if len(shipped) < 10 {
		t.Fatalf("found only the alerts %v", shipped)
	}
	for _, name := range explained {
		if !slices.Contains(shipped, name) {
			t.Errorf("docs/monitoring.md speaks of the alert %s, which is not shipped", name)
		}
	}
	tests := read(t, "packaging/prometheus/demiurge.rules.test.yml")
	for _, name := range shipped {
		if !strings.Contains(tests, name) {
			t.Errorf("the alert %s has no test", name)
		}
	}
}

// A metric that is misspelt in a rule makes an alert that never fires.
func TestEveryMetricExists(t *testing.T) {
	source := ""
	for _, top := range []string{"coordinator/metrics", "agent"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return err
			}
			text, err := os.ReadFile(path)
			source += string(text)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{rules, "docs/monitoring.md"} {
		for _, name := range metricName.FindAllString(read(t, file), -1) {
			name = histogram.ReplaceAllString(name, "")
			short := strings.TrimPrefix(name, "demiurge_")
			if !strings.Contains(source, `"`+name+`"`) && !strings.Contains(source, `"`+short+`"`) {
				t.Errorf("%s names the metric %s, which neither coordinator/metrics nor agent has", file, name)
			}
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#]+)(#[^)]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, page := range pages(t) {
		for _, match := range link.FindAllStringSubmatch(read(t, page), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			if _, err := os.Stat(filepath.Join(root, filepath.Dir(page), match[1])); err != nil {
				t.Errorf("%s links to %s: %v", page, match[1], err)
			}
		}
	}
}
