package lawtest

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/demiurge-platform/demiurge"

// root is the top of the tree, from the directory in which tests of this package run.
const root = "../.."

// pkg is one package of the tree. Its path is relative to the module: "coordinator/state".
type pkg struct {
	path    string
	imports []string // of the program: full paths
	tests   []string // of its tests, of both kinds
}

// packages lists the tree with what each package imports.
func packages(t *testing.T) []pkg {
	t.Helper()
	command := exec.CommandContext(t.Context(), "go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
	command.Dir = root
	command.Stderr = os.Stderr
	out, err := command.Output()
	if err != nil {
		t.Fatalf("cannot list the packages: %v", err)
	}
	var all []pkg
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("cannot read what go list printed: %v", err)
		}
		all = append(all, pkg{
			path:    strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/"),
			imports: p.Imports, tests: append(p.TestImports, p.XTestImports...),
		})
	}
	if len(all) < 5 {
		t.Fatalf("go list found only %d packages: this test looks in the wrong place", len(all))
	}
	return all
}

// file is one file of the tree, its path relative to the top.
type file struct {
	path string
	text string
}

// lines is how long the file is.
func (f file) lines() int { return strings.Count(f.text, "\n") }

// isTest reports whether the file is compiled only into tests.
func (f file) isTest() bool { return strings.HasSuffix(f.path, "_test.go") }

// parse reads a Go file with its comments.
func (f file) parse(t *testing.T, set *token.FileSet) *ast.File {
	t.Helper()
	parsed, err := parser.ParseFile(set, f.path, f.text, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatalf("cannot parse: %v", err)
	}
	return parsed
}

// files reads the files of the tree whose name passes want, without what is built or belongs to git.
func files(t *testing.T, want func(path string) bool) []file {
	t.Helper()
	var all []file
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name == ".git" || name == "bin" {
				return filepath.SkipDir
			}
			return nil
		}
		if !entry.Type().IsRegular() || !want(name) {
			return nil
		}
		text, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // an editor's temporary file
		}
		all = append(all, file{path: name, text: string(text)})
		return err
	})
	if err != nil {
		t.Fatalf("cannot read the tree: %v", err)
	}
	if len(all) == 0 {
		t.Fatal("no file was found: this test looks in the wrong place")
	}
	return all
}

// goFiles reads every Go file of the tree. What lies in testdata is input of tests, not code.
func goFiles(t *testing.T) []file {
	t.Helper()
	return files(t, func(path string) bool {
		return strings.HasSuffix(path, ".go") && !strings.Contains(path, "testdata/")
	})
}

// below reports whether a package is top or lies beneath it.
func below(path, top string) bool { return path == top || strings.HasPrefix(path, top+"/") }
