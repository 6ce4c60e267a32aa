package nginx

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/demiurge-platform/demiurge/shared/fsx"
)

const manifestName = "MANIFEST"

// manifest says which files a generation has, with the digest of each, and the digest of the
// configuration that it was rendered from.
type manifest struct {
	digest string
	files  map[string]string // name → hex sha256
}

var manifestLine = regexp.MustCompile(`^([0-9a-f]{64})  ((?:sites/)?[a-z0-9][a-z0-9.-]*)$`)

func manifestOf(t tree, digest string) manifest {
	m := manifest{digest: digest, files: map[string]string{}}
	for name, b := range t {
		sum := sha256.Sum256(b)
		m.files[name] = hex.EncodeToString(sum[:])
	}
	return m
}

// encode writes "digest  configuration" and one line per file in name order, in the form of sha256sum.
// The last line is the sum of those before it.
func (m manifest) encode() []byte {
	var names []string
	for name := range m.files {
		names = append(names, name)
	}
	slices.Sort(names)
	var b strings.Builder
	fmt.Fprintf(&b, "%s  configuration\n", m.digest)
	for _, name := range names {
		fmt.Fprintf(&b, "%s  %s\n", m.files[name], name)
	}
	fmt.Fprintf(&b, "%x  manifest\n", sha256.Sum256([]byte(b.String())))
	return []byte(b.String())
}

// decodeManifest refuses everything that encode did not write.
func decodeManifest(b []byte) (manifest, error) {
	m := manifest{files: map[string]string{}}
	lines := strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")
	for i, line := range lines {
		f := manifestLine.FindStringSubmatch(line)
		if f == nil {
			return manifest{}, fmt.Errorf("cannot read the manifest: line %d is %.80q", i+1, line)
		}
		switch {
		case i == 0 && f[2] == "configuration":
			m.digest = f[1]
		case i == len(lines)-1 && f[2] == "manifest": // checked by the comparison below
		default:
			m.files[f[2]] = f[1]
		}
	}
	if string(m.encode()) != string(b) {
		return manifest{}, errors.New("cannot read the manifest: it is not in the form that this program writes")
	}
	return m, nil
}

// readGeneration reads a generation and proves that it is exactly what its manifest says.
func readGeneration(f fsx.FS, dir string) (tree, manifest, error) {
	b, err := f.ReadFile("nginx.generation.read", filepath.Join(dir, manifestName))
	if err != nil {
		return nil, manifest{}, fmt.Errorf("cannot read generation %s: %w", filepath.Base(dir), err)
	}
	m, err := decodeManifest(b)
	if err != nil {
		return nil, manifest{}, fmt.Errorf("generation %s: %w", filepath.Base(dir), err)
	}
	t := tree{}
	for name, want := range m.files {
		content, err := f.ReadFile("nginx.generation.read", filepath.Join(dir, name))
		if err != nil {
			return nil, manifest{}, fmt.Errorf("cannot read generation %s: %w", filepath.Base(dir), err)
		}
		if sum := sha256.Sum256(content); hex.EncodeToString(sum[:]) != want {
			return nil, manifest{}, fmt.Errorf("cannot use generation %s: file %s was changed after it was written", filepath.Base(dir), name)
		}
		t[name] = content
	}
	// A file that the manifest does not know would be included by its pattern.
	for _, sub := range []string{"", "sites"} {
		entries, err := f.ReadDir("nginx.generation.list", filepath.Join(dir, sub))
		if err != nil {
			return nil, manifest{}, fmt.Errorf("cannot read generation %s: %w", filepath.Base(dir), err)
		}
		for _, e := range entries {
			name := filepath.Join(sub, e.Name())
			if _, known := m.files[name]; !known && name != manifestName && name != "sites" {
				return nil, manifest{}, fmt.Errorf("cannot use generation %s: file %s does not belong to it", filepath.Base(dir), name)
			}
		}
	}
	return t, m, nil
}

// writeTree writes the files of a generation into a new directory.
func writeTree(f fsx.FS, label, dir string, t tree) error {
	if err := f.MkdirAll(label+".mkdir", filepath.Join(dir, "sites"), 0o700); err != nil {
		return err
	}
	for _, name := range t.names() {
		if err := f.Write(label+".write", filepath.Join(dir, name), t[name], 0o600); err != nil {
			return err
		}
	}
	return nil
}
