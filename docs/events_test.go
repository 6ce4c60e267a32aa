package docs

import (
	"go/ast"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	eventType   = regexp.MustCompile(`^([a-z_]+)\.([a-z_]+)$`)
	eventTopics = []string{"agent", "allocation", "coordinator", "gateway", "host", "join_token", "organization", "pool", "snapshot", "token", "trust"}
)

// Whoever reads events looks their names up in docs/monitoring.md, and can ask for each of their topics.
func TestEveryEventIsExplained(t *testing.T) {
	page, api := read(t, "docs/monitoring.md"), read(t, "coordinator/httpapi/events.go")
	_, table, _ := strings.Cut(page, "| topic | events |")
	table, _, _ = strings.Cut(table, "\n\n")
	rows := map[string]string{}
	for line := range strings.Lines(table) {
		if cells := strings.Split(line, "|"); len(cells) > 2 {
			rows[strings.Trim(cells[1], " `")] = cells[2]
		}
	}
	checked := 0
	explained := func(place, topic, name string) {
		if !strings.Contains(rows[topic], "`"+name+"`") {
			t.Errorf("%s: docs/monitoring.md does not say what %s.%s is", place, topic, name)
		}
		if !strings.Contains(api, `"`+topic+`"`) {
			t.Errorf("%s: GET /v1/events refuses the topic %s", place, topic)
		}
		checked++
	}
	for place, name := range eventNames(t) {
		if topic, name, ok := strings.Cut(name, "."); ok && slices.Contains(eventTopics, topic) {
			explained(place, topic, name)
		}
	}
	if checked < 40 {
		t.Errorf("only %d names of events were found: this test looks in the wrong place", checked)
	}
}

// eventNames are the names of events in the programs, by the place where each stands: what a field Type or
// a constant Event… is set to, and the nginx engine's, which are about a host.
func eventNames(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	inspect(t, []string{"agent", "coordinator"}, func(place string, n ast.Node) {
		switch n := n.(type) {
		case *ast.KeyValueExpr:
			if key, ok := n.Key.(*ast.Ident); ok && key.Name == "Type" && eventType.MatchString(text(n.Value)) {
				out[place] = text(n.Value)
			}
		case *ast.ValueSpec:
			for i, value := range n.Values {
				kind, _ := n.Type.(*ast.Ident)
				switch {
				case kind != nil && kind.Name == "EventType":
					out[place] = "host." + text(value)
				case strings.HasPrefix(strings.ToLower(n.Names[i].Name), "event") && eventType.MatchString(text(value)):
					out[place] = text(value)
				}
			}
		}
	})
	return out
}
