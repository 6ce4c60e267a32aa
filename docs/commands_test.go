package docs

import (
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	shellBlock  = regexp.MustCompile("(?s)\n```(?:sh|console)\n(.*?)\n```")
	inlineCode  = regexp.MustCompile("`((?:demiurge|make)(?:-[a-z]+)? [^`]+)`")
	makeTarget  = regexp.MustCompile(`(?m)^([a-z0-9-]+):`)
	subcommands = regexp.MustCompile(`(?s)Available Commands:\n(.*?)\n\n`)
)

// Every command line of a demiurge program and of make that a user reads, in a block or within a sentence,
// is one that the programs of this tree understand.
func TestDocumentedCommandsExist(t *testing.T) {
	c := commands{t: t, bin: t.TempDir(), help: map[string]string{}}
	for _, match := range makeTarget.FindAllStringSubmatch(read(t, "Makefile"), -1) {
		c.targets = append(c.targets, match[1])
	}
	checked := 0
	for _, page := range append(pages(t), rules, "packaging/config/coordinator.yaml", "packaging/config/agent.yaml") {
		for _, line := range commandLines(read(t, page)) {
			if problem := c.check(words(line)); problem != "" {
				t.Errorf("%s: %s\n\t%s", page, line, problem)
			}
			checked++
		}
	}
	if checked < 30 {
		t.Errorf("only %d command lines were found: this test looks in the wrong place", checked)
	}
	for wrong, want := range map[string]string{
		"demiurge alloc frobnicate x":         "no command",
		"demiurge alloc start x --frobnicate": "no flag",
		"demiurge-coordinator valid":          "no command",
		"make frobnicate":                     "no target",
	} {
		if problem := c.check(words(wrong)); !strings.Contains(problem, want) {
			t.Errorf("%q is accepted (%q): this test proves nothing", wrong, problem)
		}
	}
	t.Run("in what the programs say", func(t *testing.T) { remediesExist(t, c) })
}

// commandLines finds the lines that run a program of this tree.
func commandLines(text string) []string {
	var out []string
	for _, block := range shellBlock.FindAllStringSubmatch(text, -1) {
		for line := range strings.SplitSeq(strings.ReplaceAll(block[1], "\\\n", " "), "\n") {
			line = strings.TrimPrefix(strings.TrimPrefix(strings.TrimSpace(line), "$ "), "sudo ")
			first, _, _ := strings.Cut(strings.TrimPrefix(line, "bin/"), " ")
			if first == "demiurge" || strings.HasPrefix(first, "demiurge-") || first == "make" {
				out = append(out, strings.TrimPrefix(line, "bin/"))
			}
		}
	}
	for _, match := range inlineCode.FindAllStringSubmatch(shellBlock.ReplaceAllString(text, "\n"), -1) {
		out = append(out, match[1])
	}
	return out
}

// words splits a command line as a shell would, as far as documents need it: quotes, comments, and an end
// at the first operator. A template's {{ … }} is one word.
func words(line string) []string {
	line = regexp.MustCompile(`\{\{.*?\}\}`).ReplaceAllString(line, "X")
	var out []string
	word, quote, inside := "", rune(0), false
	flush := func() {
		if inside {
			out = append(out, word)
		}
		word, inside = "", false
	}
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote != 0:
			word += string(r)
		case r == '"' || r == '\'':
			quote, inside = r, true
		case r == ' ' || r == '\t' || r == '\n':
			flush()
		case r == '#' && !inside, r == '|', r == '>', r == ';', r == '&':
			flush()
			return out
		default:
			word, inside = word+string(r), true
		}
	}
	flush()
	return out
}

// commands asks the real programs what they understand.
type commands struct {
	t       *testing.T
	bin     string
	help    map[string]string // by command path
	targets []string          // of the Makefile
}

// check says what is wrong with a command line, or "".
func (c *commands) check(line []string) string {
	if line[0] == "make" {
		for _, word := range line[1:] {
			if !strings.Contains(word, "=") && !slices.Contains(c.targets, word) {
				return "there is no target " + word
			}
		}
		return ""
	}
	path, help := line[:1], ""
	for {
		help = c.ask(path)
		list := subcommands.FindStringSubmatch(help)
		if list == nil || len(path) == len(line) || strings.HasPrefix(line[len(path)], "-") {
			break
		}
		next := line[len(path)]
		if !regexp.MustCompile(`(?m)^  ` + regexp.QuoteMeta(next) + `\s`).MatchString(list[1]) {
			return "there is no command " + next + " of " + strings.Join(path, " ")
		}
		path = line[:len(path)+1]
	}
	for _, word := range line[len(path):] {
		flag, _, _ := strings.Cut(word, "=")
		if strings.HasPrefix(flag, "-") && !regexp.MustCompile(`(?m)(^|\s)`+regexp.QuoteMeta(flag)+`(\s|,|$)`).MatchString(help) {
			return "there is no flag " + flag + " of " + strings.Join(path, " ")
		}
	}
	return ""
}

// ask returns the help text of a command, from a program that is built at the first question.
func (c *commands) ask(path []string) string {
	c.t.Helper()
	key := strings.Join(path, " ")
	if text, ok := c.help[key]; ok {
		return text
	}
	program := filepath.Join(c.bin, path[0])
	if len(path) == 1 {
		build := exec.CommandContext(c.t.Context(), "go", "build", "-o", program, "./cmd/"+path[0])
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			c.t.Fatalf("cannot build %s: %v\n%s", path[0], err, out)
		}
	}
	out, err := exec.CommandContext(c.t.Context(), program, append(slices.Clone(path[1:]), "--help")...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("%s --help: %v\n%s", key, err, out)
	}
	c.help[key] = string(out)
	return c.help[key]
}
