package main

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestChosen(t *testing.T) {
	all := []mutant{{name: "a"}, {name: "p1-x"}, {name: "p1-y"}, {name: "p10-z"}}
	for names, want := range map[string]string{
		"": "a p1-x p1-y p10-z", "p1-y": "p1-y", "p1-*": "p1-x p1-y", "p10-z p1-*": "p1-x p1-y p10-z", "p1-* p1-x": "p1-x p1-y",
		"p2-*": "no mutant is called", "a p9": "no mutant is called", "[": "cannot use the name",
	} {
		got, err := chosen(all, strings.Fields(names))
		var have []string
		for _, m := range got {
			have = append(have, m.name)
		}
		if text := strings.Join(have, " "); err == nil && text != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %q, %v; want %q", names, text, err, want)
		}
	}
}

// Every planted bug still fits the product: whoever changes the code that it changes brings it along.
func TestPatchesApply(t *testing.T) {
	all, err := mutants(".")
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 8 {
		t.Errorf("there are %d, want 8 or more", len(all))
	}
	root := filepath.Join("..", "..", "..")
	for _, m := range all {
		file, err := filepath.Abs(m.file)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := output(t.Context(), root, "git", "apply", "--check", file); err != nil {
			t.Errorf("mutant %s does not apply any more; plant the same bug into the code as it is now: %v", m.name, err)
		}
	}
}
