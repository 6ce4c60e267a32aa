package lawtest

import (
	"fmt"
	"go/ast"
	"go/token"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

const (
	maxLines  = 500 // of one file
	maxReadme = 120
)

// waiter is the name of a function whose work is to look again and again until a deadline.
var waiter = regexp.MustCompile(`(?i)^(poll|eventually|wait|until)`)

func TestTestsWaitOnConditions(t *testing.T) {
	set := token.NewFileSet()
	byDir := map[string][]*ast.File{}
	for _, f := range goFiles(t) {
		if f.isTest() {
			byDir[filepath.Dir(f.path)] = append(byDir[filepath.Dir(f.path)], f.parse(t, set))
		}
	}
	for _, parsed := range byDir {
		for _, found := range bannedCalls(parsed) {
			t.Errorf("%s: %s", set.Position(found.at), found.why)
		}
	}
}

// banned is a call that a test may not make.
type banned struct {
	at  token.Pos
	why string
}

// bannedCalls finds sleeping and skipping in the tests of one package. Sleeping is right inside a function
// that polls, and inside a bubble of testing/synctest, whose clock is not the world's.
func bannedCalls(parsed []*ast.File) []banned {
	opens := openers(parsed)
	inBubble := bubbled(parsed, opens)
	var found []banned
	var visit func(node ast.Node, mayWait bool)
	visit = func(node ast.Node, mayWait bool) {
		ast.Inspect(node, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Body != nil && (waiter.MatchString(n.Name.Name) || inBubble[n.Name.Name]) {
					visit(n.Body, true)
					return false
				}
			case *ast.AssignStmt:
				if name, ok := n.Lhs[0].(*ast.Ident); ok && waiter.MatchString(name.Name) {
					for _, value := range n.Rhs {
						visit(value, true)
					}
					return false
				}
			case *ast.CallExpr:
				receiver, method := selector(n)
				switch {
				case opens[called(n)]:
					for _, argument := range n.Args {
						visit(argument, true)
					}
					return false
				case receiver == "time" && method == "Sleep" && !mayWait:
					found = append(found, banned{n.Pos(), "time.Sleep in a test\n\trule: wait on a condition (a function named poll…, eventually…, waitFor…); a sleep is too short on a busy machine and too long on any other"})
				case strings.HasPrefix(method, "Skip") && (receiver == "t" || receiver == "b" || receiver == "f" || receiver == "tb"):
					found = append(found, banned{n.Pos(), receiver + "." + method + "\n\trule: no test is skipped; a skipped test looks like a passed one. Install what it needs in `make deps-test`"})
				}
			}
			return true
		})
	}
	for _, f := range parsed {
		visit(f, false)
	}
	return found
}

// openers names the functions that open a bubble for a function that they are given: synctest.Test, and
// those of this package's tests that call it.
func openers(parsed []*ast.File) map[string]bool {
	names := map[string]bool{"synctest.Test": true}
	for _, f := range parsed {
		for _, decl := range f.Decls {
			function, ok := decl.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(function, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok && called(call) == "synctest.Test" {
					names[function.Name.Name] = true
				}
				return true
			})
		}
	}
	return names
}

// bubbled names the functions of a package's tests that are called from within a bubble, directly or by
// one that is.
func bubbled(parsed []*ast.File, opens map[string]bool) map[string]bool {
	bodies := map[string][]ast.Node{}
	var inside []ast.Node // whatever is named in these runs in a bubble
	for _, f := range parsed {
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				bodies[n.Name.Name] = append(bodies[n.Name.Name], n)
			case *ast.CallExpr:
				if opens[called(n)] {
					for _, argument := range n.Args {
						inside = append(inside, argument)
					}
				}
			}
			return true
		})
	}
	names := map[string]bool{}
	for len(inside) > 0 {
		body := inside[0]
		inside = inside[1:]
		ast.Inspect(body, func(n ast.Node) bool {
			name, ok := n.(*ast.Ident)
			if !ok || names[name.Name] || bodies[name.Name] == nil {
				return true
			}
			names[name.Name] = true
			inside = append(inside, bodies[name.Name]...)
			return true
		})
	}
	return names
}

// called is the name of what a call calls: "f", or "x.f" for a function or method of x.
func called(call *ast.CallExpr) string {
	if name, ok := call.Fun.(*ast.Ident); ok {
		return name.Name
	}
	receiver, method := selector(call)
	return receiver + "." + method
}

// selector splits the call a.B(…) into its two names.
func selector(call *ast.CallExpr) (receiver, method string) {
	if sel, ok := call.Fun.(*ast.SelectorExpr); ok {
		if x, ok := sel.X.(*ast.Ident); ok {
			return x.Name, sel.Sel.Name
		}
	}
	return "", ""
}

// The rule must find what it is about, and nothing else.
func TestBannedCallsAreFound(t *testing.T) {
	f := file{path: "x_test.go", text: `package x
func TestA(t *testing.T) { time.Sleep(1); t.Skipf("x") }
func waitFor(t *testing.T) { time.Sleep(1) }
func TestB(t *testing.T) { eventually := func() { time.Sleep(1) }; eventually() }
func TestC(t *testing.T) { synctest.Test(t, func(t *testing.T) { time.Sleep(1) }) }
func TestD(t *testing.T) { go func() { time.Sleep(1) }() }
func TestE(t *testing.T) { synctest.Test(t, func(t *testing.T) { story(t) }) }
func story(t *testing.T) { h.chapter() }
func (h *host) chapter() { time.Sleep(1) }
func (h *host) elsewhere() { time.Sleep(1) }
func inBubble(t *testing.T, body func()) { synctest.Test(t, func(*testing.T) { body() }) }
func TestF(t *testing.T) { inBubble(t, func() { time.Sleep(1) }) }
`}
	set := token.NewFileSet()
	var lines []string
	for _, found := range bannedCalls([]*ast.File{f.parse(t, set)}) {
		lines = append(lines, fmt.Sprint(set.Position(found.at).Line))
	}
	if got := strings.Join(lines, " "); got != "2 2 6 10" {
		t.Errorf("found in lines %s, want 2 2 6 10", got)
	}
}

func TestFilesFitInOneHead(t *testing.T) {
	for _, f := range goFiles(t) {
		switch {
		case f.lines() <= maxLines:
		case f.isTest():
			t.Logf("%s has %d lines: think of splitting it by subject", f.path, f.lines())
		default:
			t.Errorf("%s has %d lines\n\trule: at most %d; split it by responsibility, not by length", f.path, f.lines(), maxLines)
		}
	}
	for _, f := range files(t, func(path string) bool { return path == "README.md" }) {
		if f.lines() >= maxReadme {
			t.Errorf("%s has %d lines\n\trule: under %d; the rest belongs in docs/", f.path, f.lines(), maxReadme)
		}
	}
}

// somewhere matches paths that exist on one person's machine. The alternatives are put together here, so
// that this file does not match itself.
var somewhere = regexp.MustCompile(`(^|[^\w.$}*-])/(` + strings.Join([]string{"work", "root", "home"}, "|") + `)/\w`)

func TestNoPathsOfOneMachine(t *testing.T) {
	for _, f := range files(t, isText) {
		for n, line := range strings.Split(f.text, "\n") {
			// The platform that this one replaces had such a path built in; tests may name it.
			if somewhere.MatchString(line) && !strings.Contains(line, "local-dev") {
				t.Errorf("%s:%d names a path of one machine: %s\n\trule: every path derives from data_dir, run_dir or the configuration",
					f.path, n+1, strings.TrimSpace(line))
			}
		}
	}
}

// isText reports whether people write files of this name.
func isText(path string) bool {
	switch filepath.Ext(path) {
	case ".go", ".md", ".yml", ".yaml", ".service", ".conf", ".txt", ".txtar", ".sh", ".html", ".css", "":
		return true
	}
	return false
}

func TestShellScriptsParse(t *testing.T) {
	scripts := files(t, func(path string) bool { return filepath.Ext(path) == ".sh" || filepath.Ext(path) == "" })
	checked := 0
	for _, f := range scripts {
		if !strings.HasPrefix(f.text, "#!/bin/sh") && !strings.HasPrefix(f.text, "#!/usr/bin/env bash") && !strings.HasPrefix(f.text, "#!/bin/bash") {
			continue
		}
		checked++
		command := exec.CommandContext(t.Context(), "bash", "-n", filepath.Join(root, f.path))
		if out, err := command.CombinedOutput(); err != nil {
			t.Errorf("%s does not parse: %v\n%s", f.path, err, out)
		}
		if !strings.Contains(f.text, "\nset -eu") {
			t.Errorf("%s has no `set -euo pipefail`\n\trule: a script stops at its first failure; a half-done one looks done", f.path)
		}
	}
	if checked == 0 {
		t.Error("no script was found, not even .ci/run: this test looks in the wrong place")
	}
}
