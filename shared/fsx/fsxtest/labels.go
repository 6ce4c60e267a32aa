package fsxtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Labels lists the labels of effects that the sources of a package name: every literal argument of a call that
// begins with the prefix, but for those of reads. So a test that walks labels can tell which it has never met.
func Labels(dir, prefix string) ([]string, error) {
	label := regexp.MustCompile(`^` + regexp.QuoteMeta(prefix) + `[a-z_]+(\.[a-z_]+)*$`)
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		source, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		ast.Inspect(source, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || isRead(call) {
				return true
			}
			for _, arg := range call.Args {
				lit, ok := arg.(*ast.BasicLit)
				if !ok || lit.Kind != token.STRING {
					continue
				}
				if text, err := strconv.Unquote(lit.Value); err == nil && label.MatchString(text) && !slices.Contains(out, text) {
					out = append(out, text)
				}
			}
			return true
		})
	}
	slices.Sort(out)
	return out, nil
}

// isRead reports whether a call is one of the file system's that has no effect.
func isRead(call *ast.CallExpr) bool {
	f, ok := call.Fun.(*ast.SelectorExpr)
	return ok && (strings.HasPrefix(f.Sel.Name, "Read") || strings.HasSuffix(f.Sel.Name, "stat"))
}

// Unwalked lists those of some labels that a walk has not met: neither the label itself nor, for what is done in
// several steps, one that goes on from it.
func Unwalked(labels, walked []string) []string {
	return slices.DeleteFunc(slices.Clone(labels), func(l string) bool {
		return slices.ContainsFunc(walked, func(w string) bool { return w == l || strings.HasPrefix(w, l+".") })
	})
}
