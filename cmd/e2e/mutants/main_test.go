package main

import (
	"path/filepath"
	"testing"
)

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
