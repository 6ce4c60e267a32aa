package docs

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// remedy is a command line within a sentence: a program and the words that could be its commands and flags.
var remedy = regexp.MustCompile(`\bdemiurge(?:-coordinator|-agent)? (?:--?[a-z-]+ |[a-z-]+ )*(?:--[a-z-]+|[a-z-]+)`)

// remediesExist checks what the programs tell their operator to run on a bad day.
func remediesExist(t *testing.T, c commands) {
	c.t = t
	checked := 0
	for place, text := range literals(t) {
		for _, line := range remedy.FindAllString(text, -1) {
			problem, command := c.told(line)
			if problem != "" {
				t.Errorf("%s: %s\n\t%s", place, text, problem)
			}
			if command {
				checked++
			}
		}
	}
	if checked < 30 {
		t.Errorf("only %d commands were found: this test looks in the wrong place", checked)
	}
	if problem, _ := c.told("demiurge operator raft transfer"); problem == "" {
		t.Error("a command that does not exist is accepted: this test proves nothing")
	}
}

// told checks a command line of a sentence. The name of a program alone begins many a sentence: only what
// goes on with one of its commands is a command line.
func (c *commands) told(line string) (problem string, command bool) {
	w := words(line)
	if len(w) < 2 || !regexp.MustCompile(`(?m)^  `+regexp.QuoteMeta(w[1])+`\s`).MatchString(c.ask(w[:1])) {
		return "", false
	}
	return c.check(w), true
}

// literals are the texts of the programs, by the place where each stands.
func literals(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	inspect(t, []string{"agent", "coordinator", "shared", "cmd"}, func(place string, n ast.Node) {
		if lit, ok := n.(*ast.BasicLit); ok && strings.Contains(text(lit), "demiurge") {
			out[place] = text(lit)
		}
	})
	return out
}

// text is what a string literal says; "" for anything else.
func text(n ast.Node) string {
	lit, ok := n.(*ast.BasicLit)
	if !ok || lit.Kind != token.STRING {
		return ""
	}
	s, err := strconv.Unquote(lit.Value)
	if err != nil {
		return ""
	}
	return s
}

// inspect walks through the programs' source.
func inspect(t *testing.T, tops []string, see func(place string, n ast.Node)) {
	t.Helper()
	for _, top := range tops {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || strings.Contains(path, "e2e") {
				return err
			}
			files := token.NewFileSet()
			file, err := parser.ParseFile(files, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if n != nil {
					see(files.Position(n.Pos()).String(), n)
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}
