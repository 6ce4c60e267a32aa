package fsm_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const modulePath = "github.com/demiurge-platform/demiurge/"

// forbidden is what would make two members come to different states, or applying have an effect outside.
var forbidden = map[string]string{
	"math/rand": "randomness", "math/rand/v2": "randomness", "crypto/rand": "randomness", "os": "the world outside",
	"net": "the world outside", "net/http": "the world outside", "context": "waiting", "os/exec": "the world outside",
}

// forbiddenCalls are functions by package and name. Ids and times come with the command.
var forbiddenCalls = map[string]bool{
	"time.Now": true, "time.Since": true, "time.Until": true, "time.After": true, "time.AfterFunc": true,
	"time.Sleep": true, "time.NewTimer": true, "time.NewTicker": true, "id.NewOrganization": true,
	"id.NewGateway": true, "id.NewAllocation": true, "id.NewToken": true, "id.Secret": true,
}

// orderMark is what a loop over a map must say on its line, with the reason behind it.
const orderMark = "the order does not matter:"

// TestSourceIsDeterministic reads the source of the packages that apply commands.
func TestSourceIsDeterministic(t *testing.T) {
	for _, dir := range []string{".", "../state", "../command"} {
		for _, finding := range inspect(t, dir) {
			t.Error(finding)
		}
	}
}

// TestInspectionFindsWhatIsForbidden shows that the test above can fail.
func TestInspectionFindsWhatIsForbidden(t *testing.T) {
	findings := inspect(t, "testdata/forbidden")
	for _, want := range []string{"imports math/rand", "calls time.Now", "starts a goroutine", "ranges over a map", "maps.Keys", "selects"} {
		n := 0
		for _, f := range findings {
			if strings.Contains(f, want) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%q is found %d times in %q", want, n, findings)
		}
	}
	if len(findings) != 6 {
		t.Errorf("findings: %q", findings)
	}
}

// inspect type-checks a package's source, as far as maps need it, and reports what it may not do.
func inspect(t *testing.T, dir string) []string {
	t.Helper()
	fset := token.NewFileSet()
	files := parse(t, fset, dir)
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	conf := types.Config{Importer: &sources{t: t, fset: fset, done: map[string]*types.Package{}}, Error: func(error) {}}
	conf.Check(dir, fset, files, info) //nolint:errcheck // packages outside the module are empty here
	var out []string
	for _, file := range files {
		marked := map[int]bool{}
		for _, group := range file.Comments {
			if strings.Contains(group.Text(), orderMark) {
				marked[fset.Position(group.Pos()).Line] = true
			}
		}
		report := func(n ast.Node, what string) {
			out = append(out, fset.Position(n.Pos()).String()+" "+what)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.ImportSpec:
				if path, _ := strconv.Unquote(n.Path.Value); forbidden[path] != "" {
					report(n, "imports "+path+": "+forbidden[path])
				}
			case *ast.GoStmt:
				report(n, "starts a goroutine")
			case *ast.SelectStmt:
				report(n, "selects, which is random")
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok && forbiddenCalls[x.Name+"."+n.Sel.Name] {
					report(n, "calls "+x.Name+"."+n.Sel.Name)
				}
			case *ast.CallExpr:
				// Keys of a map are in order only when they are sorted at once.
				if name := callee(n); name == "slices.Sorted" || name == "slices.SortedFunc" {
					return false
				} else if name == "maps.Keys" || name == "maps.Values" || name == "maps.All" {
					report(n, name+" without sorting")
				}
			case *ast.RangeStmt:
				kind := info.Types[n.X].Type
				if kind == nil {
					break
				}
				if _, ok := kind.Underlying().(*types.Map); ok && !marked[fset.Position(n.Pos()).Line] {
					report(n, "ranges over a map")
				}
			}
			return true
		})
	}
	return out
}

func callee(c *ast.CallExpr) string {
	if s, ok := c.Fun.(*ast.SelectorExpr); ok {
		if x, ok := s.X.(*ast.Ident); ok {
			return x.Name + "." + s.Sel.Name
		}
	}
	return ""
}

func parse(t *testing.T, fset *token.FileSet, dir string) []*ast.File {
	t.Helper()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, path := range paths {
		if strings.HasSuffix(path, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(fset, path, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	if len(files) == 0 {
		t.Fatalf("%s: %v", dir, fs.ErrNotExist)
	}
	return files
}

// sources imports the module's own packages from their source. The others are empty: no map of theirs is
// ranged over here.
type sources struct {
	t    *testing.T
	fset *token.FileSet
	done map[string]*types.Package
}

var _ types.Importer = (*sources)(nil)

func (s *sources) Import(path string) (*types.Package, error) {
	if p := s.done[path]; p != nil {
		return p, nil
	}
	rest, own := strings.CutPrefix(path, modulePath)
	if !own {
		p := types.NewPackage(path, path[strings.LastIndex(path, "/")+1:])
		p.MarkComplete()
		s.done[path] = p
		return p, nil
	}
	conf := types.Config{Importer: s, Error: func(error) {}}
	p, _ := conf.Check(path, s.fset, parse(s.t, s.fset, filepath.Join("..", "..", rest)), nil)
	s.done[path] = p
	return p, nil
}
