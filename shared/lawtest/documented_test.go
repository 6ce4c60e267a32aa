package lawtest

import (
	"go/ast"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestEveryPackageHasADocComment(t *testing.T) {
	documented := map[string]bool{}
	set := token.NewFileSet()
	for _, f := range goFiles(t) {
		if f.isTest() {
			continue
		}
		doc := f.parse(t, set).Doc
		dir := filepath.Dir(f.path)
		documented[dir] = documented[dir] || doc.Text() != ""
	}
	for _, dir := range slices.Sorted(maps.Keys(documented)) {
		if !documented[dir] {
			t.Errorf("%s has no package comment\n\trule: each package says in its own words what its one responsibility is", dir)
		}
	}
}

func TestEveryExportedIdentifierIsDocumented(t *testing.T) {
	set := token.NewFileSet()
	byDir := map[string][]*ast.File{}
	for _, f := range goFiles(t) {
		if !f.isTest() {
			byDir[filepath.Dir(f.path)] = append(byDir[filepath.Dir(f.path)], f.parse(t, set))
		}
	}
	for _, parsed := range byDir {
		promised := promises(parsed)
		for _, f := range parsed {
			for _, decl := range f.Decls {
				if method, ok := decl.(*ast.FuncDecl); ok && method.Recv != nil && promised[method.Name.Name] {
					continue
				}
				for _, name := range undocumented(decl) {
					t.Errorf("%s: %s has no comment\n\trule: the comment of an exported name is its contract; the reader should not have to read the code",
						set.Position(name.Pos()), name.Name)
				}
			}
		}
	}
}

// promises names the methods whose contract stands elsewhere: in an interface of the same package, or in
// the standard library.
func promises(parsed []*ast.File) map[string]bool {
	names := map[string]bool{}
	for _, name := range []string{"Error", "Unwrap", "String", "MarshalJSON", "UnmarshalJSON", "MarshalText", "UnmarshalText"} {
		names[name] = true
	}
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			face, ok := n.(*ast.InterfaceType)
			if !ok {
				return true
			}
			for _, method := range face.Methods.List {
				for _, name := range method.Names {
					names[name.Name] = names[name.Name] || method.Doc.Text()+method.Comment.Text() != ""
				}
			}
			return true
		})
	}
	return names
}

// undocumented lists the exported names of a declaration that no comment speaks of. A comment on a group of
// constants or variables is for all of them.
func undocumented(decl ast.Decl) []*ast.Ident {
	switch decl := decl.(type) {
	case *ast.FuncDecl:
		if decl.Name.IsExported() && decl.Doc.Text() == "" && (decl.Recv == nil || exportedReceiver(decl.Recv)) {
			return []*ast.Ident{decl.Name}
		}
	case *ast.GenDecl:
		if decl.Doc.Text() != "" && (decl.Tok != token.TYPE || !decl.Lparen.IsValid()) {
			return nil
		}
		var out []*ast.Ident
		for _, spec := range decl.Specs {
			out = append(out, undocumentedSpec(spec)...)
		}
		return out
	}
	return nil
}

// undocumentedSpec lists the exported names of one line of a declaration that has no comment of its own.
func undocumentedSpec(spec ast.Spec) []*ast.Ident {
	var names []*ast.Ident
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		if spec.Doc.Text()+spec.Comment.Text() == "" {
			names = []*ast.Ident{spec.Name}
		}
	case *ast.ValueSpec:
		if spec.Doc.Text()+spec.Comment.Text() == "" {
			names = spec.Names
		}
	}
	return slices.DeleteFunc(slices.Clone(names), func(n *ast.Ident) bool { return !n.IsExported() })
}

// exportedReceiver reports whether a method's type can be named by other packages.
func exportedReceiver(recv *ast.FieldList) bool {
	for _, field := range recv.List {
		typ := field.Type
		for {
			switch inner := typ.(type) {
			case *ast.StarExpr:
				typ = inner.X
				continue
			case *ast.IndexExpr:
				typ = inner.X
				continue
			case *ast.IndexListExpr:
				typ = inner.X
				continue
			case *ast.Ident:
				return inner.IsExported()
			}
			return false
		}
	}
	return false
}

// The rule must find what it is about.
func TestUndocumentedIsFound(t *testing.T) {
	f := file{path: "x.go", text: `package x
type Bare struct{}
func (b *Bare) Method() {}
func Function() {}
func (g Generic[T]) Method2() {}
const Constant = 1
// Documented is.
type Documented struct{}
// A group.
const (
	One = 1
)
type hidden struct{}
func (h hidden) Public() {}
`}
	var got []string
	for _, decl := range f.parse(t, token.NewFileSet()).Decls {
		for _, name := range undocumented(decl) {
			got = append(got, name.Name)
		}
	}
	if want := "Bare Method Function Method2 Constant"; strings.Join(got, " ") != want {
		t.Errorf("found %q, want %q", got, want)
	}
}
