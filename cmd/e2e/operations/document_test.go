//go:build e2e

package operations

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page is the document, from the directory in which tests of this package run.
const page = "../../../docs/operations.md"

var (
	block  = regexp.MustCompile("(?s)\n```(sh|yaml)\n(.*?)\n```")
	inline = regexp.MustCompile("`((?:demiurge|systemctl|journalctl|make|sudo|apt-get)(?:-[a-z]+)?\\s[^`]+)`")
)

// document is what an operator reads.
type document struct {
	commands []string // of blocks and of sentences, each once
	files    []string // the blocks of YAML
}

func parse(text string) document {
	var d document
	add := func(command string) {
		if command = strings.TrimSpace(command); command != "" && !slices.Contains(d.commands, command) {
			d.commands = append(d.commands, command)
		}
	}
	for _, found := range block.FindAllStringSubmatch(text, -1) {
		if found[1] == "yaml" {
			d.files = append(d.files, found[2]+"\n")
			continue
		}
		for line := range strings.SplitSeq(strings.ReplaceAll(found[2], "\\\n", " "), "\n") {
			add(line)
		}
	}
	for _, found := range inline.FindAllStringSubmatch(block.ReplaceAllString(text, "\n"), -1) {
		add(strings.Join(strings.Fields(found[1]), " "))
	}
	return d
}

func readDocument(t *testing.T) document {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	return parse(string(text))
}

// Whatever a reader can take for a command is one.
func TestCommandsOfADocumentAreFound(t *testing.T) {
	got := parse("# A\n\n```sh\nmake build\n\nsudo a \\\n  b | c   # why\n```\n\nThen `demiurge host\nlist`, `demiurge-agent leave`, not `demiurge.snap` or `dns.ttl`.\n\n```yaml\na: b\n```\n\n| x | `systemctl stop it` |\n")
	want := []string{"make build", "sudo a    b | c   # why", "demiurge host list", "demiurge-agent leave", "systemctl stop it"}
	if !slices.Equal(got.commands, want) || !slices.Equal(got.files, []string{"a: b\n"}) {
		t.Errorf("found %q and %q", got.commands, got.files)
	}
}
